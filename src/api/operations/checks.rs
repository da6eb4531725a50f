//! Checks that fields of several resources have in common. Errors name the field `param`.

use crate::api::http::error::{Problem, Result};

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
