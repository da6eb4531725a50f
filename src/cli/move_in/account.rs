//! The client of the account at OpenAI. It only reads, one request at a time, and asks models; there is no way in here
//! to change or to delete anything. Used by [`super::fetch`], and by the comparison of models.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::cli::output::note;
use crate::config::Secret;
use crate::{Error, Result, format};

/// The longest that connecting and an answer may take; contents of files are large.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_mins(10);
/// The first and the longest pause before the account is asked again, if it does not say when.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// The environment's name for the key, as in OpenAI's own programs.
const KEY: &str = "OPENAI_API_KEY";

/// Flags that say which account to ask.
#[derive(Debug, Args)]
pub(super) struct AccountOptions {
    /// Ask the account at this address.
    #[arg(long, value_name = "URL", default_value = "https://api.openai.com/v1")]
    openai_url: String,
    /// Read the account's key from this file instead of `OPENAI_API_KEY`.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Ask for this project: `proj_…`; keys of users see the jobs of one project at a time.
    #[arg(long, value_name = "ID")]
    project: Option<String>,
    /// Ask the account no more often than this.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    requests_per_minute: u32,
}

impl AccountOptions {
    /// Prepares to ask the account; `None` without a key.
    pub(super) fn account(&self, patience: Duration) -> Result<Option<Account>> {
        let key = match &self.key_file {
            Some(file) => {
                let read = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
                let key = Some(read.trim().to_owned()).filter(|key| !key.is_empty());
                key.ok_or_else(|| Error::Setup(format!("{} holds no key", file.display())))?
            }
            None => match std::env::var(KEY).map(|key| key.trim().to_owned()) {
                Ok(key) if !key.is_empty() => key,
                _ => return Ok(None),
            },
        };
        Account::new(&self.openai_url, &key, self.project.clone(), self.requests_per_minute, patience).map(Some)
    }
}

/// An account to ask.
#[derive(Debug)]
pub(super) struct Account {
    http: reqwest::Client,
    url: Url,
    key: Secret,
    project: Option<String>,
    patience: Duration,
    /// The least time between two requests, and when the last one began. Locked while a request is under way: there is
    /// one at a time.
    gap: Duration,
    last: Mutex<Option<Instant>>,
}

/// Why the account gives no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It says no: asking again gives the same.
    No {
        /// The status of HTTP.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// It does not answer, or is busy, for longer than patience lasts.
    Away(String),
}

impl Refusal {
    /// Returns the reason.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::No { message, .. } | Self::Away(message) => message,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::No { message, .. } => Self::Setup(message),
            Refusal::Away(message) => Self::Unavailable(message),
        }
    }
}

/// One attempt's failure.
enum Attempt {
    No(Refusal),
    Again { message: String, after: Option<Duration> },
}

