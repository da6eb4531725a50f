//! Messages and tools as a template sees them, and Python's `str()` and `repr()`. Templates are written for Jinja2,
//! whose output of a list, a number or `None` is Python's.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use serde_json::Value as Json;

/// A dictionary or a list of the engine's own, which prints as Python's wherever it is made a text of.
#[derive(Debug)]
struct Container {
    inner: DynObject,
    tuple: bool,
}

impl Object for Container {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        self.inner.repr()
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.inner.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.inner.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.inner.enumerate()
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.inner.enumerator_len()
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&representation(&Value::from_dyn_object(self.clone())))
    }
}

fn contain(value: Value, tuple: bool) -> Value {
    match value.as_object() {
        Some(inner) => Value::from_object(Container { inner: inner.clone(), tuple }),
        None => value,
    }
}

/// Makes a list.
pub(super) fn list(items: Vec<Value>) -> Value {
    contain(Value::from(items), false)
}

/// Makes a tuple.
pub(super) fn tuple(items: Vec<Value>) -> Value {
    contain(Value::from(items), true)
}

/// Returns true if [`tuple()`] made `value`.
pub(super) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<Container>().is_some_and(|container| container.tuple)
}

/// Converts JSON: an integer stays one, and the keys of a dictionary keep their order.
pub(super) fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => list(items.iter().map(from_json).collect()),
        Json::Object(fields) => {
            contain(fields.iter().map(|(name, value)| (name.as_str(), from_json(value))).collect(), false)
        }
    }
}

/// Returns what Python's `str` makes of `value`.
pub(super) fn to_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        ValueKind::Undefined => String::new(),
        _ => representation(value),
    }
}

/// Returns what Python's `repr` makes of `value`.
pub(super) fn representation(value: &Value) -> String {
    let mut output = String::new();
    write_representation(&mut output, value);
    output
}

fn write_representation(output: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::Undefined => output.push_str("Undefined"),
        ValueKind::Number => match as_float(value) {
            Some(number) => output.push_str(&float_text(number)),
            None => output.push_str(&value.to_string()),
        },
        ValueKind::String => write_quoted(output, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            output.push('{');
            let pairs = value.as_object().and_then(DynObject::try_iter_pairs);
            for (index, (key, item)) in pairs.into_iter().flatten().enumerate() {
                output.push_str(if index == 0 { "" } else { ", " });
                write_representation(output, &key);
                output.push_str(": ");
                write_representation(output, &item);
            }
            output.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = is_tuple(value);
            output.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                output.push_str(if count == 0 { "" } else { ", " });
                write_representation(output, &item);
                count += 1;
            }
            output.push_str(if tuple && count == 1 { "," } else { "" });
            output.push(if tuple { ')' } else { ']' });
        }
        _ => output.push_str(&value.to_string()),
    }
}

/// Returns the number of a value that is a float; `None` for integers and everything else.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if value.is_integer() || value.kind() != ValueKind::Number { None } else { f64::try_from(value.clone()).ok() }
}

/// Writes `number` with the fewest digits that read back as the same number, with an exponent below 1e-4 and from
/// 1e16 on.
pub(super) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        format!("{number:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// Writes `text` in quotation marks: single ones, or double ones if it holds single ones only.
fn write_quoted(output: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    output.push(quote);
    for character in text.chars() {
        match character {
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            '\\' => output.push_str("\\\\"),
            _ if character == quote => output.extend(['\\', quote]),
            _ if is_printable(character) => output.push(character),
            _ => {
                let code = character as u32;
                let _ = match code {
                    0..=0xff => write!(output, "\\x{code:02x}"),
                    0x100..=0xffff => write!(output, "\\u{code:04x}"),
                    _ => write!(output, "\\U{code:08x}"),
                };
            }
        }
    }
    output.push(quote);
}

/// Returns true if neither Rust nor Python, which draw the line alike, write `character` as an escape.
fn is_printable(character: char) -> bool {
    // A mark that combines is escaped at the beginning of a text only.
    character == '\'' || character == '"' || format!("a{character}").escape_debug().count() == 2
}
