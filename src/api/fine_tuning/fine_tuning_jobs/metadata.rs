//! The client's own notes on its jobs: the rules for those that `fine_tuning_jobs::create` takes, and the filter of
//! `fine_tuning_jobs::list`.

use serde_json::{Map, Value};

use crate::api::http::error::{Problem, Result};
use crate::jobs::MetadataFilter;

/// Checks that there are at most 16 notes, with names of up to 64 characters and texts of up to 512 as values.
pub(super) fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    let fault = |message: &str| Err(Problem::invalid_code("metadata", "invalid_value", message));
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

/// Reads the filter from the pairs of a query: `metadata[name]=value`, or `metadata=null` for jobs without notes.
pub(super) fn read_filter(pairs: &[(String, String)]) -> MetadataFilter {
    if pairs.iter().any(|(name, value)| name == "metadata" && value == "null") {
        return MetadataFilter::None;
    }
    let note = |(name, value): &(String, String)| {
        Some((name.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned(), Value::from(value.as_str())))
    };
    let notes: Map<String, Value> = pairs.iter().filter_map(note).collect();
    if notes.is_empty() { MetadataFilter::Any } else { MetadataFilter::All(notes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pairs: &[(&str, &str)]) -> MetadataFilter {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        read_filter(&pairs)
    }

    #[test]
    fn a_filter_is_read_from_the_query() {
        let MetadataFilter::All(notes) = filter(&[("metadata[team]", "a b"), ("limit", "3"), ("metadata[x]", "")])
        else {
            panic!("two notes");
        };
        assert_eq!(Value::from(notes), serde_json::json!({"team": "a b", "x": ""}));
        assert_eq!(filter(&[("metadata", "null")]), MetadataFilter::None);
        assert_eq!(filter(&[("limit", "3"), ("metadata", "x")]), MetadataFilter::Any);
    }

    #[test]
    fn notes_have_limits_that_a_client_may_just_reach() {
        let notes = |count: usize, name: usize, value: usize| {
            (0..count).map(|i| (format!("{i:0>name$}"), Value::from("ä".repeat(value)))).collect::<Map<_, _>>()
        };
        assert!(check_metadata(Some(&notes(16, 64, 512))).is_ok());
        for (count, name, value) in [(17, 64, 512), (16, 65, 512), (16, 64, 513)] {
            assert!(check_metadata(Some(&notes(count, name, value))).is_err(), "{count} {name} {value}");
        }
    }
}
