//! Custom tools, which take a text, as functions of one text: so a model calls them in its own syntax. Used by `tools`.

use serde_json::{Value, json};

use super::request::{CustomDefinition, FunctionDefinition};
use crate::api::http::error::{Problem, Result};

impl CustomDefinition {
    /// Returns the function of one text; errors name the field `param`, which holds the format.
    pub(super) fn function(&self, param: &str) -> Result<FunctionDefinition> {
        let input = self.input(param)?;
        let parameters = json!({
            "type": "object", "properties": {"input": input}, "required": ["input"], "additionalProperties": false,
        });
        let (name, description) = (self.name.clone(), self.description.clone());
        // A pattern that cannot be followed is refused, never dropped.
        Ok(FunctionDefinition { name, description, parameters: Some(parameters), strict: Some(true) })
    }

    /// Returns the schema of the text.
    fn input(&self, param: &str) -> Result<Value> {
        let unsupported = |what: &str| {
            let message = format!(
                "'{param}' {what} is not supported: use {{\"type\": \"text\"}}, or a grammar with the syntax 'regex'."
            );
            Err(Problem::invalid_code(param, "unsupported_value", message))
        };
        let Some(format) = &self.format else { return Ok(json!({"type": "string"})) };
        match format["type"].as_str().unwrap_or_default() {
            "text" => Ok(json!({"type": "string"})),
            "grammar" => {
                // In a response the two stand one level higher.
                let grammar = format.get("grammar").unwrap_or(format);
                match (grammar["syntax"].as_str(), grammar["definition"].as_str()) {
                    (Some("regex"), Some(pattern)) => {
                        Ok(json!({"type": "string", "pattern": format!("^(?:{pattern})$")}))
                    }
                    (Some("regex"), None) => Err(Problem::missing(format!("{param}.definition"))),
                    (syntax, _) => unsupported(&format!("with the syntax '{}'", syntax.unwrap_or_default())),
                }
            }
            other => unsupported(&format!("of the type '{other}'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_cannot_be_followed_is_refused() {
        let make = |format: Value| {
            let tool = CustomDefinition { name: "c".into(), description: None, format: Some(format) };
            tool.function("tools[0].custom.format").map(|function| function.parameters.expect("a schema"))
        };
        let schema = make(json!({"type": "text"})).expect("a function");
        assert_eq!(schema["properties"]["input"], json!({"type": "string"}));
        for regex in [
            json!({"type": "grammar", "grammar": {"syntax": "regex", "definition": "a|b"}}),
            json!({"type": "grammar", "syntax": "regex", "definition": "a|b"}),
        ] {
            let schema = make(regex).expect("a function");
            assert_eq!(schema["properties"]["input"]["pattern"], "^(?:a|b)$");
        }
        for wrong in [
            json!({"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: \"a\""}}),
            json!({"type": "grammar"}),
            json!({"type": "poem"}),
            json!({}),
        ] {
            let error = make(wrong.clone()).expect_err("refused").error;
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some("tools[0].custom.format"), Some("unsupported_value"))
            );
        }
    }
}
