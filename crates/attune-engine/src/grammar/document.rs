//! Writes the rules of the JSON documents that follow a schema, in llguidance's Lark syntax. llguidance's own compiler
//! of schemas writes only texts and multiples: it takes all numbers as 64-bit floats and leaves their digits unbounded.
//! Used by `Grammar::compile`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::budget;
use super::exclusion::types;
use super::number::{self, Form};
use super::references::Schemas;
use super::text;

type Result<T> = std::result::Result<T, String>;

/// Largest size of all schemas that a schema unfolds to, as bytes of text.
const MAX_BYTES: usize = 32 << 20;
/// Largest size of the rules of a schema, in bytes.
const MAX_RULES: usize = 2 << 20;
/// Largest size of a constant text, in bytes.
const MAX_CONSTANT: usize = 8 << 10;
/// Largest number of remainders of all divisors of a schema: the automaton of a divisor has a state for each, and a token
/// may look at all of them, which takes some 28 of the 200,000 steps that it has for each.
const MAX_REMAINDERS: i128 = 6_000;
/// One blank at most after a comma or colon and no others: a model must not run on in blanks.
const SEPARATORS: &str = "COMMA: /, ?/\nCOLON: /: ?/\nBOOLEAN: /true|false/\n";

/// Rules of the documents that follow a schema.
#[derive(Debug)]
pub(super) struct DocumentRules {
    /// Rules in Lark syntax, which start at `start`.
    pub lark: String,
    /// JSON schemas by the names that the rules refer to.
    pub leaves: Vec<(String, Value)>,
    /// Keywords that were dropped.
    pub dropped: Vec<String>,
}

/// Writes the rules of `schema`. `name` is their own among all grammars of a request. Keywords that cannot be followed
/// are refused, or dropped if `loosen`.
pub(super) fn rules(name: &str, schema: &Value, loosen: bool) -> Result<DocumentRules> {
    let mut writer = Writer {
        schemas: Schemas::new(schema, loosen),
        name,
        rules: SEPARATORS.into(),
        known: HashMap::new(),
        leaves: Vec::new(),
        remainders: 0,
        bytes: 0,
        memo: HashMap::new(),
    };
    let start = writer.value(schema)?.ok_or("no document satisfies it: unsatisfiable")?;
    if writer.rules.len() > MAX_RULES {
        return Err("it is too complex: make its alternatives fewer".into());
    }
    let lark = format!("start: {start}\n{}", writer.rules);
    Ok(DocumentRules { lark, leaves: writer.leaves, dropped: writer.schemas.reader.notes })
}

/// What is known of a schema.
#[derive(Debug, Clone)]
enum Memo {
    /// It is being written; others may refer to its rule already.
    Open { rule: String, used: bool },
    /// Its symbol; `None` if no document follows it.
    Written(Option<String>),
}

#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub schemas: Schemas<'a>,
    name: &'a str,
    rules: String,
    /// Names of rules and terminals by their right sides.
    known: HashMap<String, String>,
    leaves: Vec<(String, Value)>,
    /// Remainders of the divisors so far.
    remainders: i128,
    /// Size of all schemas so far.
    bytes: usize,
    /// Schemas by their text.
    memo: HashMap<String, Memo>,
}

