//! Requests to a hub, as its protocol wants them. The token goes to the hub's own address and nowhere else, whatever a
//! redirect says. Called by [`pull`](crate::pull) and [`download`](crate::download).

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT_ENCODING, LINK, LOCATION, RANGE};
use reqwest::{Client as Http, Response, StatusCode, Url, redirect};
use serde_json::Value;

use crate::listing::{self, RemoteFile};
use crate::name::{Repository, is_commit};
use crate::patience::{Patience, passing_wait};
use crate::refusal::{self, Subject, host};
use crate::settings::Settings;
use crate::{Error, Result, choice};

/// Redirects in a row: one for a renamed repository, one to where the bytes are, and some to spare.
const MOST_REDIRECTS: usize = 8;
/// Bytes of a page of a listing, which has a thousand files at the most.
const MOST_JSON: usize = 16 << 20;
/// Pages of a listing.
const MOST_PAGES: usize = 1_000;
/// All but what stands in a path unescaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A client of one hub.
#[derive(Debug)]
pub(crate) struct Client {
    http: Http,
    settings: Settings,
}

/// Why a request has no answer that can be used.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Asking again may help.
    Passing {
        /// What happened.
        error: Error,
        /// How long the hub asks to wait.
        wait: Option<Duration>,
    },
    /// Asking again does not help.
    Final(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Client {
    /// Prepares to ask; proxies come from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let mut http = Http::builder()
            .user_agent(concat!("attune/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.read_timeout);
        let fault = |reason: String| Error::Setting { variable: "SSL_CERT_FILE", reason };
        if let Some(path) = &settings.certificates {
            let bytes = std::fs::read(path).map_err(Error::io(format!("read SSL_CERT_FILE {}", path.display())))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&bytes)
                .map_err(|error| fault(format!("{} holds no certificates: {error}", path.display())))?;
            for certificate in certificates {
                http = http.add_root_certificate(certificate);
            }
        }
        let http = http.build().map_err(|error| fault(format!("HTTP cannot be set up: {error}")))?;
        Ok(Self { http, settings: settings.clone() })
    }

    /// Returns the hub's address, for messages.
    pub(crate) fn endpoint(&self) -> String {
        self.settings.endpoint.as_str().trim_end_matches('/').to_owned()
    }

    /// Returns true if requests to the hub carry a token.
    pub(crate) fn has_token(&self) -> bool {
        self.settings.token.is_some()
    }

    /// Returns the commit that `revision` stands for now.
    pub(crate) async fn commit(&self, repository: &Repository, revision: &str) -> Result<String> {
        let subject = Subject { repository, revision, file: None };
        let url = self.url(&["api", "models"], repository, &["revision", revision]);
        let answer = match self.json(url.clone(), &subject, true).await {
            Err(Error::RepositoryMissing { .. }) if self.has_token() => {
                // A hub answers a token that is not valid as if there were no such repository, even for public ones.
                match self.json(url, &subject, false).await {
                    Ok(_) => return Err(refusal::token(&subject, &self.endpoint())),
                    Err(_) => return Err(refusal::missing(&subject, &self.endpoint(), true)),
                }
            }
            Err(Error::RevisionMissing { .. }) => return Err(self.unknown_revision(&subject).await),
            answer => answer?.0,
        };
        let commit = answer["sha"].as_str().unwrap_or_default();
        if is_commit(commit) {
            return Ok(commit.to_owned());
        }
        Err(Error::Answer { host: self.endpoint(), reason: format!("it names no commit for {repository}@{revision}") })
    }

    /// Returns all files of a commit.
    pub(crate) async fn listing(&self, repository: &Repository, commit: &str) -> Result<Vec<RemoteFile>> {
        let subject = Subject { repository, revision: commit, file: None };
        let mut url = self.url(&["api", "models"], repository, &["tree", commit]);
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..MOST_PAGES {
            let (page, next) = self.json(url, &subject, true).await?;
            listing::add_page(repository, &page, &mut files)?;
            let Some(next) = next else {
                listing::check_whole(repository, &files)?;
                return Ok(files);
            };
            url = next;
        }
        Err(Error::Hostile { repository: repository.to_string(), reason: "it does not end".into() })
    }

    /// Begins to fetch a file of a commit, from byte `offset` on.
    pub(crate) async fn file(
        &self,
        repository: &Repository,
        commit: &str,
        path: &str,
        offset: u64,
    ) -> Result<Response, Fault> {
        let parts: Vec<&str> = ["resolve", commit].into_iter().chain(path.split('/')).collect();
        let url = self.url(&[], repository, &parts);
        let response = self.send(url, offset, true).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let subject = Subject { repository, revision: commit, file: Some(path) };
        Err(self.refused(&subject, &response))
    }

    /// Returns the address of parts below the hub's; each part of a path is escaped, slashes of a revision as well.
    fn url(&self, before: &[&str], repository: &Repository, after: &[&str]) -> Url {
        let mut url = self.settings.endpoint.clone();
        let escape = |part: &&str| utf8_percent_encode(part, ESCAPED).to_string();
        let parts = before.iter().map(escape).chain([repository.as_str().to_owned()]).chain(after.iter().map(escape));
        let path = parts.collect::<Vec<_>>().join("/");
        url.set_path(&format!("{}/{path}", self.settings.endpoint.path().trim_end_matches('/')));
        url
    }

    /// Asks for JSON, again and again where that may help; returns it with the address of the next page.
    async fn json(&self, url: Url, subject: &Subject<'_>, with_token: bool) -> Result<(Value, Option<Url>)> {
        let mut patience = Patience::default();
        loop {
            let fault = match self.json_once(url.clone(), subject, with_token).await {
                Ok(answer) => return Ok(answer),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing { error, wait }) => (error, wait),
            };
            patience.rest(fault, |error, pause| tracing::warn!(%error, ?pause, "asking again")).await?;
        }
    }

    async fn json_once(
        &self,
        url: Url,
        subject: &Subject<'_>,
        with_token: bool,
    ) -> Result<(Value, Option<Url>), Fault> {
        let mut response = self.send(url, 0, with_token).await?;
        if !response.status().is_success() {
            return Err(self.refused(subject, &response));
        }
        let strange = |reason: &str| Error::Answer { host: self.endpoint(), reason: reason.to_owned() };
        let next = self.next_page(&response);
        let host = host(response.url());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&host, &error))? {
            if bytes.len() + chunk.len() > MOST_JSON {
                return Err(strange("a list has no end").into());
            }
            bytes.extend_from_slice(&chunk);
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|_| strange("it sends no JSON where a list is due; is HF_ENDPOINT or the proxy right?"))?;
        Ok((value, next))
    }

    /// Returns the address of the page that follows, at the hub's own address: mirrors name the original's.
    fn next_page(&self, response: &Response) -> Option<Url> {
        let links = response.headers().get(LINK)?.to_str().ok()?;
        let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
        let target = next.split_once('<')?.1.split_once('>')?.0;
        let mut url = response.url().join(target).ok()?;
        let endpoint = &self.settings.endpoint;
        if url.origin() != endpoint.origin() {
            let (path, query) = (url.path().to_owned(), url.query().map(str::to_owned));
            url = endpoint.clone();
            url.set_path(&path);
            url.set_query(query.as_deref());
        }
        Some(url)
    }

    /// Sends a GET and follows redirects. The token goes only where the hub's own address is.
    async fn send(&self, mut url: Url, offset: u64, with_token: bool) -> Result<Response, Fault> {
        for _ in 0..MOST_REDIRECTS {
            let is_hub = url.origin() == self.settings.endpoint.origin();
            let mut request = self.http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if let (Some(token), true) = (&self.settings.token, is_hub && with_token) {
                request = request.bearer_auth(token.as_str());
            }
            let host = host(&url);
            let response = request.send().await.map_err(|error| self.broken(&host, &error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let strange = |reason: &str| Error::Answer { host: host.clone(), reason: reason.to_owned() };
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let next = next.filter(|next| matches!(next.scheme(), "http" | "https"));
            let next = next.ok_or_else(|| strange("it redirects to no address"))?;
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(strange("it redirects to an address without encryption").into());
            }
            url = next;
        }
        Err(Error::Answer { host: self.endpoint(), reason: "it redirects again and again".into() }.into())
    }

    /// Returns the fault of a connection that failed. The address is left out: it may be signed.
    pub(crate) fn broken(&self, host: &str, error: &reqwest::Error) -> Fault {
        let mut reason = innermost(error);
        if error.is_timeout() {
            reason = "no answer in time (HF_HUB_DOWNLOAD_TIMEOUT says how long to wait)".into();
        }
        if let (true, Some(variable)) = (error.is_connect(), self.settings.socks) {
            reason = format!("{variable} names a SOCKS proxy, which Attune cannot use: name one of HTTP");
        }
        Fault::Passing { error: Error::Unreachable { host: host.to_owned(), reason }, wait: None }
    }

    /// Returns the fault of an answer that is no success.
    fn refused(&self, subject: &Subject<'_>, response: &Response) -> Fault {
        let error = refusal::read(subject, response, &self.settings.endpoint, self.has_token());
        match passing_wait(response) {
            Some(wait) => Fault::Passing { error, wait },
            None => Fault::Final(error),
        }
    }

    /// Names the branches and tags that there are instead.
    async fn unknown_revision(&self, subject: &Subject<'_>) -> Error {
        let url = self.url(&["api", "models"], subject.repository, &["refs"]);
        let answer = self.json(url, subject, true).await.map(|(answer, _)| answer).unwrap_or_default();
        let lists = ["branches", "tags"].into_iter().filter_map(|list| answer[list].as_array());
        let names = lists.flatten().filter_map(|reference| reference["name"].as_str());
        refusal::revision(subject, choice::nearest(subject.revision, names))
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
