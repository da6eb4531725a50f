//! A request to the API, and the program that sends it: as a call of curl and as Python with OpenAI's client. The key
//! is in neither; both read it from the environment.

use std::fmt::Write as _;

use axum::http::{HeaderMap, Uri, header};
use serde_json::{Map, Value};

use crate::api::ui::security::came_over_tls;

/// The routes that the playground asks.
pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";
pub(super) const EMBEDDINGS: &str = "/v1/embeddings";

/// Fields that OpenAI's client does not know by name.
const EXTENSIONS: [&str; 3] = ["top_k", "min_p", "repetition_penalty"];

/// A request to a route of the API.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiRequest {
    /// The route, such as `/v1/chat/completions`.
    pub path: &'static str,
    /// The body.
    pub body: Map<String, Value>,
}

impl ApiRequest {
    /// Creates the request of `fields` to `model`.
    pub(super) fn new(path: &'static str, model: &str, fields: &Map<String, Value>) -> Self {
        let mut body = Map::from_iter([("model".to_owned(), model.into())]);
        body.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self { path, body }
    }

    /// Returns the model's name.
    pub(super) fn model(&self) -> &str {
        self.body.get("model").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the same request with its answer in events.
    pub(super) fn streamed(mut self) -> Self {
        self.body.insert("stream".into(), true.into());
        self.body.insert("stream_options".into(), serde_json::json!({"include_usage": true}));
        self
    }

    /// Returns the body as JSON.
    pub(super) fn json(&self) -> String {
        Value::from(self.body.clone()).to_string()
    }

    /// Returns the call of curl that sends this to `server`.
    pub(super) fn curl(&self, server: &str) -> String {
        let body = serde_json::to_string_pretty(&self.body).unwrap_or_default();
        format!(
            "curl {} \\\n  -H \"Authorization: Bearer $ATTUNE_API_KEY\" \\\n  -H 'Content-Type: application/json' \\\n  -d {}",
            quoted(&format!("{server}{}", self.path)),
            quoted(&body)
        )
    }

    /// Returns the Python program that sends this to `server`.
    pub(super) fn python(&self, server: &str) -> String {
        let (call, shown) = match self.path {
            CHAT => ("chat.completions", "choices[0].message.content"),
            COMPLETIONS => ("completions", "choices[0].text"),
            _ => ("embeddings", "data[0].embedding"),
        };
        let mut text = format!(
            "import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url={}, api_key=os.environ[\"ATTUNE_API_KEY\"])\n\
             answer = client.{call}.create(\n",
            literal(&format!("{server}/v1").into())
        );
        let (own, extensions): (Vec<_>, Vec<_>) =
            self.body.iter().partition(|(name, _)| !EXTENSIONS.contains(&name.as_str()));
        for (name, value) in own {
            // Writing to a string does not fail.
            let _ = writeln!(text, "    {name}={},", argument(value));
        }
        if !extensions.is_empty() {
            let fields = extensions.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            let _ = writeln!(text, "    extra_body={},", literal(&Value::Object(fields)));
        }
        let _ = write!(text, ")\nprint(answer.{shown})");
        text
    }
}

/// Returns the address of this server as the browser sees it.
pub(super) fn server_address(headers: &HeaderMap, uri: &Uri) -> String {
    // Over HTTP/2 the host is a part of the URI.
    let host = uri.authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| Some(headers.get(header::HOST)?.to_str().ok()?.to_owned()));
    let is_plain = |host: &String| host.chars().all(|one| one.is_ascii_alphanumeric() || ".:-_[]".contains(one));
    let host = host.filter(is_plain).unwrap_or_else(|| "localhost".into());
    format!("{}://{host}", if came_over_tls(headers) { "https" } else { "http" })
}

/// Returns a text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Returns a value as an argument: each entry of a list of objects in a line of its own.
fn argument(value: &Value) -> String {
    match value {
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let lines = items.iter().map(|item| format!("        {},\n", literal(item)));
            format!("[\n{}    ]", lines.collect::<String>())
        }
        value => literal(value),
    }
}

/// Returns a value as Python writes it. Texts and numbers of JSON mean the same there.
fn literal(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(literal).collect())),
        Value::Object(fields) => {
            let pair = |(name, value): (&String, &Value)| format!("{}: {}", Value::from(name.as_str()), literal(value));
            format!("{{{}}}", joined(fields.iter().map(pair).collect()))
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn request(fields: Value) -> ApiRequest {
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        ApiRequest::new(CHAT, "ft:demo:it's", &fields)
    }

    #[test]
    fn a_call_of_curl_survives_the_shell_and_holds_no_key() {
        let curl =
            request(json!({"messages": [{"role": "user", "content": "it's $HOME `x`"}]})).curl("http://box:8080");
        assert!(curl.starts_with("curl 'http://box:8080/v1/chat/completions'"), "{curl}");
        assert!(curl.contains("Bearer $ATTUNE_API_KEY\""), "{curl}");
        assert!(curl.contains("it'\\''s $HOME `x`"), "{curl}");
    }

    #[test]
    fn python_gets_its_own_words_and_extensions_apart() {
        let fields =
            json!({"messages": [{"role": "user", "content": "\"\\\n"}], "logprobs": true, "top_k": 3, "seed": null});
        let python = request(fields).python("http://box");
        for line in [
            "client = OpenAI(base_url=\"http://box/v1\", api_key=os.environ[\"ATTUNE_API_KEY\"])",
            "    model=\"ft:demo:it's\",",
            "        {\"role\": \"user\", \"content\": \"\\\"\\\\\\n\"},",
            "    logprobs=True,",
            "    seed=None,",
            "    extra_body={\"top_k\": 3},",
            "print(answer.choices[0].message.content)",
        ] {
            assert!(python.lines().any(|other| other == line), "{line}\n{python}");
        }
    }

    #[test]
    fn the_address_is_the_one_that_the_browser_asked() {
        let address = |host: &'static str, origin: &'static str| {
            let headers =
                [(header::HOST, HeaderValue::from_static(host)), (header::ORIGIN, HeaderValue::from_static(origin))];
            server_address(&headers.into_iter().collect(), &Uri::from_static("/ui/playground"))
        };
        assert_eq!(address("box:8080", "http://box:8080"), "http://box:8080");
        assert_eq!(address("attune.example", "https://attune.example"), "https://attune.example");
        assert_eq!(address("[::1]:80", "null"), "http://[::1]:80");
        assert_eq!(address("a';rm -rf", "null"), "http://localhost");
        assert_eq!(server_address(&HeaderMap::new(), &Uri::from_static("https://two:1/ui")), "http://two:1");
    }
}
