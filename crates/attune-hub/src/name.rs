//! Names of models as people write them: `owner/name`, `owner/name@revision`, `owner/name:Q4_K_M`, a file of a
//! repository, or the address of its page. Read by the command line and the configuration.

use std::fmt;

use crate::{Error, Result};

/// What a name in the configuration begins with, to be told from a path.
pub const PREFIX: &str = "hf:";
/// The branch that is meant where no revision is named.
pub const MAIN: &str = "main";

/// Forms of a hub's address that people copy out of a browser.
const HOSTS: [&str; 2] = ["huggingface.co/", "hf.co/"];
/// Longest part of a repository's name, as the hub has it.
const LONGEST_PART: usize = 96;
const LONGEST_REVISION: usize = 255;

/// A repository's name, such as `Qwen/Qwen3-0.6B`: safe as part of a path and of an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// What is meant of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The model in the form that it has: a folder, an adapter, or the usual one of its GGUF files.
    Usual,
    /// The GGUF file of this quantization, such as `Q4_K_M`.
    Tag(String),
    /// This GGUF file.
    File(String),
}

/// The name of a model on a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// The repository.
    pub repository: Repository,
    /// A branch, a tag or a commit; `None` for the branch `main`.
    pub revision: Option<String>,
    /// What is meant of it.
    pub pick: Pick,
}

impl Repository {
    /// Checks a repository's name: one or two parts of letters, digits, `.`, `_` and `-`.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        (parts.len() <= 2 && parts.iter().all(|part| is_part(part))).then(|| Self(text.to_owned()))
    }

    /// Returns the name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ModelName {
    /// Returns the revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Returns the name that follows `hf:` in a path of the configuration; `None` if the path is one of a file system.
    pub fn of_path(path: &std::path::Path) -> Option<Result<Self>> {
        path.to_str()?.strip_prefix(PREFIX).map(str::parse)
    }

    /// Returns the command that downloads the model.
    pub fn command(&self) -> String {
        format!("attune pull {self}")
    }
}

/// Returns `true` for 40 hexadecimal digits: a commit, which never changes.
pub fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns `true` for a path that stays inside the folder that it is joined to.
pub(crate) fn is_inside(path: &str) -> bool {
    let strange = |character: char| character.is_control() || character == '\\';
    !path.chars().any(strange) && path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

fn is_part(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| !b".-".contains(byte));
    let bytes = part.as_bytes();
    part.len() <= LONGEST_PART
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| allowed(*byte))
        && !part.contains("--")
        && !part.contains("..")
}

/// Returns `true` for a name that git allows, and that is safe as a path.
fn is_revision(text: &str) -> bool {
    let strange =
        |character: char| character.is_control() || character.is_whitespace() || "\\:?*[^~@{".contains(character);
    text.len() <= LONGEST_REVISION
        && is_inside(text)
        && !text.contains("..")
        && !text.chars().any(strange)
        && text.split('/').all(|part| !part.starts_with(['.', '-']))
}

impl std::str::FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fault = |reason: &str| Error::Name { name: text.to_owned(), reason: reason.to_owned() };
        let plain = text.trim();
        let plain = plain.strip_prefix(PREFIX).unwrap_or(plain).trim_start_matches("//");
        let plain = plain.strip_prefix("https://").or_else(|| plain.strip_prefix("http://")).unwrap_or(plain);
        let page = HOSTS.iter().find_map(|host| plain.strip_prefix(host));
        if page.is_none() && text.contains("://") && !text.starts_with("hf://") {
            return Err(fault("only addresses of huggingface.co are read; HF_ENDPOINT names another hub"));
        }
        if page.is_some_and(|page| page.starts_with("datasets/") || page.starts_with("spaces/")) {
            return Err(fault("it is the address of a data set or a space, not of a model"));
        }
        let plain = page.map_or(plain, |page| page.split(['?', '#']).next().unwrap_or(page)).trim_end_matches('/');
        let (left, revision, tag) = split(plain).ok_or_else(|| fault("it has two tags"))?;
        let (left, revision) = page_of_revision(left, revision);
        let mut parts = left.splitn(3, '/');
        let repository = parts.by_ref().take(2).collect::<Vec<_>>().join("/");
        let file = parts.next();
        let repository = Repository::parse(&repository).ok_or_else(|| fault("it is not of the form OWNER/NAME"))?;
        if revision.as_deref().is_some_and(|revision| !is_revision(revision)) {
            return Err(fault("the part after `@` is not the name of a branch, a tag or a commit"));
        }
        let pick = match (file, tag) {
            (None, None) => Pick::Usual,
            (None, Some(tag)) if is_part(tag) => Pick::Tag(tag.to_owned()),
            (None, Some(_)) => return Err(fault("the part after `:` is not a tag such as Q4_K_M")),
            (Some(file), None) if is_inside(file) && is_gguf(file) => Pick::File(file.to_owned()),
            (Some(_), None) => return Err(fault("a file can be named only if it is a GGUF file")),
            (Some(_), Some(_)) => return Err(fault("name a file or a tag, not both")),
        };
        Ok(Self { repository, revision, pick })
    }
}

