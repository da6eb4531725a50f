//! The filter `tojson`, as transformers defines it for chat templates: Python's `json.dumps`.

use std::fmt::Write as _;

use minijinja::value::{DynObject, Rest, ValueKind};
use minijinja::{Error, Value};

use super::arguments::{bind, refuse};
use super::data;

/// Serializes like `json.dumps(value, ensure_ascii=…, indent=…, separators=…, sort_keys=…)`, the order in which the
/// arguments may stand without names. Unlike Jinja2's own filter it escapes nothing for HTML.
#[allow(clippy::needless_pass_by_value, reason = "the engine hands a filter its arguments by value")]
pub(super) fn to_json(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = bind("tojson", names, &arguments)?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(&indent)).transpose()?;
    let (between, after_key) = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => {
            let texts: Vec<String> = separators.try_iter()?.map(|text| data::to_text(&text)).collect();
            let [between, after_key] = <[String; 2]>::try_from(texts)
                .map_err(|_| refuse("tojson: separators must be two texts, for example (',', ':')"))?;
            (between, after_key)
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let is_true = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (ascii, sorted) = (is_true(ascii), is_true(sorted));
    let mut writer = Writer { output: String::new(), ascii, indent, between, after_key, sorted };
    writer.write(value, 1)?;
    Ok(writer.output)
}

fn indentation(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let width = i64::try_from(indent.clone()).map_err(|_| refuse("tojson: indent must be a number or a text"))?;
    Ok(" ".repeat(usize::try_from(width).unwrap_or(0)))
}

struct Writer {
    output: String,
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

impl Writer {
    /// Writes `value`, whose items stand `depth` levels deep.
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self.output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.output.push_str(&number_text(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let pairs = value.as_object().and_then(DynObject::try_iter_pairs);
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sorted {
                    pairs.sort_by(|one, other| one.0.cmp(&other.0));
                }
                self.write_items('{', pairs, '}', depth, |writer, (key, item)| {
                    writer.write_text(&key_text(&key)?);
                    let after_key = writer.after_key.clone();
                    writer.output.push_str(&after_key);
                    writer.write(&item, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items('[', items, ']', depth, |writer, item| writer.write(&item, depth + 1))?;
            }
            kind => return Err(refuse(format!("tojson: a value that is {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn write_items<T>(
        &mut self,
        open: char,
        items: Vec<T>,
        close: char,
        depth: usize,
        write: impl Fn(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.output.push(open);
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.output.push_str(&self.between);
            }
            self.break_line(depth);
            write(self, item)?;
        }
        if !empty {
            self.break_line(depth - 1);
        }
        self.output.push(close);
        Ok(())
    }

    fn break_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.output.push('\n');
            self.output.push_str(&indent.repeat(depth));
        }
    }

    fn write_text(&mut self, text: &str) {
        self.output.push('"');
        for character in text.chars() {
            match character {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                _ if character < ' ' || (self.ascii && !(' '..='~').contains(&character)) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.output, "\\u{unit:04x}");
                    }
                }
                _ => self.output.push(character),
            }
        }
        self.output.push('"');
    }
}

fn number_text(value: &Value) -> String {
    match data::as_float(value) {
        Some(number) if number.is_nan() => "NaN".into(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Some(number) => data::float_text(number),
        None => value.to_string(),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(data::to_text(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Number => Ok(number_text(key)),
        kind => Err(refuse(format!("tojson: a key that is {kind} cannot be written as JSON"))),
    }
}
