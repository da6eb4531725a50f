//! Fields of other servers' and of OpenAI's APIs that would change an answer and that this server does not have: a
//! request with one of them is refused by its name, unless the value is the one that changes nothing. Bodies of
//! completions, chat, responses, tokenize, embeddings and ranking are read through [`KnownBody`].

use std::borrow::Cow;
use std::fmt;

use axum::extract::{FromRequest, Request};
use serde::de::{DeserializeOwned, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::{not_json, parse, read};
use crate::api::http::parsed_size::TOKEN_FIELDS;

/// A JSON body, read like [`Body`](crate::api::http::extract::Body), that has none of the fields which its route
/// refuses.
#[derive(Debug)]
pub(crate) struct KnownBody<T>(pub T);

/// The body of one of the routes.
pub(crate) trait RouteBody: DeserializeOwned + Send + 'static {
    /// Its route.
    const ROUTE: Route;
}

/// A route that takes texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/chat/completions`
    Chat,
    /// `/responses`
    Responses,
    /// `/completions`
    Completions,
    /// `/tokenize`
    Tokenize,
    /// `/embeddings`
    Embeddings,
    /// `/rerank`
    Rerank,
    /// `/score`
    Score,
    /// `/classify`
    Classify,
}

use Route::{Chat, Classify, Completions, Embeddings, Rerank, Responses, Score, Tokenize};

/// Value of a field with which the answer is the same as without it; `null` and `false` always are.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// Nothing else.
    Absent,
    /// An empty text, array or object.
    Empty,
    /// This number.
    Number(f64),
    /// True; `false` is not.
    True,
    /// One of these words, or a list of nothing else.
    Words(&'static [&'static str]),
}

use Neutral::{Absent, Empty, Number, True, Words};

/// Fields of one kind: the routes that refuse them, their neutral value, advice, and their names.
type Kind = (&'static [Route], Neutral, &'static str, &'static [&'static str]);

const GENERATION: &[Route] = &[Chat, Completions, Responses];
/// Routes of models that read texts as a whole.
const READING: &[Route] = &[Embeddings, Rerank, Score, Classify];
/// Those of them that have scores.
const SCORING: &[Route] = &[Rerank, Score, Classify];
const TEXTS: &str = "only texts are read here";
const BY_SCHEMA: &str = "use 'response_format' or 'tools' of /v1/chat/completions, or leave it out";
const LEAVE_OUT: &str = "leave it out";

