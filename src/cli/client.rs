//! An HTTP client for a running server, used by `attune jobs`, `attune embed` and `attune estimate --url`.

use std::time::Duration;

use crate::config::Secret;
use crate::{Error, Result};
use clap::Args;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Url};
use serde_json::Value;

/// The longest that connecting, a plain answer, and an answer that needs computing or an upload may take.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
const WORK: Duration = Duration::from_mins(12);

/// The flag for the key to ask with.
#[derive(Debug, Clone, Args)]
pub(super) struct AccountArgs {
    /// Send this API key; better set in the environment, where other users of the machine cannot see it.
    #[arg(long, env = "ATTUNE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
}

/// Flags that say which server to ask.
#[derive(Debug, Args)]
pub(super) struct ServerPlace {
    /// Ask the server at this address.
    #[arg(long, env = "ATTUNE_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    #[command(flatten)]
    account: AccountArgs,
}

impl ServerPlace {
    pub(super) fn server(&self) -> Result<Server> {
        Server::new(&self.url, &self.account)
    }
}

/// A server to ask, with the key to ask it with.
#[derive(Debug, Clone)]
pub(super) struct Server {
    http: reqwest::Client,
    url: Url,
    key: Option<Secret>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server cannot be reached, is starting, stopping or busy: asking again may help, after the time that it names.
    Away {
        /// What happened.
        message: String,
        /// How long to wait before asking again; `None` if the server does not say.
        after: Option<Duration>,
    },
    /// The server says no.
    Refused {
        /// What it says.
        message: String,
        /// True if something in the request is wrong, such as one of many texts.
        is_at_fault: bool,
        /// The field that is wrong; `None` if the server names none.
        param: Option<String>,
    },
}

impl Failure {
    /// Returns true if the server refuses what the field `name` holds, or does not say which field it refuses.
    pub(super) fn is_of_field(&self, name: &str) -> bool {
        match self {
            Self::Refused { is_at_fault, param, .. } => {
                *is_at_fault && param.as_ref().is_none_or(|param| param.starts_with(name))
            }
            Self::Away { .. } => false,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Away { message, .. } => Self::Unavailable(message),
            Failure::Refused { message, .. } => Self::Setup(message),
        }
    }
}

impl Server {
    /// Prepares to ask the server at `url` with the account's key; fails if `url` is not an HTTP address.
    pub(super) fn new(url: &str, account: &AccountArgs) -> Result<Self> {
        // What is there is not shown: an address may hold a password.
        let fault = |reason: &str| Error::Setup(format!("--url: {reason}, use for example http://127.0.0.1:8080"));
        let mut parsed: Url = url.parse().map_err(|_| fault("not an address"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(fault("not an address of HTTP"));
        }
        // OpenAI's clients take addresses that end in `/v1`; both forms are accepted.
        let path = parsed.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        parsed.set_path(&path);
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(WORK);
        let host = parsed.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Error::Setup(format!("set up HTTP: {error}")))?;
        Ok(Self { http, url: parsed, key: account.api_key.clone().filter(|key| !key.as_str().is_empty()) })
    }

    /// Builds a request to `/v1/{path}`; the parts of the path are escaped.
    pub(super) fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key.as_str()),
            None => request,
        }
    }

    /// Returns the address without a password, for messages.
    fn place(&self) -> Url {
        let mut url = self.url.clone();
        // An address of HTTP can be without both.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        url
    }

    /// Sends a GET and returns the JSON answer.
    pub(super) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Failure> {
        self.answer(self.request(Method::GET, path, query).timeout(ANSWER)).await
    }

    /// Sends `request` and returns the JSON answer.
    pub(super) async fn answer(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let place = self.place();
        let away = |error: reqwest::Error| Failure::Away {
            message: format!("{place} does not answer: {}", innermost(&error)),
            after: None,
        };
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let text = response.text().await.map_err(away)?;
        let body: Option<Value> = serde_json::from_str(&text).ok();
        if status.is_success() {
            let message = format!("{place} answers no JSON: is it Attune?");
            return body.ok_or(Failure::Refused { message, is_at_fault: false, param: None });
        }
        let told = |name: &str| body.as_ref().and_then(|body| body["error"][name].as_str());
        let said = told("message").unwrap_or("no reason was given");
        let message = format!("{place} answers {}: {said}", status.as_u16());
        if status.is_server_error() || status.as_u16() == 429 {
            return Err(Failure::Away { message, after: after.map(Duration::from_secs) });
        }
        let is_at_fault = matches!(status.as_u16(), 400 | 413 | 422);
        Err(Failure::Refused { message, is_at_fault, param: told("param").map(str::to_owned) })
    }
}

/// Returns the text of an error's innermost cause: the layers above it only say that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Result<Server> {
        Server::new(url, &AccountArgs { api_key: Some("k".into()) })
    }

    #[test]
    fn an_address_may_end_in_v1_and_parts_of_paths_are_escaped() {
        for url in ["http://127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1/"] {
            let request = server(url).expect(url).request(Method::GET, &["files", "a/b?c"], &[("limit", "2")]);
            let request = request.build().expect("a request");
            assert_eq!(request.url().as_str(), "http://127.0.0.1:8080/v1/files/a%2Fb%3Fc?limit=2", "{url}");
            assert_eq!(request.headers()["authorization"], "Bearer k");
        }
        let below = server("https://example.org/attune/v1").expect("fine").request(Method::GET, &["files"], &[]);
        assert_eq!(below.build().expect("a request").url().as_str(), "https://example.org/attune/v1/files");
        for url in ["", "localhost:8080", "ftp://a", "not an address"] {
            assert!(server(url).is_err(), "{url}");
        }
    }
}
