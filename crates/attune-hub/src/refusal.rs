//! What a hub's refusal means: it tells by status and header why. Called by [`client`](crate::client).

use reqwest::{Response, StatusCode, Url};

use crate::Error;
use crate::name::Repository;
use crate::patience::retry_after;

/// Characters of a hub's message that are shown.
const LONGEST_MESSAGE: usize = 300;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) revision: &'a str,
    /// `None` for the repository itself or its listing.
    pub(crate) file: Option<&'a str>,
}

/// Returns the error that `response` means.
pub(crate) fn read(subject: &Subject<'_>, response: &Response, endpoint: &Url, has_token: bool) -> Error {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let refusal = Refusal {
        status: response.status(),
        code: header("x-error-code").unwrap_or_default(),
        message: plain(header("x-error-message").unwrap_or_default()),
        wait: retry_after(response),
        host: host(response.url()),
    };
    refusal.error(subject, endpoint.as_str().trim_end_matches('/'), has_token)
}

/// Returns the error of a repository that is not there, or not to be seen.
pub(crate) fn missing(subject: &Subject<'_>, endpoint: &str, has_token: bool) -> Error {
    Error::RepositoryMissing { repository: subject.repository.to_string(), endpoint: endpoint.to_owned(), has_token }
}

/// Returns the error of a token that is not valid.
pub(crate) fn token(subject: &Subject<'_>, endpoint: &str) -> Error {
    Error::TokenRefused { repository: subject.repository.to_string(), endpoint: endpoint.to_owned() }
}

/// Returns the error of a revision that is not there, with those that are.
pub(crate) fn revision(subject: &Subject<'_>, known: Vec<String>) -> Error {
    let (repository, revision) = (subject.repository.to_string(), subject.revision.to_owned());
    Error::RevisionMissing { repository, revision, known }
}

/// Returns the host of an address, for messages.
pub(crate) fn host(url: &Url) -> String {
    url.host_str().unwrap_or("the hub").to_owned()
}

/// An answer that is no success.
struct Refusal<'a> {
    status: StatusCode,
    code: &'a str,
    message: String,
    wait: Option<u64>,
    host: String,
}

impl Refusal<'_> {
    fn error(self, subject: &Subject<'_>, endpoint: &str, has_token: bool) -> Error {
        let repository = subject.repository.to_string();
        let reason = |usual: &str| if self.message.is_empty() { usual.to_owned() } else { self.message.clone() };
        match (self.status.as_u16(), self.code) {
            (401 | 403, "GatedRepo") => {
                let page = format!("{endpoint}/{repository}");
                Error::Gated { repository, page, has_token }
            }
            (_, "DisabledRepo") | (451, _) => {
                Error::Refused { repository, reason: reason("it is disabled for everybody") }
            }
            (404, "RevisionNotFound") => revision(subject, Vec::new()),
            (404, "EntryNotFound") => file_missing(subject),
            (401, _) | (404, "RepoNotFound") => missing(subject, endpoint, has_token),
            (403, _) => Error::Refused { repository, reason: reason("403 without a reason; it may be disabled") },
            (404, _) if subject.file.is_some() => file_missing(subject),
            (404, _) => missing(subject, endpoint, has_token),
            (429, _) => Error::RateLimited { endpoint: endpoint.to_owned(), wait: self.wait },
            (408 | 500 | 502..=504, _) => {
                let status = self.status.as_u16();
                Error::Unreachable { host: self.host, reason: format!("it answers {status}: {}", reason("no reason")) }
            }
            (status, _) => {
                Error::Answer { host: self.host.clone(), reason: format!("status {status}: {}", reason("no reason")) }
            }
        }
    }
}

fn file_missing(subject: &Subject<'_>) -> Error {
    let what = format!("file `{}` at {}", subject.file.unwrap_or_default(), subject.revision);
    Error::FileMissing { repository: subject.repository.to_string(), what, known: Vec::new() }
}

/// Returns a message of a hub without what could confuse a terminal.
fn plain(message: &str) -> String {
    message.chars().filter(|character| !character.is_control()).take(LONGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, code: &str, file: Option<&str>, has_token: bool) -> String {
        let repository = Repository::parse("a/b").expect("a name");
        let subject = Subject { repository: &repository, revision: "v1", file };
        let status = StatusCode::from_u16(status).expect("a status");
        let refusal = Refusal { status, code, message: String::new(), wait: Some(7), host: "cdn".into() };
        refusal.error(&subject, "https://hub", has_token).to_string()
    }

    #[test]
    fn each_refusal_says_something_else_and_what_to_do() {
        for (status, code, file, has_token, says) in [
            (401, "GatedRepo", Some("x"), false, "accept the terms at https://hub/a/b, then set HF_TOKEN"),
            (403, "GatedRepo", Some("x"), true, "has not been let in. Accept the terms at https://hub/a/b"),
            (401, "RepoNotFound", None, false, "for a private one set HF_TOKEN"),
            (401, "", None, true, "still valid"),
            (404, "RepoNotFound", None, true, "there is no model a/b at https://hub, or it is private"),
            (404, "RevisionNotFound", None, false, "no revision `v1`"),
            (404, "EntryNotFound", Some("x"), false, "no file `x` at v1"),
            (404, "", Some("x"), false, "no file `x` at v1"),
            (404, "", None, false, "there is no model a/b"),
            (403, "", None, true, "may be disabled"),
            (403, "DisabledRepo", None, true, "disabled for everybody"),
            (451, "", None, false, "disabled for everybody"),
            (429, "", None, false, "it asks to wait 7 s"),
            (503, "", None, false, "cdn cannot be reached: it answers 503"),
            (418, "", None, false, "status 418"),
        ] {
            let said = said(status, code, file, has_token);
            assert!(said.contains(says), "{status} {code}: {said}");
        }
    }
}
