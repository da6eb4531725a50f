//! Jinja2's filters on one value: numbers, texts and defaults, with Python's conversions. Those on lists and
//! dictionaries are in `sequences.rs`, `tojson` is in `json.rs`.

#![allow(clippy::needless_pass_by_value, reason = "the engine hands a filter its arguments by value")]

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::arguments::{bind, refuse};
use super::{data, methods, python};

/// Registers the filters of this file.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("int", integer);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("string", data::to_text);
    environment.add_filter("safe", data::to_text);
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, |value: &Value| escape(&data::to_text(value)));
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("upper", |value: &Value| data::to_text(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| data::to_text(value).to_lowercase());
    environment.add_filter("capitalize", |value: &Value| methods::capitalize(&data::to_text(value)));
    environment.add_filter("title", |value: &Value| title(&data::to_text(value)));
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
}

/// Converts to an integer as Jinja2's `int` does: `default` (0) where that cannot be done, with the whole part of a
/// text that is a fraction.
fn integer(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], &arguments)?;
    let default = default.unwrap_or_else(|| Value::from(0));
    let base = match base {
        Some(base) => u32::try_from(base).map_err(|_| refuse("int: base must be a number from 0 to 36"))?,
        None => 10,
    };
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => match data::as_float(value) {
            Some(number) if number.is_infinite() => Err(refuse("int: infinity is no integer")),
            Some(number) if !number.is_nan() => whole(number),
            _ => Ok(default),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            match (python::read_integer(text, base), python::read_float(text)) {
                (Some(integer), _) => Ok(shortest(integer)),
                (None, Some(number)) if number.is_finite() => whole(number),
                _ => Ok(default),
            }
        }
        _ => Ok(default),
    }
}

/// Returns the whole part of a finite `number`.
fn whole(number: f64) -> Result<Value, Error> {
    if number.abs() >= 1e38 {
        return Err(refuse("int: the number has more than 38 digits"));
    }
    Ok(shortest(number as i128))
}

fn shortest(integer: i128) -> Value {
    i64::try_from(integer).map_or_else(|_| Value::from(integer), Value::from)
}

/// Converts to a float as Jinja2's `float` does: `default` (0.0) where that cannot be done.
fn float(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], &arguments)?;
    let number = match value.kind() {
        ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => i128::try_from(value.clone())
            .ok()
            .filter(|_| value.is_integer())
            .map(|integer| integer as f64)
            .or_else(|| f64::try_from(value.clone()).ok()),
        ValueKind::String => python::read_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    Ok(number.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
}

/// Rounds a float to `precision` decimals: to the nearest, of two to the even one, or up (`ceil`) or down (`floor`).
fn round(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], &arguments)?;
    let precision = match precision {
        Some(precision) => i32::try_from(precision)?,
        None => 0,
    };
    let method = method.map_or_else(|| "common".to_owned(), |method| data::to_text(&method));
    let number = f64::try_from(value.clone()).map_err(|_| refuse("round: the value is no number"))?;
    let power = 10_f64.powi(precision);
    match method.as_str() {
        "common" if data::as_float(value).is_none() && precision >= 0 => Ok(value.clone()),
        "common" => {
            let decimals = usize::try_from(precision).map_err(|_| refuse("round: precision must be at least 0"))?;
            let rounded = format!("{number:.decimals$}").parse().unwrap_or(number);
            Ok(Value::from(rounded))
        }
        "ceil" => Ok(Value::from((number * power).ceil() / power)),
        "floor" => Ok(Value::from((number * power).floor() / power)),
        _ => Err(refuse("round: method must be common, ceil or floor")),
    }
}

/// Escapes for HTML, as the filters `e` and `escape` do.
fn escape(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '\'' => output.push_str("&#39;"),
            '"' => output.push_str("&#34;"),
            _ => output.push(character),
        }
    }
    output
}

fn default(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [default_value, boolean] = bind("default", ["default_value", "boolean"], &arguments)?;
    let also_false = boolean.is_some_and(|boolean| boolean.is_true());
    if value.is_undefined() || (also_false && !value.is_true()) {
        return Ok(default_value.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

/// Begins each word with a capital letter; words end at blanks, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut begins = true;
    for character in text.chars() {
        if python::is_blank(character) || "-({[<".contains(character) {
            output.push(character);
            begins = true;
        } else if begins {
            output.extend(character.to_uppercase());
            begins = false;
        } else {
            output.extend(character.to_lowercase());
        }
    }
    output
}

fn trim(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let [chars] = bind("trim", ["chars"], &arguments)?;
    let text = data::to_text(value);
    Ok(methods::strip(&text, chars.as_ref(), true, true).to_owned())
}

fn replace(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let [old, new, count] = bind("replace", ["old", "new", "count"], &arguments)?;
    let (Some(old), Some(new)) = (old, new) else { return Err(refuse("replace needs `old` and `new`")) };
    let count = count.filter(|count| !count.is_none()).map(i64::try_from).transpose()?;
    Ok(methods::replace(&data::to_text(value), &data::to_text(&old), &data::to_text(&new), count))
}

fn indent(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], &arguments)?;
    let is_true = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_true(first), is_true(blank));
    let indention = match &width {
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(width.clone())?).unwrap_or(0)),
        },
        None => " ".repeat(4),
    };
    let text = data::to_text(value) + "\n";
    let mut output = String::with_capacity(text.len());
    for (index, line) in python::lines(&text, false).into_iter().enumerate() {
        if index > 0 {
            output.push('\n');
        }
        let indented = if index == 0 { first } else { blank || !line.is_empty() };
        if indented {
            output.push_str(&indention);
        }
        output.push_str(line);
    }
    Ok(output)
}
