//! Jinja2's tests for kinds of values (`is iterable`, `is number`, …) where the engine's own differ from Python.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use super::{data, methods};

/// Registers the tests of this file.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_test("iterable", has_items);
    environment.add_test("sequence", has_items);
    // Python's bool is a kind of int.
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("lower", |value: &Value| methods::is_cased(&data::to_text(value), char::is_uppercase));
    environment.add_test("upper", |value: &Value| methods::is_cased(&data::to_text(value), char::is_lowercase));
}

/// Returns true for texts, lists, dictionaries, and for what is undefined, which counts as empty; `none` has no items.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}
