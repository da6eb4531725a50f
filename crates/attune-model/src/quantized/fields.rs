//! Fields of a format's settings, with messages that name them. Used by the formats.

use serde_json::Value;

/// Reads a size of at least 1.
pub(super) fn size(value: &Value, name: &str) -> Result<usize, String> {
    let size = value.as_u64().filter(|size| (1..=u64::from(u32::MAX)).contains(size));
    size.map(|size| size as usize).ok_or_else(|| format!("`{name}` {value} must be a whole number of at least 1"))
}

/// Reads a flag; `default` if it is missing.
pub(super) fn flag(config: &Value, name: &str, default: bool) -> Result<bool, String> {
    match &config[name] {
        Value::Null => Ok(default),
        value => value.as_bool().ok_or_else(|| format!("`{name}` of `quantization_config` must be true or false")),
    }
}

/// Reads a text; `None` if it is missing.
pub(super) fn text<'a>(config: &'a Value, name: &str) -> Result<Option<&'a str>, String> {
    match &config[name] {
        Value::Null => Ok(None),
        value => value.as_str().map(Some).ok_or_else(|| format!("`{name}` of `quantization_config` must be a text")),
    }
}
