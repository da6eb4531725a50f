//! Answers to items: given ones as they are, others from a model of this server. `stored` has those that were stored.

use serde_json::{Map, Value, json};

use super::data_source::{Input, Question};
use crate::api::graders::ask::{Asker, Tokens};
use crate::api::graders::judge::fill_all;
use crate::graders::template::Sample;

/// An answer to an item.
#[derive(Debug)]
pub(super) struct Answered {
    /// For templates.
    pub sample: Sample,
    /// As the output item shows it.
    pub shown: Value,
    /// The model that was asked, with the tokens that it took.
    pub usage: Option<(String, Tokens)>,
}

/// How an answer came about, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told<'a> {
    pub model: Option<&'a str>,
    pub finish_reason: Option<&'a str>,
    pub tokens: Option<Tokens>,
    /// An object with the fields of the request, among others.
    pub settings: Option<&'a Map<String, Value>>,
}

/// Takes the answer that came with an item.
pub(super) fn given(sample: Option<&Value>) -> Result<Answered, String> {
    let Some(sample) = sample else {
        return Ok(Answered { sample: Sample::default(), shown: shown(&[], &[], None), usage: None });
    };
    let fields = sample.as_object().ok_or("'sample' must be an object.")?;
    let known = ["output_text", "output_json", "output_tools", "choices"];
    if let Some((name, _)) = fields.iter().find(|(name, value)| !known.contains(&name.as_str()) && !value.is_null()) {
        return Err(format!(
            "'{name}' is not a field of a sample: use output_text, output_json, output_tools and choices."
        ));
    }
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let choices = field("choices").cloned();
    let of_choice = choices.as_ref().map(|choices| &choices[0]["message"]["content"]);
    let text = match (field("output_text"), field("output_json")) {
        (Some(text), _) => Some(text.as_str().ok_or("'sample.output_text' must be a text.")?.to_owned()),
        (None, Some(json)) => Some(json.to_string()),
        (None, None) => of_choice.and_then(Value::as_str).map(str::to_owned),
    };
    let output: Vec<Value> = text.iter().map(|text| json!({"role": "assistant", "content": text})).collect();
    let sample = Sample { text, tools: field("output_tools").cloned(), choices };
    Ok(Answered { sample, shown: shown(&[], &output, None), usage: None })
}

/// Asks the model about an item, with further fields of the `request` that the question does not have itself; an
/// error is what the API said.
pub(super) async fn asked(
    asker: &Asker,
    question: &Question,
    model: &str,
    item: &Value,
    request: Map<String, Value>,
) -> Result<Answered, (Vec<Value>, String)> {
    let messages = conversation(&question.input, item).map_err(|message| (Vec::new(), message))?;
    let mut body = question.sampling.clone();
    for (name, value) in request {
        body.entry(name).or_insert(value);
    }
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages.clone().into());
    let answer = asker.chat(&body.into()).await.map_err(|message| (messages.clone(), message))?;
    let mut message = json!({"role": "assistant", "content": answer.text});
    if answer.tools.as_array().is_some_and(|tools| !tools.is_empty()) {
        message["tool_calls"] = answer.tools.clone();
    }
    let told = Told {
        model: Some(model),
        finish_reason: Some(&answer.finish_reason),
        tokens: Some(answer.tokens),
        settings: Some(&question.sampling),
    };
    let shown = shown(&messages, &[message], Some(told));
    let usage = Some((model.to_owned(), answer.tokens));
    let sample = Sample { text: Some(answer.text), tools: Some(answer.tools), choices: Some(answer.choices) };
    Ok(Answered { sample, shown, usage })
}

/// Returns what an output item shows of an answer that there is not.
pub(super) fn failed(messages: &[Value], model: Option<&str>, message: &str) -> Value {
    let mut shown = shown(messages, &[], Some(Told { model, ..Told::default() }));
    shown["error"] = json!({"code": "sampling_error", "message": message});
    shown
}

fn conversation(input: &Input, item: &Value) -> Result<Vec<Value>, String> {
    match input {
        Input::Template(messages) => {
            fill_all(messages, item, &Sample::default()).map_err(|failure| failure.message().to_owned())
        }
        Input::Reference(place) => match place.value(item, &Sample::default()) {
            Ok(Value::Array(messages)) => Ok(messages),
            Ok(Value::String(text)) => Ok(vec![json!({"role": "user", "content": text})]),
            Ok(_) => Err("The item's conversation is neither an array of messages nor a text.".into()),
            Err(unfilled) => Err(unfilled.to_string()),
        },
    }
}

/// Returns what an output item shows of an answer.
pub(super) fn shown(input: &[Value], output: &[Value], told: Option<Told<'_>>) -> Value {
    let told = told.unwrap_or_default();
    let setting = |name: &str| told.settings.and_then(|settings| settings.get(name)).cloned();
    json!({
        "input": input,
        "output": output,
        "finish_reason": told.finish_reason,
        "model": told.model,
        "usage": told.tokens.map(|tokens| json!({
            "total_tokens": tokens.total(),
            "completion_tokens": tokens.completion,
            "prompt_tokens": tokens.prompt,
            "cached_tokens": tokens.cached,
        })),
        "error": null,
        "temperature": setting("temperature"),
        "max_completion_tokens": setting("max_completion_tokens"),
        "top_p": setting("top_p"),
        "seed": setting("seed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_answer_is_a_text_json_or_choices() {
        for (sample, text) in [
            (json!({"output_text": "a"}), Some("a")),
            (json!({"output_json": {"x": 1}}), Some(r#"{"x":1}"#)),
            (json!({"choices": [{"message": {"content": "b"}}]}), Some("b")),
            (json!({"output_tools": []}), None),
        ] {
            assert_eq!(given(Some(&sample)).expect("an answer").sample.text.as_deref(), text, "{sample}");
        }
        assert!(given(None).expect("no answer").sample.text.is_none());
        for sample in [json!(1), json!({"output_text": 1}), json!({"text": "a"})] {
            assert!(given(Some(&sample)).is_err(), "{sample}");
        }
    }
}