const KINDS: &[Kind] = &[
    // Constraints of the answer.
    (
        GENERATION,
        Absent,
        BY_SCHEMA,
        &[
            "guided_json",
            "guided_json_object",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "guided_whitespace_pattern",
            "structured_outputs",
            "structural_tag",
            "json_schema",
        ],
    ),
    (GENERATION, Empty, BY_SCHEMA, &["grammar", "ebnf", "regex"]),
    (&[Completions], Words(&["text"]), "use it in /v1/chat/completions", &["response_format"]),
    (&[Completions], Empty, "use it in /v1/chat/completions", &["tools", "functions", "messages"]),
    (&[Completions], Absent, "its name is 'max_tokens' here", &["max_completion_tokens"]),
    (&[Completions], Number(0.0), "its name is 'logprobs' here", &["top_logprobs"]),
    (&[Responses], Absent, "its name is 'text.format' here", &["response_format"]),
    (&[Responses], Absent, "its name is 'max_output_tokens' here", &["max_tokens", "max_completion_tokens"]),
    (&[Responses], Absent, "use 'include' with 'message.output_text.logprobs'", &["logprobs"]),
    (&[Responses], Empty, "use 'tools' and 'tool_choice'", &["functions", "function_call"]),
    (&[Responses], Number(1.0), "a response has one answer: leave it out", &["n"]),
    (&[Responses], Absent, "end tokens are the model's: leave it out", &["ignore_eos", "stop_token_ids"]),
    (&[Responses], Absent, LEAVE_OUT, &["continue_final_message", "add_generation_prompt"]),
    (&[Responses], Absent, "no prompts are kept here: send 'instructions' and 'input'", &["prompt"]),
    (&[Responses], Absent, LEAVE_OUT, &["moderation", "personality"]),
    // How an answer ends.
    (GENERATION, Number(0.0), LEAVE_OUT, &["min_tokens", "min_new_tokens"]),
    (GENERATION, Absent, "use 'max_tokens'", &["max_new_tokens", "n_predict"]),
    (GENERATION, Absent, "use 'stop'", &["stop_regex"]),
    (GENERATION, Absent, LEAVE_OUT, &["include_stop_str_in_output", "no_stop_trim", "repetition_detection"]),
    (GENERATION, Absent, LEAVE_OUT, &["thinking_token_budget", "thinking_budget", "reasoning_budget"]),
    // How tokens are drawn.
    (GENERATION, Empty, "use 'logit_bias'", &["bad_words", "allowed_token_ids"]),
    (GENERATION, Empty, LEAVE_OUT, &["logits_processors", "custom_logit_processor", "samplers", "vllm_xargs"]),
    (GENERATION, Absent, LEAVE_OUT, &["use_beam_search", "early_stopping"]),
    (GENERATION, Number(1.0), LEAVE_OUT, &["num_beams", "length_penalty", "guidance_scale", "typical_p", "tfs_z"]),
    (GENERATION, Number(1.0), "use 'repetition_penalty'", &["repeat_penalty"]),
    (
        GENERATION,
        Number(0.0),
        LEAVE_OUT,
        &[
            "top_a",
            "no_repeat_ngram_size",
            "mirostat",
            "mirostat_mode",
            "dry_multiplier",
            "xtc_probability",
            "dynatemp_range",
            "penalty_alpha",
            "epsilon_cutoff",
            "eta_cutoff",
        ],
    ),
    (GENERATION, True, "set 'temperature' to 0", &["do_sample"]),
    (&[Chat], Number(1.0), "use 'n'", &["best_of"]),
    (&[Responses], Number(1.0), LEAVE_OUT, &["best_of"]),
    // What the prompt is.
    (&[Chat], Empty, "send 'messages'", &["prompt", "prompt_embeds"]),
    (&[Responses], Empty, "send 'input'", &["messages", "prompt_embeds"]),
    (&[Completions], Absent, "send 'prompt'", &["prompt_embeds"]),
    (&[Chat, Responses], Absent, "the model's own template is used: leave it out", &["chat_template"]),
    (&[Responses], Absent, "use 'reasoning': {\"effort\": \"none\"}, or 'chat_template_kwargs'", &["enable_thinking"]),
    (&[Chat, Responses], Absent, "a chat template writes these tokens itself: leave it out", &["add_special_tokens"]),
    (&[Chat, Responses, Tokenize], Empty, LEAVE_OUT, &["documents", "mm_processor_kwargs"]),
    (&[Completions, Embeddings, Rerank, Score, Classify], True, LEAVE_OUT, &["add_special_tokens"]),
    (&[Chat, Completions, Responses, Tokenize], Absent, LEAVE_OUT, &["truncate_prompt_tokens"]),
    (READING, Absent, "the model's own form is used: leave it out", &["chat_template", "pooling", "pooling_type"]),
    (READING, Empty, "the model's own form is used: leave it out", &["chat_template_kwargs"]),
    (READING, Empty, TEXTS, &["messages", "image", "images", "mm_processor_kwargs"]),
    (READING, Words(&["text"]), TEXTS, &["modality"]),
    (READING, Words(&["right", "Right"]), "texts are cut at their end", &["truncation_side", "truncation_direction"]),
    (&[Embeddings], Empty, "use 'prompt_name', which names a prompt of the model", &["prompt"]),
    (&[Embeddings], Empty, "use 'prompt_name' or 'input_type'", &["task", "task_type", "instruction", "instruct"]),
    (SCORING, Empty, LEAVE_OUT, &["prompt", "prompt_name", "input_type", "task", "instruction", "instruct"]),
    // Lengths of texts.
    (&[Embeddings], Absent, LEAVE_OUT, &["late_chunking", "chunking", "auto_chunking"]),
    (&[Rerank], Number(1.0), "documents are not split but cut at their end", &["max_chunks_per_doc"]),
    (&[Rerank], Absent, "use 'max_tokens_per_doc'", &["max_doc_length"]),
    (&[Rerank], Absent, LEAVE_OUT, &["max_query_length", "overlap_tokens"]),
    (&[Rerank], Absent, "its name is 'truncation' here", &["truncate"]),
    (&[Embeddings, Classify], Absent, "its name is 'truncate' here", &["truncation", "auto_truncate"]),
    (&[Score], Absent, "use 'truncate_prompt_tokens'", &["truncation", "truncate"]),
    (&[Rerank], Words(&["text"]), "documents have one text, 'text'", &["rank_fields"]),
    (GENERATION, Absent, "name the fine-tuned model in 'model'", &["lora_path", "adapter_id", "lora"]),
    // What is shown.
    (&[Chat, Responses], Empty, LEAVE_OUT, &["echo", "suffix"]),
    (&[Chat, Responses], Absent, LEAVE_OUT, &["prompt_logprobs", "web_search_options", "audio"]),
    (&[Chat, Responses], Words(&["text"]), LEAVE_OUT, &["modalities"]),
    (GENERATION, True, LEAVE_OUT, &["skip_special_tokens"]),
    (&[Embeddings], Absent, "its name is 'dimensions' here", &["output_dimension", "truncate_dim"]),
    (
        &[Embeddings],
        Words(&["float", "float32"]),
        "vectors have 32-bit floats; 'encoding_format' says how they are written",
        &["embedding_type", "embedding_types", "output_dtype", "embed_dtype", "precision"],
    ),
    (&[Embeddings], Words(&["little", "native"]), "numbers are little-endian", &["endianness"]),
    (&[Embeddings], Absent, "its name is 'normalize' here", &["normalized"]),
    (&[Embeddings], True, "use 'normalize'", &["use_activation", "activation"]),
    (SCORING, True, "scores are as the model's configuration says", &["use_activation", "activation", "softmax"]),
    (&[Rerank], Absent, "scores are as the model's configuration says", &["raw_scores"]),
    (&[Rerank], Absent, "use 'return_documents'", &["return_text"]),
    (&[Rerank], Absent, "its name is 'top_n' here", &["top_k"]),
    (&[Classify], Absent, "texts alone are classified", &["text_pair", "inputs"]),
    (&[Completions], Absent, "use 'echo' with 'logprobs'", &["prompt_logprobs"]),
    (GENERATION, Absent, LEAVE_OUT, &["return_tokens_as_token_ids", "return_token_ids", "logprob_token_ids"]),
];

