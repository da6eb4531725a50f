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
            Some(value) if name.contains('\0') || value.contains('\0') => {
                return fault("'metadata' must not contain the NUL character.");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Returns the notes that a query asks for as `metadata[name]=value`. Another form would ask for all, and is refused; an
/// empty value is as if it were absent.
pub(crate) fn wanted_metadata(pairs: &[(String, String)]) -> Result<Map<String, Value>> {
    let mut notes = Map::new();
    for (name, value) in pairs {
        let Some(rest) = name.strip_prefix("metadata") else { continue };
        if let Some(note) = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            notes.insert(note.to_owned(), Value::from(value.as_str()));
        } else if rest.starts_with('[') || (rest.is_empty() && !value.is_empty()) {
            let message = "Notes are asked for as 'metadata[name]=value'.";
            return Err(Problem::invalid_code("metadata", "invalid_value", message));
        }
    }
    check_metadata(Some(&notes))?;
    Ok(notes)
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
        assert!(check_metadata(Some(&Map::from_iter([("a".to_owned(), Value::from("\0"))]))).is_err());
    }

    #[test]
    fn a_query_asks_for_notes_in_one_form() {
        let wanted = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            wanted_metadata(&pairs).map(|notes| notes.len())
        };
        assert_eq!(
            wanted(&[("metadata[a]", "x"), ("metadata[b]", ""), ("limit", "3"), ("metadatas", "x")]).ok(),
            Some(2)
        );
        assert_eq!(wanted(&[("metadata", "")]).ok(), Some(0));
        for name in ["metadata", "metadata[a", "metadata[a][b"] {
            assert!(wanted(&[(name, "x")]).is_err(), "{name}");
        }
    }
}
