//! The client's own notes on its jobs: what `fine_tuning_jobs::create` takes, and the filter of `fine_tuning_jobs::list`.

use serde_json::{Map, Value};

use super::MAX_PAGE;
use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::jobs::{Job, JobApi};
use crate::store::files::Page;
use crate::{Error, Result};

/// Jobs that a list with a filter looks at, at the most.
const MAX_SCANNED: usize = 2000;

/// At most 16 notes: names of up to 64 characters, values that are texts of up to 512.
pub fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    let fault = |message: &str| Err(Error::invalid_code("metadata", "invalid_value", message));
    if metadata.len() > 16 {
        return fault("'metadata' has more than 16 entries.");
    }
    for (name, value) in metadata {
        match value.as_str() {
            None => return fault("Every value of 'metadata' must be a string."),
            Some(value) if name.chars().count() > 64 || value.chars().count() > 512 => {
                return fault("'metadata' takes names of 64 and values of 512 characters at the most.");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The notes that listed jobs must have.
#[derive(Debug, PartialEq, Eq)]
pub enum MetadataFilter<'a> {
    /// Whatever they have.
    Any,
    /// No notes at all.
    None,
    /// These, among others.
    All(Vec<(&'a str, &'a str)>),
}

impl<'a> MetadataFilter<'a> {
    /// From the pairs of a query: `metadata[name]=value`, or `metadata=null`.
    pub fn read(pairs: &'a [(String, String)]) -> Self {
        if pairs.iter().any(|(name, value)| name == "metadata" && value == "null") {
            return Self::None;
        }
        let note = |(name, value): &'a (String, String)| {
            Some((name.strip_prefix("metadata[")?.strip_suffix(']')?, value.as_str()))
        };
        let notes: Vec<_> = pairs.iter().filter_map(note).collect();
        if notes.is_empty() { Self::Any } else { Self::All(notes) }
    }

    fn keeps(&self, metadata: Option<&Map<String, Value>>) -> bool {
        match self {
            Self::Any => true,
            Self::None => metadata.is_none_or(Map::is_empty),
            Self::All(notes) => notes.iter().all(|(name, value)| {
                metadata.and_then(|metadata| metadata.get(*name)).and_then(Value::as_str) == Some(*value)
            }),
        }
    }

    /// A page of the jobs that it keeps, and whether there may be more.
    pub async fn jobs(&self, state: &ApiState, caller: &Caller, page: Page) -> Result<(Vec<Job>, bool)> {
        let read = |page| state.queue.jobs(&caller.organization, JobApi::FineTuningJobs, page);
        if *self == Self::Any {
            return read(page).await;
        }
        let (mut kept, mut scanned, mut after) = (Vec::new(), 0, page.after.clone());
        loop {
            let (jobs, has_more) = read(Page { after, limit: MAX_PAGE, ascending: false }).await?;
            scanned += jobs.len();
            after = jobs.last().map(|job| job.id.clone());
            kept.extend(jobs.into_iter().filter(|job| self.keeps(job.spec.metadata.as_ref())));
            let full = kept.len() > page.limit as usize;
            kept.truncate(page.limit as usize);
            if full || !has_more || scanned >= MAX_SCANNED {
                return Ok((kept, full));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_filtered_by_their_notes() {
        let notes = |json: &str| serde_json::from_str::<Map<String, Value>>(json).expect("notes");
        let pairs = [("metadata[team]".to_owned(), "a b".to_owned()), ("limit".to_owned(), "3".to_owned())];
        let filter = MetadataFilter::read(&pairs);
        assert!(filter.keeps(Some(&notes(r#"{"team":"a b","x":"y"}"#))));
        assert!(!filter.keeps(Some(&notes(r#"{"team":"c"}"#))) && !filter.keeps(None));
        let pairs = [("metadata".to_owned(), "null".to_owned())];
        let filter = MetadataFilter::read(&pairs);
        assert!(filter.keeps(None) && !filter.keeps(Some(&notes(r#"{"team":"c"}"#))));
        assert_eq!(MetadataFilter::read(&[]), MetadataFilter::Any);
    }
}
