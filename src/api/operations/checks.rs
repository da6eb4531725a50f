//! Rules that fields of several resources have in common. Each blames the field by its name.

use crate::{Error, Result};

/// `value`, if it is within the range.
pub(crate) fn within<T: Copy + PartialOrd + std::fmt::Display>(
    param: &str,
    value: Option<T>,
    low: T,
    high: T,
) -> Result<Option<T>> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            let message = format!("Invalid '{param}': {value} is not between {low} and {high}.");
            Err(Error::invalid_code(param, "invalid_value", message))
        }
        value => Ok(value),
    }
}

/// A field that this server cannot honour yet: refused rather than ignored, since ignoring it would change the answer.
pub(crate) fn not_supported(param: &str) -> Error {
    let message = format!("'{param}' is not supported yet: leave it out.");
    Error::invalid_code(param, "unsupported_parameter", message)
}
