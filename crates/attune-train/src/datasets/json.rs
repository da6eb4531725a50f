//! Parses a line as a JSON object and checks what the parser lets pass: keys that are given twice. A fault says what is
//! wrong and what to write instead. Called by [`super::parse`], and by `api` for uploads.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::words::{kind, shorten};

/// Parses a line as a JSON object.
pub fn object(line: &str) -> Result<Map<String, Value>, String> {
    check(line)?;
    serde_json::from_str(line).map_err(|error| format!("is not JSON ({error}): write one whole object on each line"))
}

/// Checks that a line is a JSON object that [`object`] reads, without keeping it.
pub fn check(line: &str) -> Result<(), String> {
    match serde_json::from_str::<Whole>(line) {
        Ok(_) if line.starts_with('{') => Ok(()),
        Ok(_) => Err(other_value(line)),
        Err(error) => Err(fault(line, &error)),
    }
}

/// A value that was read as a whole: its texts are texts, and no object has a key twice.
struct Whole;

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Whole)
    }
}

impl<'de> Visitor<'de> for Whole {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value::<Self>()?;
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("has the key `{}` twice: keep one of them", shorten(&key))));
            }
            keys.insert(key);
        }
        Ok(self)
    }
}

/// Words the fault of JSON that is no object.
fn other_value(line: &str) -> String {
    let value = serde_json::from_str(line).unwrap_or(Value::Null);
    let messages = value.as_array().is_some_and(|values| values.first().is_some_and(|first| first["role"].is_string()));
    let kind = kind(&value);
    let remedy = match &value {
        _ if messages => "write it as `{\"messages\": […]}`",
        Value::String(text) if text.trim_start().starts_with('{') => "write the object itself, without quotation marks",
        _ => "write one JSON object on each line",
    };
    format!("is {kind}, not a JSON object: {remedy}")
}

/// Words the fault of a line that is no JSON.
fn fault(line: &str, error: &serde_json::Error) -> String {
    if line.strip_suffix(',').is_some_and(|whole| serde_json::from_str::<Whole>(whole).is_ok()) {
        return "ends with a comma: remove the comma at the end".into();
    }
    if !line.starts_with('{') {
        return no_object(line).into();
    }
    let why = without_position(error);
    // The parser counts bytes; the column is that of the byte that it stopped at.
    let at = error.column().saturating_sub(1);
    let (before, rest) = line.split_at_checked(at).unwrap_or((line, ""));
    let column = before.chars().count() + 1;
    if error.is_data() {
        return why;
    }
    match reason(&why, rest, error.is_eof()) {
        Some(reason) => format!("column {column}: {reason}"),
        None => format!("column {column}: is not JSON ({why}): write one whole object on each line"),
    }
}

/// Words why the parser stopped before `rest`; `None` if its own words have to do.
fn reason(why: &str, rest: &str, ended: bool) -> Option<&'static str> {
    const QUOTES: [char; 9] = ['“', '”', '„', '‟', '«', '»', '‘', '’', '‚'];
    let begins = |words: &[&str]| words.iter().any(|word| rest.starts_with(word));
    let reason = if ended {
        "ends before its object does: write one whole object on each line, and a line break inside a text as \\n"
    } else if begins(&["'"]) {
        "is written with single quotes, as Python shows a dict: use double quotes, as `json.dumps` does"
    } else if begins(&["True", "False", "None"]) {
        "is written as Python shows a dict: write true, false and null, as `json.dumps` does"
    } else if begins(&["NaN", "Infinity"]) {
        "has a number that JSON does not have (NaN, Infinity): write null or leave it out"
    } else if rest.starts_with(QUOTES) {
        "has typographic quotation marks: use straight double quotes (\")"
    } else if why == "key must be a string" {
        "has a key without double quotes: write \"key\": …"
    } else if why == "trailing comma" {
        "has a comma before a closing bracket: remove that comma"
    } else if why == "trailing characters" && rest.trim_start_matches([',', ' ']).starts_with('{') {
        "has more than one object: write each on a line of its own"
    } else if why == "trailing characters" {
        "goes on behind its object: write one object on each line and nothing else"
    } else if why.contains("control character") {
        "has a tab, a line break or the like inside a text: write it as \\t or \\n"
    } else if why.contains("hex escape") {
        "has half of a character (a lone surrogate, such as \\ud83d): write the whole character"
    } else if why.contains("invalid escape") {
        "has a backslash that begins no escape of JSON: write it twice (\\\\)"
    } else if why.contains("recursion limit") {
        "has too many objects or arrays inside each other: write it flatter"
    } else {
        return None;
    };
    Some(reason)
}