/// Splits a name into what stands before `@` and `:`, the revision and the tag, which may come in either order; `None`
/// if there are two tags.
fn split(text: &str) -> Option<(&str, Option<String>, Option<&str>)> {
    let (left, right) = text.split_once('@').map_or((text, None), |(left, right)| (left, Some(right)));
    let (left, first) = left.split_once(':').map_or((left, None), |(left, tag)| (left, Some(tag)));
    let (revision, second) = match right.and_then(|right| right.split_once(':')) {
        Some((revision, tag)) => (Some(revision), Some(tag)),
        None => (right, None),
    };
    if first.is_some() && second.is_some() {
        return None;
    }
    Some((left, revision.map(str::to_owned), first.or(second)))
}

/// Reads the revision out of a page's address: `owner/name/tree/main`, `owner/name/blob/main/file.gguf`.
fn page_of_revision(left: &str, revision: Option<String>) -> (String, Option<String>) {
    let parts: Vec<&str> = left.splitn(5, '/').collect();
    match parts[..] {
        [owner, name, "tree" | "blob" | "resolve", at] => (format!("{owner}/{name}"), revision.or(Some(at.to_owned()))),
        [owner, name, "blob" | "resolve", at, file] => {
            (format!("{owner}/{name}/{file}"), revision.or(Some(at.to_owned())))
        }
        _ => (left.to_owned(), revision),
    }
}

/// Returns `true` for the name of a GGUF file.
pub(crate) fn is_gguf(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("gguf"))
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.repository)?;
        if let Pick::File(file) = &self.pick {
            write!(formatter, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        match &self.pick {
            Pick::Tag(tag) => write!(formatter, ":{tag}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<ModelName>().map_or_else(|error| error.to_string(), |name| name.to_string())
    }

    #[test]
    fn a_name_is_read_in_every_form_that_people_copy() {
        for (text, means) in [
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
            ("hf:Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
            ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
            ("gpt2", "gpt2"),
            ("a/b@v1", "a/b@v1"),
            ("a/b@refs/pr/1", "a/b@refs/pr/1"),
            ("a/b:Q4_K_M", "a/b:Q4_K_M"),
            ("a/b@v1:q8_0", "a/b@v1:q8_0"),
            ("a/b:q8_0@v1", "a/b@v1:q8_0"),
            ("a/b/sub/x.gguf", "a/b/sub/x.gguf"),
            ("a/b/x.gguf@v1", "a/b/x.gguf@v1"),
            ("hf.co/a/b:Q4_0", "a/b:Q4_0"),
            ("https://huggingface.co/a/b", "a/b"),
            (" a/b\n", "a/b"),
            ("https://huggingface.co/a/b/", "a/b"),
            ("https://huggingface.co/a/b/tree/v1", "a/b@v1"),
            ("https://huggingface.co/a/b/blob/main/x.gguf?download=true", "a/b/x.gguf@main"),
            ("https://huggingface.co/a/b/resolve/main/d/x.gguf", "a/b/d/x.gguf@main"),
        ] {
            assert_eq!(shown(text), means, "{text}");
            assert_eq!(shown(means), means, "what is shown can be written again");
        }
    }

    #[test]
    fn a_name_that_could_leave_its_folder_or_means_nothing_is_refused_with_the_reason() {
        for (text, says) in [
            ("", "OWNER/NAME"),
            ("../x", "OWNER/NAME"),
            ("a/..", "OWNER/NAME"),
            ("a//b", "OWNER/NAME"),
            ("/etc/passwd", "OWNER/NAME"),
            ("a/b--c", "OWNER/NAME"),
            ("a b/c", "OWNER/NAME"),
            ("a/b@../../x", "after `@`"),
            ("a/b@", "after `@`"),
            ("a/b@a..b", "after `@`"),
            ("a/b@/etc", "after `@`"),
            ("a/b:", "after `:`"),
            ("a/b:Q4/K", "after `:`"),
            ("a/b/../x.gguf", "only if it is a GGUF"),
            ("a/b/model.safetensors", "only if it is a GGUF"),
            ("a/b/x.gguf:Q4", "not both"),
            ("a/b:x@v:y", "two tags"),
            ("https://example.org/a/b", "HF_ENDPOINT"),
            ("https://huggingface.co/datasets/a/b", "not of a model"),
        ] {
            assert!(shown(text).contains(says), "{text}: {}", shown(text));
        }
    }

    #[test]
    fn only_a_path_with_the_prefix_is_a_name() {
        assert!(ModelName::of_path("models/demo".as_ref()).is_none());
        assert!(ModelName::of_path("hf:a/b".as_ref()).is_some_and(|name| name.is_ok()));
        assert!(ModelName::of_path("hf:../b".as_ref()).is_some_and(|name| name.is_err()));
    }
}
