//! Texts with places for values: `{{item.question}}`, `{{sample.output_text}}`.
//!
//! A template is checked when it is read: a place that names nothing known is refused. Filling it in fails where the item
//! has no such value, or where the answer is not the JSON that the template asks for. Texts stand in the result as they
//! are, other values as compact JSON.

use serde_json::Value;

/// Longest path within a value.
const MAX_STEPS: usize = 32;
/// Longest result in bytes.
const MAX_RESULT: usize = 4 << 20;

/// A text with places for values.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Place(Place),
}

/// A value that a template, or a field beside it, asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// As it was written, for messages.
    written: String,
    root: Root,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Item,
    OutputText,
    OutputJson,
    OutputTools,
    Choices,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Why a template, or a place, is refused; for the one who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// Why a template cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfilled {
    /// The item or the sample has no such value.
    #[error("'{0}' has no value.")]
    NoValue(String),
    /// The sample's text is not JSON.
    #[error("'{0}' needs an answer that is JSON.")]
    NotJson(String),
    /// The texts together are too long.
    #[error("The text is too long.")]
    TooLong,
}

/// An answer of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Its text; `None` if there is no answer.
    pub text: Option<String>,
    /// The calls of tools; `None` if it was given without any.
    pub tools: Option<Value>,
    /// The choices as the API gives them.
    pub choices: Option<Value>,
}

impl Template {
    /// Reads a text with places.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (place, after) = after.split_once("}}").ok_or_else(|| {
                Fault("A '{{' of the template has no '}}'. Places for values look like {{item.question}}.".into())
            })?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Place(Place::parse(place.trim())?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Returns the text with the values of `item` and `sample` in their places.
    pub fn fill(&self, item: &Value, sample: &Sample) -> Result<String, Unfilled> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Place(place) => match place.value(item, sample)? {
                    Value::String(value) => text.push_str(&value),
                    value => text.push_str(&value.to_string()),
                },
            }
            if text.len() > MAX_RESULT {
                return Err(Unfilled::TooLong);
            }
        }
        Ok(text)
    }

    /// True if it has a place for a value of the sample.
    pub fn uses_sample(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Place(place) if place.uses_sample()))
    }
}