/// Words the fault of a line that is no JSON and does not begin an object.
fn no_object(line: &str) -> &'static str {
    match line.chars().next() {
        Some('[') => {
            "is a part of a JSON array: write each of its elements on a line of its own, without brackets around them"
        }
        Some('}' | ']' | '"') => "is a part of an object: write one whole object on each line",
        Some('#' | '/') => "is a comment, which JSON does not have: remove the line",
        _ => "is text and not JSON: write one object on each line, such as {\"prompt\": \"…\", \"completion\": \"…\"}",
    }
}

/// Returns the message without serde's ` at line … column …`: whoever words the fault knows a better place.
pub fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&position).map(str::to_owned).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_with_the_order_of_its_keys() {
        let line = r#"{"b":[{"x":1},{"x":-2.5e3}],"a":"\ud83d\ude00\u0000","c":{"x":null,"y":true}}"#;
        let read = object(line).expect("an object");
        assert_eq!(read.keys().collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(read["a"], "\u{1f600}\0");
        assert_eq!(read["b"][1]["x"].as_f64(), Some(-2500.0));
    }

    #[test]
    fn every_fault_says_what_to_write_instead() {
        for (line, expected) in [
            (r#"{"a":"b"},"#, "ends with a comma: remove the comma at the end"),
            ("{'a': 'b'}", "column 2: is written with single quotes"),
            (r#"{"a": 'b'}"#, "use double quotes"),
            (r#"{"ä": None}"#, "column 7: is written as Python"),
            (r#"{"a": True}"#, "true, false and null"),
            (r#"{"a": NaN}"#, "NaN"),
            ("{“a”: 1}", "straight double quotes"),
            ("{a: 1}", "has a key without double quotes"),
            (r#"{"a": 1,}"#, "remove that comma"),
            (r#"{"a":1}{"a":2}"#, "more than one object"),
            (r#"{"a":1}, {"a":2}"#, "more than one object"),
            (r#"{"a":1} x"#, "goes on behind its object"),
            (r#"{"a":"#, "ends before its object does"),
            (r#"{"a":"b"#, "ends before its object does"),
            ("{", "write one whole object on each line"),
            ("{\"a\":\"b\tc\"}", "write it as \\t or \\n"),
            (r#"{"a":"\ud83d"}"#, "half of a character"),
            (r#"{"a":"\ude00 and"}"#, "half of a character"),
            (r#"{"a":["\ud83d\ud83d"]}"#, "half of a character"),
            (r#"{"a\ud83d":1}"#, "half of a character"),
            (r#"{"a":"C:\Users"}"#, "write it twice"),
            (r#"{"a":1 "b":2}"#, "is not JSON ("),
            (r#"{"a":1,"b":2,"a":3}"#, "has the key `a` twice: keep one of them"),
            (r#"{"m":[{"role":"user","role":"user"}]}"#, "has the key `role` twice"),
            ("[1", "is a part of a JSON array"),
            ("}", "is a part of an object"),
            (r#""a": 1,"#, "is a part of an object"),
            ("// notes", "is a comment"),
            ("Dear all", "is text and not JSON"),
            ("[1, 2]", "is an array, not a JSON object"),
            (r#"[{"role":"user","content":"a"}]"#, r#"write it as `{"messages": […]}`"#),
            (r#""{\"a\":1}""#, "is a string, not a JSON object: write the object itself"),
            ("17", "is a number, not a JSON object"),
        ] {
            let fault = check(line).expect_err(line);
            assert!(fault.contains(expected), "{line}: {fault}");
            assert_eq!(object(line).expect_err(line), fault);
        }
    }
}
