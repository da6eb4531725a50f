//! Requests to the local server, which is asked again while it is away, for as long as patience lasts. Used by
//! [`super::carry`] and [`super::specialists`].

use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value};

use crate::cli::client::{Failure, Server};
use crate::cli::output::note;
use crate::format;

/// The first and the longest pause before a server that does not say when is asked again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Items of a page.
const PAGE: &str = "100";

/// The server that everything is brought to.
pub(super) struct Local {
    server: Server,
    patience: Duration,
}

impl Local {
    pub(super) fn new(server: Server, patience: Duration) -> Self {
        Self { server, patience }
    }

    /// Reads JSON.
    pub(super) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Failure> {
        self.patiently(async || self.server.get(path, query).await).await
    }

    /// Reads all pages of a list.
    pub(super) async fn list(&self, path: &[&str]) -> Result<Vec<Value>, Failure> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let last = all.last().and_then(|item| item["id"].as_str()).map(str::to_owned);
            let mut query = vec![("limit", PAGE)];
            query.extend(last.as_deref().map(|last| ("after", last)));
            let page = self.get(path, &query).await?;
            let items = page["data"].as_array().cloned().unwrap_or_default();
            let is_last = items.is_empty() || page["has_more"] != true;
            all.extend(items);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Asks for something that leaves nothing behind, such as an answer of a model; it may be asked twice.
    pub(super) async fn ask(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.patiently(async || self.server.answer(self.server.request(Method::POST, path, &[]).json(body)).await).await
    }

    /// Puts something in its place; it may be put there twice.
    pub(super) async fn put(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.patiently(async || self.server.answer(self.server.request(Method::PUT, path, &[]).json(body)).await).await
    }

    /// Makes something once: where an answer is lost, `find` says before the next attempt whether it was made after
    /// all.
    pub(super) async fn create(
        &self,
        path: &[&str],
        body: &Value,
        find: impl AsyncFn() -> Result<Option<Value>, Failure>,
    ) -> Result<Value, Failure> {
        self.once(async || self.server.answer(self.server.request(Method::POST, path, &[]).json(body)).await, find)
            .await
    }

    /// Uploads a file once, with notes.
    pub(super) async fn upload(
        &self,
        file: (&str, &[u8]),
        purpose: &str,
        notes: &Map<String, Value>,
        find: impl AsyncFn() -> Result<Option<Value>, Failure>,
    ) -> Result<Value, Failure> {
        let (name, content) = file;
        let send = async || {
            let mut form = Form::new().text("purpose", purpose.to_owned());
            for (note, value) in notes {
                form = form.text(format!("metadata[{note}]"), value.as_str().unwrap_or_default().to_owned());
            }
            let part = Part::bytes(content.to_vec()).file_name(name.to_owned());
            let request = self.server.request(Method::POST, &["files"], &[]);
            self.server.answer(request.multipart(form.part("file", part))).await
        };
        self.once(send, find).await
    }

    async fn once(
        &self,
        make: impl AsyncFn() -> Result<Value, Failure>,
        find: impl AsyncFn() -> Result<Option<Value>, Failure>,
    ) -> Result<Value, Failure> {
        self.patiently(async || match find().await? {
            Some(found) => Ok(found),
            None => make().await,
        })
        .await
    }

    /// Tries until there is an answer, or patience has an end.
    async fn patiently(&self, attempt: impl AsyncFn() -> Result<Value, Failure>) -> Result<Value, Failure> {
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            match attempt().await {
                Err(Failure::Away { message, after }) => {
                    let wait = after.unwrap_or(pause);
                    if begin.elapsed() + wait >= self.patience {
                        return Err(Failure::Away { message, after });
                    }
                    note(format_args!("{message}; asking again in {}", format::duration(wait.as_secs_f64())));
                    tokio::time::sleep(wait).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                answer => return answer,
            }
        }
    }
}
