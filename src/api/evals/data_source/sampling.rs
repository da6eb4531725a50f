//! How a run's model is asked, `sampling_params`, in the form of chat. Read by [`super`], and by [`super::super::stored`] of requests
//! that are made again.

use serde_json::{Map, Value, json};

use super::refusal;
use crate::api::generation::chat::ChatRequest;
use crate::api::http::extract::parse_at;
use crate::graders::spec::Fault;

/// Turns the fields of `/responses` into those of chat.
pub(in crate::api::evals) fn as_chat(mut sampling: Map<String, Value>) -> Result<Map<String, Value>, Fault> {
    if let Some(text) = sampling.shift_remove("text") {
        if !text.is_object() {
            return Err(refusal("sampling_params.text", "'text' must be an object."));
        }
        let format = text.get("format").filter(|format| !format.is_null());
        if let Some(format) = format {
            let chat = match format.get("type").and_then(Value::as_str) {
                Some("json_schema") => {
                    let mut schema = format.clone();
                    schema.as_object_mut().map(|fields| fields.shift_remove("type"));
                    json!({"type": "json_schema", "json_schema": schema})
                }
                _ => format.clone(),
            };
            sampling.insert("response_format".into(), chat);
        }
    }
    if let Some(tools) = sampling.shift_remove("tools") {
        let tools = tools.as_array().ok_or_else(|| refusal("sampling_params.tools", "'tools' must be an array."))?;
        let nested = tools.iter().map(|tool| {
            if tool.get("type").is_none_or(|kind| kind != "function") {
                return Err(refusal("sampling_params.tools", "Only tools of type 'function' are supported."));
            }
            let mut function = tool.clone();
            function.as_object_mut().map(|fields| fields.shift_remove("type"));
            Ok(json!({"type": "function", "function": function}))
        });
        sampling.insert("tools".into(), nested.collect::<Result<Vec<_>, _>>()?.into());
    }
    Ok(sampling)
}

/// Refuses what a request for chat cannot be read with: else each item of the run would be refused alone. Faults name the
/// fields as a data source of the type `kind` has them.
pub(super) fn check_chat(sampling: &Map<String, Value>, kind: &str) -> Result<(), Fault> {
    const PLACE: &str = "sampling_params";
    let mut body = sampling.clone();
    body.extend([("model".to_owned(), json!("")), ("messages".to_owned(), json!([]))]);
    let Err(problem) = parse_at::<ChatRequest>(body.into(), PLACE) else { return Ok(()) };
    let rename = |text: &str| match kind {
        "responses" => {
            let text =
                text.replace("response_format.json_schema", "text.format").replace("response_format", "text.format");
            text.replace(".function.", ".")
        }
        _ => text.to_owned(),
    };
    let param = problem.error.param.as_deref().unwrap_or(PLACE);
    Err(refusal(&rename(param), &rename(&problem.error.message)))
}