impl<T: RouteBody> FromRequest<ApiState> for KnownBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        let has_ids = matches!(T::ROUTE, Completions | Embeddings | Classify);
        let tokens: &[&[u8]] = if has_ids { &TOKEN_FIELDS } else { &[] };
        let parse = |bytes: &[u8]| {
            let body = parse(bytes)?;
            refuse(T::ROUTE, bytes)?;
            Ok(Self(body))
        };
        read(request, state, tokens, parse).await
    }
}

/// Refuses the JSON object `body` if it has a field that `route` refuses and whose value is not the neutral one.
fn refuse(route: Route, body: &[u8]) -> Result<()> {
    let found = serde_json::Deserializer::from_slice(body).deserialize_map(Search(route));
    match found.map_err(|error| not_json(&error))? {
        None => Ok(()),
        Some((name, advice)) => {
            let message = format!("'{name}' is not supported here: {advice}.");
            Err(Problem::invalid_code(name, "unsupported_parameter", message))
        }
    }
}

/// Looks for the first field that the route refuses.
struct Search(Route);

impl<'de> Visitor<'de> for Search {
    type Value = Option<(&'static str, &'static str)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = fields.next_key()? {
            match refused(self.0, &name) {
                Some((name, neutral, advice)) => {
                    let value: Value = fields.next_value()?;
                    if !neutral.is(&value) {
                        found = found.or(Some((name, advice)));
                    }
                }
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// A field's name, borrowed from the body if it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Returns the field as it stands in the table, with its neutral value and the advice; `None` if `route` takes or
/// ignores it.
fn refused(route: Route, name: &str) -> Option<(&'static str, Neutral, &'static str)> {
    KINDS.iter().filter(|kind| kind.0.contains(&route)).find_map(|(_, neutral, advice, names)| {
        let name = names.iter().find(|other| **other == name)?;
        Some((*name, *neutral, *advice))
    })
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        if value.is_null() || (value == false && !matches!(self, True)) {
            return true;
        }
        match self {
            Absent => false,
            Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            },
            Number(neutral) => value.as_f64().is_some_and(|number| number.total_cmp(&neutral).is_eq()),
            True => value == true,
            Words(words) => {
                let is_word = |value: &Value| value.as_str().is_some_and(|word| words.contains(&word));
                match value {
                    Value::Array(items) => items.iter().all(is_word),
                    Value::Object(fields) => fields.get("type").is_some_and(is_word),
                    value => is_word(value),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(route: Route, field: &str) -> Option<String> {
        let body = format!(r#"{{"model":"m",{field},"user":"u","made_up":{{"guided_json":{{}}}}}}"#);
        let error = refuse(route, body.as_bytes()).err()?.error;
        assert_eq!(error.code, Some("unsupported_parameter"));
        error.param.map(Cow::into_owned)
    }

    #[test]
    fn fields_that_would_change_the_answer_are_refused_by_name() {
        for (field, name) in [
            (r#""guided_json":{}"#, "guided_json"),
            (r#""guided_choice":["a","b"]"#, "guided_choice"),
            (r#""structured_outputs":{"regex":"a"}"#, "structured_outputs"),
            (r#""min_tokens":3"#, "min_tokens"),
            (r#""length_penalty":1.2"#, "length_penalty"),
            (r#""use_beam_search":true"#, "use_beam_search"),
            (r#""bad_words":["a"]"#, "bad_words"),
            (r#""logits_processors":["x"]"#, "logits_processors"),
            (r#""skip_special_tokens":false"#, "skip_special_tokens"),
            (r#""prompt_logprobs":0"#, "prompt_logprobs"),
            (r#""guided_\u006ason":"a""#, "guided_json"),
        ] {
            for route in [Chat, Completions, Responses] {
                assert_eq!(check(route, field).as_deref(), Some(name), "{route:?} {field}");
            }
        }
        for (route, field, name) in [
            (Chat, r#""chat_template":"x""#, "chat_template"),
            (Chat, r#""documents":[{"text":"x"}]"#, "documents"),
            (Tokenize, r#""documents":[{"text":"x"}]"#, "documents"),
            (Chat, r#""echo":true"#, "echo"),
            (Chat, r#""best_of":2"#, "best_of"),
            (Chat, r#""modalities":["text","audio"]"#, "modalities"),
            (Completions, r#""response_format":{"type":"json_object"}"#, "response_format"),
            (Completions, r#""messages":[{}]"#, "messages"),
            (Completions, r#""max_completion_tokens":5"#, "max_completion_tokens"),
            (Tokenize, r#""truncate_prompt_tokens":5"#, "truncate_prompt_tokens"),
            (Embeddings, r#""task":"retrieval.query""#, "task"),
            (Embeddings, r#""prompt":"query: ""#, "prompt"),
            (Embeddings, r#""embedding_types":["float","int8"]"#, "embedding_types"),
            (Embeddings, r#""late_chunking":true"#, "late_chunking"),
            (Embeddings, r#""truncation_side":"left""#, "truncation_side"),
            (Embeddings, r#""messages":[{}]"#, "messages"),
            (Rerank, r#""rank_fields":["title","text"]"#, "rank_fields"),
            (Rerank, r#""max_chunks_per_doc":10"#, "max_chunks_per_doc"),
            (Rerank, r#""top_k":3"#, "top_k"),
            (Score, r#""use_activation":false"#, "use_activation"),
            (Classify, r#""softmax":false"#, "softmax"),
        ] {
            assert_eq!(check(route, field).as_deref(), Some(name), "{route:?} {field}");
        }
    }

    #[test]
    fn values_that_change_nothing_and_unknown_fields_pass() {
        for field in [
            r#""guided_json":null"#,
            r#""min_tokens":0"#,
            r#""length_penalty":1.0"#,
            r#""use_beam_search":false"#,
            r#""bad_words":[]"#,
            r#""best_of":1"#,
            r#""skip_special_tokens":true"#,
            r#""response_format":{"type":"text"}"#,
            r#""modalities":["text"]"#,
            r#""echo":false"#,
            r#""store":true"#,
        ] {
            for route in [Chat, Completions, Tokenize, Embeddings, Rerank, Score, Classify] {
                assert_eq!(check(route, field), None, "{route:?} {field}");
            }
        }
        for (route, field) in [
            (Rerank, r#""rank_fields":["text"]"#),
            (Rerank, r#""max_chunks_per_doc":1"#),
            (Rerank, r#""raw_scores":false"#),
            (Score, r#""use_activation":true"#),
            (Embeddings, r#""embedding_types":["float"]"#),
            (Embeddings, r#""truncation_side":"right""#),
            (Embeddings, r#""late_chunking":false"#),
        ] {
            assert_eq!(check(route, field), None, "{route:?} {field}");
        }
    }
}
