//! Reads the JSON files that Python programs write beside a model: `config.json`, `generation_config.json` and
//! `adapter_config.json`.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The numbers that Python writes and JSON does not have.
const NO_JSON: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
/// The key of the objects that stand for them.
const TAG: &str = "__float__";

/// Parses a file as Python does: a mark of the byte order is skipped, the last of equal keys counts, and `NaN` and
/// `Infinity` are values. Here these are objects, as transformers writes them into JSON itself; no field takes one.
pub fn parse(file: &[u8]) -> serde_json::Result<Value> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    serde_json::from_slice(file).or_else(|error| serde_json::from_str(&with_tagged_numbers(file).ok_or(error)?))
}

/// Spells the numbers that JSON does not have as transformers does; `None` if `file` is not text.
fn with_tagged_numbers(file: &[u8]) -> Option<String> {
    let mut rest = std::str::from_utf8(file).ok()?;
    let mut output = String::with_capacity(rest.len());
    let (mut inside, mut escaped) = (false, false);
    while let Some(character) = rest.chars().next() {
        let number = NO_JSON.into_iter().find(|number| !inside && rest.starts_with(number));
        if let Some(number) = number {
            output.extend(["{\"", TAG, "\":\"", number, "\"}"]);
            rest = &rest[number.len()..];
            continue;
        }
        inside ^= character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        output.push(character);
        rest = &rest[character.len_utf8()..];
    }
    Some(output)
}

/// Returns a value as it stands in the file, for messages.
pub(crate) fn shown(value: &Value) -> String {
    let number = value.get(TAG).and_then(Value::as_str).filter(|number| NO_JSON.contains(number));
    number.map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns what the JSON file holds; `None` if there is no such file.
pub(crate) fn read(file: &Path) -> Result<Option<Value>> {
    if !file.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(file).map_err(Error::io(format!("read {}", file.display())))?;
    let value = parse(&bytes);
    value.map(Some).map_err(|error| Error::Setup(format!("{}: not JSON: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::{parse, shown};

    #[test]
    fn numbers_that_json_does_not_have_are_read_as_transformers_writes_them_and_texts_stay_as_they_are() {
        let text = "\u{feff}{\"a\": NaN, \"b\": [-Infinity, 1], \"c\\\"\": \"NaN \\\" Infinity\", \"a\": Infinity}";
        let value = parse(text.as_bytes()).expect("JSON of Python");
        let number = |name: &str| serde_json::json!({"__float__": name});
        let expected = serde_json::json!({
            "a": number("Infinity"), "b": [number("-Infinity"), 1], "c\"": "NaN \" Infinity"
        });
        assert_eq!(value, expected);
        assert_eq!((shown(&value["a"]), shown(&value["c\""])), ("Infinity".into(), r#""NaN \" Infinity""#.into()));
        assert!(parse(b"{").is_err() && parse(b"\xff").is_err());
    }
}