impl Writer<'_> {
    /// Writes the documents of `schema`, and returns their symbol; `None` if there are none.
    pub(super) fn value(&mut self, schema: &Value) -> Result<Option<String>> {
        let key = schema.to_string();
        match self.memo.get_mut(&key) {
            Some(Memo::Open { rule, used }) => {
                *used = true;
                return Ok(Some(rule.clone()));
            }
            Some(Memo::Written(symbol)) => return Ok(symbol.clone()),
            None => {}
        }
        budget::check()?;
        self.bytes += key.len();
        if self.bytes > MAX_BYTES || self.rules.len() > MAX_RULES {
            return Err("it is too complex: make its alternatives fewer".into());
        }
        let rule = format!("schema{}", self.memo.len());
        self.memo.insert(key.clone(), Memo::Open { rule: rule.clone(), used: false });
        let body = self.body(schema)?;
        let used = matches!(self.memo.get(&key), Some(Memo::Open { used: true, .. }));
        let symbol = match body {
            Some(body) if used || body.contains([' ', '"']) => {
                self.rules.extend([rule.as_str(), ": ", &body, "\n"]);
                Some(rule)
            }
            // A rule that only leads to itself has no document.
            None if used => {
                self.rules.extend([rule.as_str(), ": ", &rule, "\n"]);
                None
            }
            symbol => symbol,
        };
        self.memo.insert(key, Memo::Written(symbol.clone()));
        Ok(symbol)
    }

    fn body(&mut self, schema: &Value) -> Result<Option<String>> {
        if let Value::Object(object) = schema {
            let own = self.schemas.reader.read(object)?;
            // A reference alone may lead back here; its schema has a rule of its own.
            if let (1, Some(reference)) = (own.len(), own.get("$ref").and_then(Value::as_str)) {
                return match self.schemas.resolve(reference) {
                    Ok(target) => self.value(target),
                    Err(reason) => {
                        self.schemas.reader.give_up("$ref", &format!("cannot be followed: {reason}"))?;
                        self.value(&Value::Bool(true))
                    }
                };
            }
        }
        let Some(map) = self.schemas.flat(schema)? else { return Ok(None) };
        if let Some(alternatives) = Schemas::alternatives(&map) {
            return self.any_of(&alternatives);
        }
        if let Some(Value::Array(values)) = map.get("enum") {
            return self.values(&map, values);
        }
        let mut parts = Vec::new();
        for kind in types(&map) {
            parts.extend(self.of_type(kind, &map)?);
        }
        Ok(choice(&parts))
    }

    fn any_of(&mut self, alternatives: &[Value]) -> Result<Option<String>> {
        let mut parts = Vec::new();
        for alternative in alternatives {
            if let Some(symbol) = self.value(alternative)?
                && !parts.contains(&symbol)
            {
                parts.push(symbol);
            }
        }
        Ok(choice(&parts))
    }

    fn of_type(&mut self, kind: &str, map: &Map<String, Value>) -> Result<Option<String>> {
        match kind {
            "null" => Ok(Some("\"null\"".into())),
            "boolean" => Ok(Some("BOOLEAN".into())),
            "integer" | "number" => self.number(map, kind == "integer"),
            "string" => {
                text::check_work(map)?;
                Ok((!text::is_never(map)).then(|| self.leaf(text::leaf(map))))
            }
            "array" => self.array(map),
            _ => self.object(map),
        }
    }

    fn number(&mut self, map: &Map<String, Value>, integer: bool) -> Result<Option<String>> {
        Ok(match number::form(map, integer)? {
            None => None,
            Some(Form::Pattern(pattern)) => Some(self.define("NUMBER", &format!("/{pattern}/"))),
            Some(Form::Multiples { schema, remainders }) => {
                let leaves = self.leaves.len();
                let leaf = self.leaf(schema);
                if self.leaves.len() > leaves {
                    self.remainders += remainders;
                }
                if self.remainders > MAX_REMAINDERS {
                    return Err(format!("'multipleOf' is too fine: all together may have {MAX_REMAINDERS} remainders"));
                }
                Some(leaf)
            }
        })
    }

    /// Writes those of the `values` that follow the rest of the schema.
    fn values(&mut self, map: &Map<String, Value>, values: &[Value]) -> Result<Option<String>> {
        let (mut parts, mut texts) = (Vec::new(), Vec::new());
        let mut others = map.clone();
        others.shift_remove("enum");
        for value in values {
            if !self.schemas.accepts(&others, value)? {
                continue;
            }
            if let Some(text) = value.as_str() {
                // Each byte of an answer costs a copy of what is left of it.
                if text.len() > MAX_CONSTANT {
                    let bytes = text.len();
                    return Err(format!("a constant text has {bytes} bytes; at most {MAX_CONSTANT} are allowed"));
                }
                texts.push(value.clone());
            } else {
                parts.push(constant(value)?);
            }
        }
        if !texts.is_empty() {
            parts.push(self.leaf(json!({"enum": texts})));
        }
        Ok(choice(&parts))
    }

    /// Returns the name of a rule or, if `kind` is in capitals, a terminal with this right side.
    pub(super) fn define(&mut self, kind: &str, body: &str) -> String {
        let next = format!("{kind}{}", self.known.len());
        let name = self.known.entry(body.to_owned()).or_insert_with(|| next.clone()).clone();
        if name == next {
            self.rules.extend([name.as_str(), ": ", body, "\n"]);
        }
        name
    }

    /// Returns the symbol of a schema that llguidance compiles.
    pub(super) fn leaf(&mut self, schema: Value) -> String {
        let known = self.leaves.iter().position(|(_, known)| *known == schema);
        let index = known.unwrap_or_else(|| {
            self.leaves.push((format!("{}-{}", self.name, self.leaves.len()), schema));
            self.leaves.len() - 1
        });
        format!("@{}-{index}", self.name)
    }
}

/// Writes the one document `value`.
fn constant(value: &Value) -> Result<String> {
    match value {
        Value::Number(number) => Ok(literal(&number::constant(number)?)),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(constant).collect::<Result<_>>()?;
            Ok(format!("\"[\" {} \"]\"", items.join(" COMMA ")))
        }
        Value::Object(object) => {
            let mut members = Vec::new();
            for (name, value) in object {
                members.push(format!("{} COLON {}", key(name), constant(value)?));
            }
            Ok(format!("\"{{\" {} \"}}\"", members.join(" COMMA ")))
        }
        _ => Ok(literal(&value.to_string())),
    }
}

/// Writes a choice between symbols; `None` if there are none.
pub(super) fn choice(parts: &[String]) -> Option<String> {
    (!parts.is_empty()).then(|| parts.join(" | "))
}

/// Writes `text` as a literal of the grammar, whose strings have JSON's syntax.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Writes the name of a property as a literal of the grammar.
pub(super) fn key(name: &str) -> String {
    literal(&Value::from(name).to_string())
}
