//! Names of modules in settings: lists of what is not quantized, and targets of schemes. Used by the formats.

use regex::Regex;
use serde_json::Value;

/// Modules that are left as they are.
#[derive(Debug, Default)]
pub(super) struct Patterns(Vec<Regex>);

/// A module or several that a scheme applies to.
#[derive(Debug)]
pub(super) enum Target {
    /// One module.
    Name(String),
    /// Modules whose names begin like this.
    Expression(String, Regex),
    /// A class of `PyTorch`; of those only `Linear` and `Embedding` are told apart.
    Class(String),
}

/// Compiles a Python expression that must match the beginning of a name.
pub(super) fn expression(pattern: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})")).map_err(|_| {
        format!("the expression `{pattern}` in `quantization_config` cannot be read: look-around is not supported")
    })
}

impl Patterns {
    /// Reads a list of names as transformers does: a name, the beginning of one up to a dot, its end, or an expression
    /// for one of these.
    pub(super) fn of_transformers(list: &Value) -> Result<Self, String> {
        let all = strings(list)?.into_iter().map(|pattern| {
            let end = regex::escape(pattern);
            // What is no expression can still be a name's end.
            let expression = if Regex::new(pattern).is_ok() { pattern } else { end.as_str() };
            Regex::new(&format!(r"^(?:(?:{expression})(?:\.|$)|.*{end}$)")).map_err(|error| error.to_string())
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Reads a list of names with `*` for any text, as `ModelOpt` writes them: whole names or their beginnings.
    pub(super) fn of_wildcards(list: &Value) -> Result<Self, String> {
        let all = strings(list)?.into_iter().map(|pattern| {
            let parts: Vec<String> = pattern.split('*').map(regex::escape).collect();
            Regex::new(&format!(r"^{}(?:\.|$)", parts.join(".*"))).map_err(|error| error.to_string())
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Reads a list of names and of expressions behind `re:`.
    pub(super) fn of_compressed_tensors(list: &Value) -> Result<Self, String> {
        let all = strings(list)?.into_iter().map(|pattern| match pattern.strip_prefix("re:") {
            Some(pattern) => expression(pattern),
            None => Regex::new(&format!("^{}$", regex::escape(pattern))).map_err(|error| error.to_string()),
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Returns true if `module` is one of them.
    pub(super) fn matches(&self, module: &str) -> bool {
        self.0.iter().any(|pattern| pattern.is_match(module))
    }
}

impl Target {
    /// Reads a target of a scheme.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("re:") {
            Some(pattern) => Ok(Self::Expression(text.to_owned(), expression(pattern)?)),
            None if text.contains('.') || text == "lm_head" => Ok(Self::Name(text.to_owned())),
            None => Ok(Self::Class(text.to_owned())),
        }
    }

    /// Returns how closely the target names `module`, closest first; `None` if it does not.
    pub(super) fn rank(&self, module: &str) -> Option<(u8, &str)> {
        let class = if module.ends_with("embed_tokens") { "Embedding" } else { "Linear" };
        match self {
            Self::Name(name) => (name == module).then_some((0, name.as_str())),
            Self::Expression(text, expression) => expression.is_match(module).then_some((1, text.as_str())),
            Self::Class(name) => (name == class).then_some((2, name.as_str())),
        }
    }
}

fn strings(list: &Value) -> Result<Vec<&str>, String> {
    let texts = match list {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) => return Ok(vec![text]),
        Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    texts.ok_or_else(|| "modules in `quantization_config` must be a list of names".into())
}
