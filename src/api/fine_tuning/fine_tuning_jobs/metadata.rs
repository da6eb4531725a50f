//! The client's own notes on its jobs: the filter of `fine_tuning_jobs::list`.

use crate::api::http::error::Result;
use crate::api::operations::checks::wanted_metadata;
use crate::jobs::MetadataFilter;

/// Reads the filter from the pairs of a query: `metadata[name]=value`, or `metadata=null` for jobs without notes.
pub(super) fn read_filter(pairs: &[(String, String)]) -> Result<MetadataFilter> {
    if pairs.iter().any(|(name, value)| name == "metadata" && value == "null") {
        return Ok(MetadataFilter::None);
    }
    let notes = wanted_metadata(pairs)?;
    Ok(if notes.is_empty() { MetadataFilter::Any } else { MetadataFilter::All(notes) })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn filter(pairs: &[(&str, &str)]) -> MetadataFilter {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        read_filter(&pairs).expect("a filter")
    }

    #[test]
    fn a_filter_is_read_from_the_query() {
        let MetadataFilter::All(notes) = filter(&[("metadata[team]", "a b"), ("limit", "3"), ("metadata[x]", "")])
        else {
            panic!("two notes");
        };
        assert_eq!(Value::from(notes), serde_json::json!({"team": "a b", "x": ""}));
        assert_eq!(filter(&[("metadata", "null")]), MetadataFilter::None);
        assert_eq!(filter(&[("limit", "3"), ("metadata", "")]), MetadataFilter::Any);
    }
}
