//! Tools that a model is shown.

use serde::Deserialize;
use serde_json::{Value, json};

/// Function that a model may call, in the one form in which models are shown it. Other fields, such as `strict`, are
/// not shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ToolDefinition {
    /// Name of the function.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments; `None` for any object.
    pub parameters: Option<Value>,
}

impl ToolDefinition {
    /// Reads a tool as clients write it, `{"type": "function", "function": {…}}`, or the function alone.
    pub fn read(written: Value) -> Result<Self, String> {
        let Value::Object(mut tool) = written else { return Err("is not an object".into()) };
        match tool.get("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "function" => {}
            Some(other) => return Err(format!("has the type {other}: only \"function\" is supported")),
        }
        let function = match tool.remove("function") {
            None | Some(Value::Null) => Value::Object(tool),
            Some(function) => function,
        };
        serde_json::from_value(function).map_err(|error| format!("is no function with a name ({error})"))
    }

    /// Returns the tool as templates read it.
    pub(super) fn for_template(&self) -> Value {
        json!({"type": "function", "function": self.described()})
    }

    /// Describes the function alone.
    pub(super) fn described(&self) -> Value {
        let mut described = json!({"name": self.name});
        if let Some(description) = &self.description {
            described["description"] = description.as_str().into();
        }
        let any = || json!({"type": "object", "properties": {}});
        described["parameters"] = self.parameters.clone().unwrap_or_else(any);
        described
    }
}