impl Account {
    fn new(url: &str, key: &str, project: Option<String>, per_minute: u32, patience: Duration) -> Result<Self> {
        let fault =
            |reason: &str| Error::Setup(format!("--openai-url: {reason}, use for example https://api.openai.com/v1"));
        let mut parsed: Url = url.parse().map_err(|_| fault("not an address"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(fault("not an address of HTTP"));
        }
        let path = parsed.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        parsed.set_path(&path);
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER);
        let host = parsed.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Error::Setup(format!("set up HTTP: {error}")))?;
        let gap = Duration::from_mins(1) / per_minute;
        Ok(Self { http, url: parsed, key: Secret::from(key), project, patience, gap, last: Mutex::new(None) })
    }

    /// Reads a page of a list. One without its items, or that says that more follows and has none, is no answer: the list
    /// would end there.
    pub(super) async fn page(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Refusal> {
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).ok().filter(is_page);
        self.patiently(|| self.http.get(self.address(path, query)), read).await
    }

    /// Reads the content of a file.
    pub(super) async fn content(&self, file: &str) -> Result<Vec<u8>, Refusal> {
        self.patiently(|| self.http.get(self.address(&["files", file, "content"], &[])), Some).await
    }

    /// Asks a model: `body` is that of `/chat/completions`.
    pub(super) async fn chat(&self, body: &Value) -> Result<Value, Refusal> {
        let address = self.address(&["chat", "completions"], &[]);
        self.patiently(|| self.http.post(address.clone()).json(body), |bytes| serde_json::from_slice(&bytes).ok()).await
    }

    fn address(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Asks until there is an answer that `read` takes, the account says no, or patience has an end.
    async fn patiently<T>(
        &self,
        request: impl Fn() -> RequestBuilder,
        read: impl Fn(Vec<u8>) -> Option<T>,
    ) -> Result<T, Refusal> {
        let mut last = self.last.lock().await;
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            if let Some(before) = *last {
                tokio::time::sleep(self.gap.saturating_sub(before.elapsed())).await;
            }
            *last = Some(Instant::now());
            let (message, after) = match self.attempt(request(), &read).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::No(refusal)) => return Err(refusal),
                Err(Attempt::Again { message, after }) => (message, after),
            };
            let wait = after.unwrap_or(pause);
            if begin.elapsed() + wait >= self.patience {
                return Err(Refusal::Away(message));
            }
            note(format_args!("{message}; asking again in {}", format::duration(wait.as_secs_f64())));
            tokio::time::sleep(wait).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn attempt<T>(&self, request: RequestBuilder, read: impl Fn(Vec<u8>) -> Option<T>) -> Result<T, Attempt> {
        let place = self.url.host_str().unwrap_or_default();
        let again = |message: String| Attempt::Again { message, after: None };
        let mut request = request.bearer_auth(self.key.as_str());
        if let Some(project) = &self.project {
            request = request.header("OpenAI-Project", project);
        }
        // The error may hold the address, which may hold a password: only its kind is told.
        let cut = |error: reqwest::Error| {
            let what = if error.is_connect() { "cannot be reached" } else { "broke off its answer" };
            again(format!("{place} {what}"))
        };
        let response = request.send().await.map_err(cut)?;
        let (status, after) = (response.status(), pause(response.headers()));
        let bytes = response.bytes().await.map_err(cut)?.to_vec();
        if status.is_success() {
            return read(bytes).ok_or_else(|| again(format!("{place} broke off its answer")));
        }
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let said = body["error"]["message"].as_str().unwrap_or("no reason was given").replace(char::is_control, " ");
        let message = match status {
            // What the account says holds a part of the key.
            StatusCode::UNAUTHORIZED => format!("{place} answers 401: the key is not valid"),
            status => format!("{place} answers {}: {said}", status.as_u16()),
        };
        let is_spent = body["error"]["code"] == "insufficient_quota";
        if !is_spent && (status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429)) {
            return Err(Attempt::Again { message, after });
        }
        Err(Attempt::No(Refusal::No { status: status.as_u16(), message }))
    }
}

fn is_page(page: &Value) -> bool {
    page["data"].as_array().is_some_and(|items| !items.is_empty() || page["has_more"] != true)
}

/// Returns how long the account wants to be left alone.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number(RETRY_AFTER.as_str()));
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_may_end_in_v1_or_not_and_ids_are_escaped() {
        for url in ["https://api.openai.com/v1", "https://api.openai.com/", "https://api.openai.com"] {
            let account = Account::new(url, "k", None, 60, Duration::ZERO).expect(url);
            let address = account.address(&["fine_tuning", "jobs", "a/b"], &[("after", "x y")]);
            assert_eq!(address.as_str(), "https://api.openai.com/v1/fine_tuning/jobs/a%2Fb?after=x+y");
        }
        for url in ["", "ftp://a", "not an address"] {
            assert!(Account::new(url, "k", None, 60, Duration::ZERO).is_err(), "{url}");
        }
    }

    #[test]
    fn a_page_has_its_items() {
        for (page, expected) in [
            (json!({"data": []}), true),
            (json!({"data": [{"id": "a"}], "has_more": true}), true),
            (json!({"data": [], "has_more": true}), false),
            (json!({"object": "list"}), false),
            (json!({"data": null}), false),
            (json!([]), false),
        ] {
            assert_eq!(is_page(&page), expected, "{page}");
        }
    }

    #[test]
    fn the_pause_is_read_in_seconds_and_in_milliseconds() {
        let mut headers = HeaderMap::new();
        assert_eq!(pause(&headers), None);
        headers.insert(RETRY_AFTER, "2".parse().expect("a value"));
        assert_eq!(pause(&headers), Some(Duration::from_secs(2)));
        headers.insert("retry-after-ms", "300".parse().expect("a value"));
        assert_eq!(pause(&headers), Some(Duration::from_millis(300)));
        headers.remove("retry-after-ms");
        headers.insert(RETRY_AFTER, "-1".parse().expect("a value"));
        assert_eq!(pause(&headers), None);
    }
}
