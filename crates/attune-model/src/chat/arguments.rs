//! Arguments of a call, as they are written and as models read them.

use serde_json::{Map, Value};

/// Reads arguments: a JSON object, or the text of one. They stay text if they are no JSON object, or if reading would
/// round a whole number in them. No text and `None` are no arguments.
pub(super) fn read(written: Option<Value>) -> Value {
    match written {
        None | Some(Value::Null) => Map::new().into(),
        Some(Value::String(text)) if matches!(text.trim(), "" | "null") => Map::new().into(),
        Some(Value::String(text)) => match object(&text) {
            Some(object) if keeps_digits(&text) => object.into(),
            _ => text.into(),
        },
        Some(other) => other,
    }
}

/// Writes arguments as JSON: as a string of it if they are no object.
pub(super) fn write(arguments: &Value) -> String {
    match arguments {
        Value::String(text) if object(text).is_some() => text.clone(),
        other => other.to_string(),
    }
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// Returns true if all whole numbers in the JSON `text` fit 64 bits, so that reading it keeps their digits.
fn keeps_digits(text: &str) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    let outside = |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            _ if !in_string => return character,
            _ => {}
        }
        ' '
    };
    let numbers: String = text.chars().map(outside).collect();
    let mut numbers =
        numbers.split(|character: char| !(character.is_ascii_alphanumeric() || "+-.".contains(character)));
    numbers.all(|number| {
        let digits = number.strip_prefix('-').unwrap_or(number);
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        !whole || number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_arguments_are_an_empty_object_however_they_are_written() {
        for written in
            [None, Some(json!(null)), Some(json!("")), Some(json!(" \n")), Some(json!("null")), Some(json!({}))]
        {
            assert_eq!(read(written), json!({}));
        }
    }

    #[test]
    fn arguments_are_objects_unless_that_would_change_them() {
        for (text, expected) in [
            (r#"{"b": 1, "a": [2]}"#, json!({"b": 1, "a": [2]})),
            (r#"{"id": 18446744073709551615}"#, json!({"id": u64::MAX})),
            (r#"{"id": "123456789012345678901234"}"#, json!({"id": "123456789012345678901234"})),
            ("not JSON", json!("not JSON")),
            ("[1]", json!("[1]")),
        ] {
            let arguments = read(Some(text.into()));
            assert_eq!(arguments, expected, "{text}");
            assert_eq!(write(&arguments), expected.to_string(), "{text}");
        }
        let large = r#"{"id": 123456789012345678901234}"#;
        assert_eq!(read(Some(large.into())), json!(large));
        assert_eq!(write(&json!(large)), large);
    }
}
