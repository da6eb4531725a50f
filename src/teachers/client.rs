//! Requests to one teacher: sends a chat, and says of each outcome whether it was paid for, which is what a budget has
//! to know. Called by the collector of distillation and by graders.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde_json::{Map, Value};

use super::money::Price;
use super::pace::Pace;
use crate::config::{self, Error, MaxTokensField, Secret};

/// Longest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
/// Time to find the teacher.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that a teacher may ask to be left alone.
const LONGEST_REST: Duration = Duration::from_mins(10);
/// Characters of what a teacher says of a refusal.
const MAX_WORDS: usize = 300;
/// What a message has of a conversation beside its text, in tokens at the most.
const TOKENS_OF_A_MESSAGE: u64 = 16;
const USER_AGENT: &str = concat!("Attune/", env!("CARGO_PKG_VERSION"), " (teachers)");

/// A model of another server. Cheap to clone.
#[derive(Clone)]
pub struct Teacher(Arc<Inner>);

struct Inner {
    name: String,
    model: String,
    http: Client,
    address: Url,
    key: Option<Secret>,
    price: Price,
    max_tokens: u32,
    max_tokens_field: MaxTokensField,
    overhead: u32,
    pace: Pace,
}

impl fmt::Debug for Teacher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Teacher({})", self.0.name)
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Asked {
    /// It was answered.
    Answered(Answer),
    /// It was not taken, and is not paid for; the same request may be taken later, after this time if the teacher said
    /// so.
    Busy(Option<Duration>, String),
    /// The teacher will never take this request; it is not paid for.
    Refused(String),
    /// The teacher takes no request of this server: its address, its key or its model is wrong.
    Denied(String),
    /// Nobody knows whether it was answered, and so paid for.
    Lost(String),
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The whole object.
    pub body: Value,
    /// Tokens of the prompt and of the answer; `None` if the teacher does not say.
    pub tokens: Option<(u64, u64)>,
}