impl Place {
    /// Reads a place without its braces, such as `item.question` or `sample.output_tools[0].function.name`.
    pub fn parse(written: &str) -> Result<Self, Fault> {
        let unknown = || {
            Fault(format!(
                "'{written}' names no value: use item.NAME, sample.output_text, sample.output_json.NAME, \
                 sample.output_tools or sample.choices."
            ))
        };
        let mut steps = steps(written).ok_or_else(unknown)?.into_iter();
        let mut key = || match steps.next() {
            Some(Step::Key(key)) => key,
            _ => String::new(),
        };
        let root = match key().as_str() {
            "item" => Root::Item,
            "sample" => match key().as_str() {
                "output_text" => Root::OutputText,
                "output_json" => Root::OutputJson,
                "output_tools" => Root::OutputTools,
                "choices" => Root::Choices,
                "output_audio" => {
                    return Err(Fault("'sample.output_audio' is not supported: models here write text.".into()));
                }
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        };
        let steps: Vec<Step> = steps.collect();
        if root == Root::OutputText && !steps.is_empty() {
            return Err(Fault(format!("'{written}' names no value: sample.output_text is a text.")));
        }
        if steps.len() > MAX_STEPS {
            return Err(Fault(format!("A place has {MAX_STEPS} steps at the most.")));
        }
        Ok(Self { written: written.to_owned(), root, steps })
    }

    /// True if it is a value of the sample.
    pub fn uses_sample(&self) -> bool {
        self.root != Root::Item
    }

    /// Returns the value.
    pub fn value(&self, item: &Value, sample: &Sample) -> Result<Value, Unfilled> {
        let parsed;
        let root = match self.root {
            Root::Item => Some(item),
            Root::OutputText => {
                let text = sample.text.as_deref().ok_or_else(|| Unfilled::NoValue(self.written.clone()))?;
                return Ok(text.into());
            }
            Root::OutputTools => sample.tools.as_ref(),
            Root::Choices => sample.choices.as_ref(),
            Root::OutputJson => {
                let not_json = |_| Unfilled::NotJson(self.written.clone());
                let text = sample.text.as_deref().ok_or_else(|| Unfilled::NoValue(self.written.clone()))?;
                parsed = serde_json::from_str::<Value>(text).map_err(not_json)?;
                Some(&parsed)
            }
        };
        let mut value = root;
        for step in &self.steps {
            value = match step {
                Step::Key(key) => value.and_then(|value| value.get(key)),
                Step::Index(index) => value.and_then(|value| value.get(index)),
            };
        }
        value.cloned().ok_or_else(|| Unfilled::NoValue(self.written.clone()))
    }
}

/// Splits `a.b[0].c` into its steps; `None` if it has another form.
fn steps(written: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in written.split('.') {
        let (name, mut indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        let name = name.trim();
        if name.is_empty() || name.contains(['{', '}', ']', '"', '\'']) {
            return None;
        }
        steps.push(Step::Key(name.to_owned()));
        while !indices.is_empty() {
            let (index, rest) = indices.strip_prefix('[')?.split_once(']')?;
            steps.push(Step::Index(index.parse().ok()?));
            indices = rest;
        }
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str) -> Result<String, Unfilled> {
        let item = json!({"question": "why?", "parts": [1, {"deep": [true, null]}], "a b": "spaced"});
        let sample = Sample {
            text: Some(r#"{"answer": {"value": 4.50}}"#.into()),
            tools: Some(json!([{"function": {"name": "look_up", "arguments": "{}"}}])),
            choices: None,
        };
        Template::parse(template).expect("a template").fill(&item, &sample)
    }

    #[test]
    fn values_stand_in_their_places() {
        for (template, expected) in [
            ("no place", "no place"),
            ("", ""),
            ("{{item.question}}", "why?"),
            ("ask: {{ item.question }}!", "ask: why?!"),
            ("{{item.parts[0]}}{{item.parts[1].deep}}", "1[true,null]"),
            ("{{item.parts[1].deep[1]}}", "null"),
            ("{{item.a b}}", "spaced"),
            ("{{item.parts}}", r#"[1,{"deep":[true,null]}]"#),
            ("{{sample.output_text}}", r#"{"answer": {"value": 4.50}}"#),
            ("{{sample.output_json.answer.value}}", "4.5"),
            ("{{sample.output_tools[0].function.name}}", "look_up"),
            ("} } { {{item.question}} }}", "} } { why? }}"),
        ] {
            assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn values_are_not_read_as_templates_again() {
        let item = json!({"question": "{{item.secret}}", "secret": "x"});
        let filled = Template::parse("{{item.question}}").expect("a template").fill(&item, &Sample::default());
        assert_eq!(filled.as_deref(), Ok("{{item.secret}}"));
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_is_not_json() {
        assert_eq!(fill("{{item.nothing}}"), Err(Unfilled::NoValue("item.nothing".into())));
        assert_eq!(fill("{{item.question.deeper}}"), Err(Unfilled::NoValue("item.question.deeper".into())));
        assert_eq!(fill("{{sample.choices}}"), Err(Unfilled::NoValue("sample.choices".into())));
        let plain = Sample { text: Some("plain".into()), ..Sample::default() };
        let template = Template::parse("{{sample.output_json.x}}").expect("a template");
        assert_eq!(template.fill(&json!({}), &plain), Err(Unfilled::NotJson("sample.output_json.x".into())));
    }

    #[test]
    fn places_that_name_nothing_are_refused() {
        for template in [
            "{{question}}",
            "{{items.question}}",
            "{{sample}}",
            "{{sample.text}}",
            "{{sample.output_text.x}}",
            "{{sample.output_audio}}",
            "{{}}",
            "{{item.}}",
            "{{item..x}}",
            "{{item[x]}}",
            "{{item.x[}}",
            "{{item.x",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
