//! Checks that fields of several resources have in common. Errors name the field `param`.

use serde_json::{Map, Value};

use crate::api::http::error::{Problem, Result};

/// Checks a client's own notes on an object: at most 16, with names of up to 64 characters and texts of up to 512 as
/// values.
pub(crate) fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<()> {
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

/// Returns the notes that a query asks for as `metadata[name]=value`.
pub(crate) fn wanted_metadata(pairs: &[(String, String)]) -> Map<String, Value> {
    let note = |(name, value): &(String, String)| {
        Some((name.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned(), Value::from(value.as_str())))
    };
    pairs.iter().filter_map(note).collect()
}

/// Returns `value` if it is `None` or between `low` and `high`, both included.
pub(crate) fn within<T: Copy + PartialOrd + std::fmt::Display>(
    param: &str,
    value: Option<T>,
    low: T,
    high: T,
) -> Result<Option<T>> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            let message = format!("Invalid '{param}': {value} is not between {low} and {high}.");
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        value => Ok(value),
    }
}

/// Makes the error for a field that this server does not support: refused, since ignoring it would change the answer.
pub(crate) fn not_supported(param: &str) -> Problem {
    let message = format!("'{param}' is not supported yet: leave it out.");
    Problem::invalid_code(param, "unsupported_parameter", message)
}

/// Checks that a text of at most `most` bytes was sent; an error names the field `param`.
pub(crate) fn no_longer_than(param: &'static str, text: Option<&str>, most: usize) -> Result<()> {
    match text {
        Some(text) if text.len() > most => {
            let message = format!("'{param}' is longer than {most} bytes; it has {}.", text.len());
            Err(Problem::invalid_code(param, "string_above_max_length", message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
