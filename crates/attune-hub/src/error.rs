//! Why a model cannot be found or downloaded, each with what to do about it. The layers above wrap [`Error`] in their
//! own.

use std::path::PathBuf;
use std::sync::Arc;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure with a message that its reader can act on. No message holds a token or a signed address.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A text that is not the name of a model.
    #[error(
        "`{name}` is not the name of a model on a hub: {reason}. Write OWNER/NAME, OWNER/NAME@REVISION or \
         OWNER/NAME:Q4_K_M"
    )]
    Name {
        /// The text.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A variable of the environment that cannot be used.
    #[error("{variable}: {reason}")]
    Setting {
        /// Name of the variable.
        variable: &'static str,
        /// What is wrong with it, without its value.
        reason: String,
    },

    /// Not in the cache, and the network may not be asked.
    #[error(
        "{name} is not in the cache {cache}, or not complete there, and HF_HUB_OFFLINE forbids to download: run \
         `{command}` without it"
    )]
    Offline {
        /// The model.
        name: String,
        /// Folder of the cache.
        cache: PathBuf,
        /// Command that downloads the model.
        command: String,
    },

    /// No such repository, or one that the caller may not see.
    #[error("there is no model {repository} at {endpoint}, or it is private{}", advice(*.has_token))]
    RepositoryMissing {
        /// The repository.
        repository: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The hub does not take the token.
    #[error(
        "{endpoint} does not take the token that was sent, and shows {repository} without one: renew the token \
         (`hf auth login`), or unset HF_TOKEN"
    )]
    TokenRefused {
        /// The repository.
        repository: String,
        /// The hub.
        endpoint: String,
    },

    /// The authors want their terms accepted first.
    #[error("{repository} is gated: {}", gate(*.has_token, .page))]
    Gated {
        /// The repository.
        repository: String,
        /// Address of the page with the terms.
        page: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The hub refuses to give it to anybody, or to this account.
    #[error("the hub refuses {repository}: {reason}")]
    Refused {
        /// The repository.
        repository: String,
        /// What the hub says.
        reason: String,
    },

    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision `{revision}`{}{}", near(.known), whole_commit(.revision))]
    RevisionMissing {
        /// The repository.
        repository: String,
        /// The revision that was asked for.
        revision: String,
        /// Names of revisions that there are, the most similar first.
        known: Vec<String>,
    },

    /// The repository has no such file or tag.
    #[error("{repository} has no {what}{}", near(.known))]
    FileMissing {
        /// The repository.
        repository: String,
        /// What was looked for.
        what: String,
        /// What there is of its kind, the most similar first.
        known: Vec<String>,
    },

    /// The repository holds nothing that Attune loads.
    #[error("{repository} cannot be used: {reason}")]
    Unusable {
        /// The repository.
        repository: String,
        /// What is missing, or what is there instead.
        reason: String,
    },

    /// The hub asks to wait, longer or more often than is reasonable.
    #[error("{endpoint} allows no more requests at the moment{}: try again later; a token (HF_TOKEN) allows \
             more", seconds(*.wait))]
    RateLimited {
        /// The hub.
        endpoint: String,
        /// Seconds that it asks to wait.
        wait: Option<u64>,
    },

    /// Nobody answers, again and again.
    #[error(
        "{host} cannot be reached: {reason}. What has been downloaded is kept; the same command goes on from there"
    )]
    Unreachable {
        /// Host that was asked.
        host: String,
        /// What happened last.
        reason: String,
    },

    /// An answer that no hub gives.
    #[error("{host} does not answer as a hub does: {reason}")]
    Answer {
        /// Host that was asked.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// A listing that would write outside its folder, or names what is no checksum.
    #[error("the hub's list of the files of {repository} is refused: {reason}")]
    Hostile {
        /// The repository.
        repository: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The bytes of a file are not those that the hub lists.
    #[error(
        "{file} came with wrong bytes: {reason}. It was removed; try again, and if that repeats, look at the proxy \
         or the mirror between"
    )]
    WrongBytes {
        /// The file.
        file: String,
        /// How they differ.
        reason: String,
    },

    /// The disk has too little room.
    #[error(
        "the disk of {folder} is full: {needed} more are needed, {free} are free. HF_HOME names a folder on another one"
    )]
    NoRoom {
        /// Folder of the cache.
        folder: PathBuf,
        /// Bytes that are still to come, for people.
        needed: String,
        /// Bytes that are free, for people.
        free: String,
    },

    /// Reading or writing a file failed.
    #[error("{context}: {source}")]
    Io {
        /// Operation that failed, with the path.
        context: String,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
}

impl Error {
    /// Wraps an I/O error with its `context`; use as `.map_err(Error::io("read refs/main"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }
}

fn advice(has_token: bool) -> &'static str {
    if has_token {
        ". Check the name, and that the token's account may read it and that it is still valid (`hf auth whoami`)"
    } else {
        ". Check the name; for a private one set HF_TOKEN, or log in with `hf auth login`"
    }
}

fn gate(has_token: bool, page: &str) -> String {
    if has_token {
        format!("the token's account has not been let in. Accept the terms at {page} with that account, then try again")
    } else {
        format!("accept the terms at {page}, then set HF_TOKEN to a token of that account (or `hf auth login`)")
    }
}

fn near(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; there is {}", known.join(", ")) }
}

/// Says what to do about the beginning of a commit's digits.
fn whole_commit(revision: &str) -> &'static str {
    let is_part = (4..40).contains(&revision.len()) && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_part { ". A commit is named by all of its 40 digits" } else { "" }
}

fn seconds(wait: Option<u64>) -> String {
    wait.map_or_else(String::new, |seconds| format!(" (it asks to wait {seconds} s)"))
}
