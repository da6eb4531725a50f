//! Custom tools, which take a text, as functions of one text: so a model calls them in its own syntax. Used by `tools`.

use serde_json::{Value, json};

use super::refused;
use super::request::{CustomDefinition, FunctionDefinition};
use crate::api::http::error::{Problem, Result};
use crate::engine::grammar::check_lark;

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

    /// Returns the grammar of the text in Lark syntax, if it has one.
    pub(super) fn lark(&self) -> Option<&str> {
        let format = self.format.as_ref().filter(|format| format["type"] == "grammar")?;
        let grammar = format.get("grammar").unwrap_or(format);
        grammar["definition"].as_str().filter(|_| grammar["syntax"] == "lark")
    }

    /// Returns the schema of the text.
    fn input(&self, param: &str) -> Result<Value> {
        let unsupported = |what: &str| {
            let message = format!(
                "'{param}' {what} is not supported: use {{\"type\": \"text\"}}, or a grammar with the syntax 'regex' or 'lark'."
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
                    // The model reads the rules here; they are enforced by a parser of their own.
                    (Some("lark"), Some(rules)) => {
                        check_lark(rules).map_err(|reason| refused(param, &reason))?;
                        Ok(json!({"type": "string", "description": format!("A text of this Lark grammar:\n{rules}")}))
                    }
                    (Some("regex" | "lark"), None) => Err(Problem::missing(format!("{param}.definition"))),
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
        let rules = json!({"type": "grammar", "syntax": "lark", "definition": "start: \"a\""});
        let schema = make(rules).expect("a function");
        assert_eq!(schema["properties"]["input"]["description"], "A text of this Lark grammar:\nstart: \"a\"");
        let wrong =
            make(json!({"type": "grammar", "syntax": "lark", "definition": "start: /a*?/"})).expect_err("refused");
        assert_eq!(wrong.error.code, Some("invalid_schema"));
        assert!(wrong.error.message.contains("line 1, column 8"), "{}", wrong.error.message);
        let missing = make(json!({"type": "grammar", "syntax": "lark"})).expect_err("refused").error;
        assert_eq!(missing.param.as_deref(), Some("tools[0].custom.format.definition"));
        for wrong in [
            json!({"type": "grammar", "grammar": {"syntax": "ebnf", "definition": "start: \"a\""}}),
            json!({"type": "grammar", "grammar": {"syntax": "LARK", "definition": "start: \"a\""}}),
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
