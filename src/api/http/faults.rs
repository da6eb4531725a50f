//! Turns what serde says about a body or a query into an error object in the API's own words: JSON's names of types,
//! never Rust's. Called by `extract` and `query`.

use crate::api::http::error::Problem;
use crate::datasets::parse::shorten;

/// What serde says of a number that its type cannot hold.
pub(crate) const OUT_OF_RANGE: &str = "number out of range";

/// Returns the problem that serde reports as `reason` at `path`, which is `.` for the whole.
pub(crate) fn fault(path: &str, reason: &str) -> Problem {
    if let Some(name) = quoted_after(reason, "missing field ") {
        return Problem::missing(below(path, name));
    }
    if let Some(name) = quoted_after(reason, "duplicate field ") {
        let param = below(path, name);
        let message = format!("'{param}' is given more than once: send it once.");
        return Problem::invalid_code(param, "invalid_value", message);
    }
    let param = if path == "." { "body" } else { path };
    if reason == OUT_OF_RANGE {
        let message = format!("Invalid '{param}': the number is too large.");
        return Problem::invalid_code(param.to_owned(), "invalid_value", message);
    }
    if let Some((got, expected)) = parts(reason, "invalid type: ") {
        if let Some(text) = quoted(got, type_name(expected)) {
            let reason = format!("\"{text}\" is a text: write {text} without quotation marks");
            return Problem::wrong_type(param.to_owned(), &reason);
        }
        return Problem::wrong_type(param.to_owned(), &format!("expected {}, got {}", type_name(expected), value(got)));
    }
    if reason.starts_with("invalid length ") && reason.contains(", expected struct ") {
        return Problem::wrong_type(param.to_owned(), "expected an object, got an array");
    }
    let (got, expected) = if let Some((got, expected)) = parts(reason, "invalid value: ") {
        (value(got), type_name(expected).to_owned())
    } else if let Some((got, expected)) = parts(reason, "unknown variant ") {
        (format!("'{}'", shorten(got.trim_matches('`'))), expected.replace('`', "'"))
    } else {
        return Problem::wrong_type(param.to_owned(), reason);
    };
    let message = format!("Invalid '{param}': expected {expected}, got {got}.");
    Problem::invalid_code(param, "invalid_value", message)
}

/// Returns the number or the boolean that was sent as text; `None` if `got` is another value.
fn quoted<'a>(got: &'a str, expected: &str) -> Option<&'a str> {
    let text = got.strip_prefix("string \"")?.strip_suffix('"')?;
    let fits = if expected == "true or false" {
        matches!(text, "true" | "false")
    } else {
        expected.contains("number") && is_number(text)
    };
    fits.then_some(text)
}

/// Returns `true` if `text` is a number as JSON writes it.
pub(crate) fn is_number(text: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(text).is_ok()
}

/// Returns the name in backquotes that follows `start` and ends `reason`.
fn quoted_after<'a>(reason: &'a str, start: &str) -> Option<&'a str> {
    reason.strip_prefix(start)?.strip_prefix('`')?.strip_suffix('`')
}

/// Splits `{start}{got}, expected {expected}`. What was got may be a client's own text, so the last separator counts.
fn parts<'a>(reason: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    reason.strip_prefix(start)?.rsplit_once(", expected ")
}

fn below(path: &str, name: &str) -> String {
    if path == "." { name.to_owned() } else { format!("{path}.{name}") }
}

/// Returns the name that JSON has for a type that serde expected.
fn type_name(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        "string or map" | "field identifier" | "variant identifier" => "a string",
        other if other.starts_with("struct ") => "an object",
        other if other.starts_with("enum ") => "a string",
        other => other,
    }
}

/// Returns a value as JSON writes it, shortened; of arrays and objects serde tells only the type.
fn value(got: &str) -> String {
    match got {
        "map" => "an object".into(),
        "sequence" => "an array".into(),
        "unit value" | "Option value" => "null".into(),
        _ => match got.strip_prefix("string ") {
            Some(text) => shorten(text),
            None => got.split('`').nth(1).unwrap_or(got).to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str, reason: &str) -> (String, Option<String>, Option<&'static str>) {
        let error = fault(path, reason).error;
        (error.message, error.param.map(std::borrow::Cow::into_owned), error.code)
    }

    #[test]
    fn types_have_the_names_of_json() {
        for (reason, message) in [
            ("invalid type: string \"many\", expected usize", "expected a whole number of at least 0, got \"many\"."),
            ("invalid type: floating point `5.5`, expected i64", "expected a whole number, got 5.5."),
            ("invalid type: map, expected f32", "expected a number, got an object."),
            ("invalid type: sequence, expected struct ChatRequest", "expected an object, got an array."),
            ("invalid length 0, expected struct ExpiresAfter with 2 elements", "expected an object, got an array."),
            ("invalid type: null, expected a string", "expected a string, got null."),
            ("invalid type: boolean `true`, expected a sequence", "expected an array, got true."),
            (
                "invalid type: string \"a, expected b\", expected a boolean",
                "expected true or false, got \"a, expected b\".",
            ),
            ("expected a string or an array of strings", "expected a string or an array of strings."),
        ] {
            let (said, param, code) = told("n", reason);
            assert_eq!(said, format!("Invalid type for 'n': {message}"));
            assert_eq!((param.as_deref(), code), (Some("n"), Some("invalid_type")));
        }
    }

    #[test]
    fn values_out_of_range_are_told_as_such() {
        let (message, _, code) = told("max_tokens", "invalid value: integer `-1`, expected usize");
        assert_eq!(message, "Invalid 'max_tokens': expected a whole number of at least 0, got -1.");
        assert_eq!(code, Some("invalid_value"));
        let (message, _, _) = told("order", "unknown variant `up`, expected `asc` or `desc`");
        assert_eq!(message, "Invalid 'order': expected 'asc' or 'desc', got 'up'.");
    }

    #[test]
    fn what_is_missing_or_given_twice_is_named() {
        let missing = told("messages[0]", "missing field `role`");
        assert_eq!(missing.0, "Missing required parameter: 'messages[0].role'.");
        let (message, param, _) = told(".", "duplicate field `model`");
        assert_eq!(
            (message.as_str(), param.as_deref()),
            ("'model' is given more than once: send it once.", Some("model"))
        );
    }

    #[test]
    fn a_long_text_is_not_repeated_in_full() {
        let (message, _, _) = told("n", &format!("invalid type: string \"{}\", expected usize", "x".repeat(100_000)));
        assert!(message.len() < 300, "{}", message.len());
    }
}