impl Teacher {
    pub(super) fn new(name: &str, settings: &config::Teacher) -> config::Result<Self> {
        settings.check_key()?;
        let http = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_secs(settings.timeout_seconds))
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(USER_AGENT);
        let fault = |error: reqwest::Error| Error(format!("the HTTP client cannot be built: {error}"));
        let price = settings.price_per_million;
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            model: settings.model.clone(),
            http: http.build().map_err(fault)?,
            address: settings.chat_url()?,
            key: settings.key.clone(),
            price: Price::per_million(price.prompt, price.completion),
            max_tokens: settings.max_tokens,
            max_tokens_field: settings.max_tokens_field,
            overhead: settings.prompt_overhead_tokens,
            pace: Pace::new(settings.requests_per_minute),
        })))
    }

    /// Returns the name in the configuration.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns what its tokens cost.
    pub fn price(&self) -> Price {
        self.0.price
    }

    /// Returns the tokens of an answer at the most, where a request does not say.
    pub fn max_tokens(&self) -> u32 {
        self.0.max_tokens
    }

    /// Returns the most tokens that the teacher can count in these messages and texts beside them: every token has a
    /// byte at least.
    pub fn prompt_tokens_at_most(&self, messages: &[Value], beside: usize) -> u64 {
        let bytes: usize = messages.iter().map(|message| message.to_string().len()).sum();
        (bytes + beside) as u64 + messages.len() as u64 * TOKENS_OF_A_MESSAGE + u64::from(self.0.overhead)
    }

    /// Waits until it is the turn of a request, at the pace that the operator and the teacher ask for.
    pub async fn turn(&self) {
        self.0.pace.turn().await;
    }

    /// Sends a chat, whose turn it is. `fields` are those of a request for chat but for the model;
    /// `max_completion_tokens` gets the name that the teacher knows. Two requests with the same `id` are one for
    /// teachers that look at it.
    pub async fn chat(&self, mut fields: Map<String, Value>, id: Option<&str>) -> Asked {
        let inner = &*self.0;
        let bound = fields.remove("max_completion_tokens").unwrap_or_else(|| inner.max_tokens.into());
        fields.insert("model".into(), inner.model.as_str().into());
        fields.insert(inner.max_tokens_field.name().into(), bound);
        let mut request = inner.http.post(inner.address.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &inner.key {
            let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", key.as_str())) else {
                return Asked::Denied(self.say("its key cannot be sent"));
            };
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(id) = id {
            request = request.header("idempotency-key", id);
        }
        let response = match request.body(Value::from(fields).to_string()).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => {
                return Asked::Busy(None, self.say("it cannot be reached"));
            }
            Err(error) if error.is_timeout() => return Asked::Lost(self.say("it did not answer in time")),
            Err(_) => return Asked::Lost(self.say("the connection broke before its answer")),
        };
        let status = response.status();
        if status.is_success() {
            return self.read(response).await;
        }
        self.refusal(status, response).await
    }

    async fn read(&self, response: Response) -> Asked {
        let Some(bytes) = body(response).await else {
            return Asked::Lost(self.say("its answer broke off"));
        };
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(answer) if answer["choices"].is_array() => {
                let count = |name: &str| answer["usage"][name].as_u64();
                let tokens = count("prompt_tokens").zip(count("completion_tokens"));
                Asked::Answered(Answer { tokens, body: answer })
            }
            _ => Asked::Lost(self.say("its answer is not that of a chat")),
        }
    }

    async fn refusal(&self, status: StatusCode, response: Response) -> Asked {
        let wait = told_to_wait(response.headers());
        let why = |what: &str| self.say(&format!("{what} ({})", status.as_u16()));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Asked::Denied(why("it does not take this server's key"))
            }
            StatusCode::NOT_FOUND => Asked::Denied(why("it has no such model or route")),
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Asked::Lost(why("it did not answer in time")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT | StatusCode::TOO_EARLY => {
                let wait = wait.map(|wait| wait.min(LONGEST_REST));
                if let Some(wait) = wait {
                    self.0.pace.rest(wait);
                }
                Asked::Busy(wait, why("it has no room"))
            }
            status if status.is_server_error() => {
                Asked::Busy(wait.map(|wait| wait.min(LONGEST_REST)), why("it failed"))
            }
            _ => {
                let said = body(response).await.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
                let said = said.as_ref().and_then(|said| said["error"]["message"].as_str()).unwrap_or_default();
                Asked::Refused(why(&format!("it refuses the request: {}", self.without_key(said))))
            }
        }
    }

    /// Words what happened; nothing of it shows the address or the key.
    fn say(&self, what: &str) -> String {
        format!("The teacher `{}`: {what}.", self.0.name)
    }

    /// Returns the beginning of what the teacher said, without the key.
    fn without_key(&self, said: &str) -> String {
        let said = match &self.0.key {
            Some(key) => said.replace(key.as_str(), "(secret)"),
            None => said.to_owned(),
        };
        said.chars().take(MAX_WORDS).collect()
    }
}

/// Returns the whole body; `None` if it breaks off or is too long.
async fn body(mut response: Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// Returns the time for which the teacher wants to be left alone.
fn told_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = || number(RETRY_AFTER.as_str());
    let wait = number("retry-after-ms").map(|wait| wait / 1000.0).or_else(seconds)?;
    Duration::try_from_secs_f64(wait).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn teacher() -> Teacher {
        let settings = json!({"base_url": "http://127.0.0.1:9/v1", "model": "m"});
        let mut settings: config::Teacher = serde_json::from_value(settings).expect("settings");
        settings.key = Some("sk-hidden".into());
        Teacher::new("big", &settings).expect("a teacher")
    }

    #[test]
    fn what_a_teacher_says_is_told_without_the_key() {
        let teacher = teacher();
        let said = teacher.say(&teacher.without_key("Incorrect key sk-hidden."));
        assert_eq!(said, "The teacher `big`: Incorrect key (secret)..");
        assert!(!format!("{teacher:?}").contains("hidden"));
    }

    #[test]
    fn a_prompt_has_no_more_tokens_than_bytes_and_what_stands_around_them() {
        let messages = [json!({"role": "user", "content": "äöü"})];
        assert!(teacher().prompt_tokens_at_most(&messages, 10) >= 6 + 10 + 256);
    }

    #[test]
    fn a_wait_is_in_seconds_or_milliseconds() {
        let headers = |name: &'static str, value| {
            HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        assert_eq!(told_to_wait(&headers("retry-after", "2")), Some(Duration::from_secs(2)));
        assert_eq!(told_to_wait(&headers("retry-after-ms", "1500")), Some(Duration::from_millis(1500)));
        assert_eq!(told_to_wait(&headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")), None);
        assert_eq!(told_to_wait(&headers("retry-after", "-1")), None);
    }
}
