//! Where the hub and the cache are, and who asks: the variables of the environment that Hugging Face's own programs
//! read, with the same meaning. Read once by each command that needs them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
/// How long to wait for a connection, and for the next bytes, by default.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of everything that this crate does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the hub (`HF_ENDPOINT`).
    pub endpoint: Url,
    /// Proof of who asks (`HF_TOKEN`, or the file that `hf auth login` writes); `None` for nobody.
    pub token: Option<Token>,
    /// Folder of the cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Never ask the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How long to wait for a connection (`HF_HUB_ETAG_TIMEOUT`).
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes (`HF_HUB_DOWNLOAD_TIMEOUT`).
    pub read_timeout: Duration,
    /// Certificates to trust beside the built-in ones (`SSL_CERT_FILE`).
    pub certificates: Option<PathBuf>,
    /// Variable that names a SOCKS proxy, which cannot be used.
    pub socks: Option<&'static str>,
}

/// A token of the hub, which no message shows.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Returns the text to send.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl Settings {
    /// Reads the process's environment.
    pub fn from_environment() -> Result<Self> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// Reads the environment that `variable` looks up; what is empty counts as not set.
    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let home = || variable("HOME").map(PathBuf::from);
        let expand = |path: String| {
            let rest = path.strip_prefix("~/").map(str::to_owned);
            rest.zip(home()).map_or(PathBuf::from(path), |(rest, home)| home.join(rest))
        };
        let caches = variable("XDG_CACHE_HOME").map(expand).or_else(|| home().map(|home| home.join(".cache")));
        let hf_home = variable("HF_HOME").map(expand).or_else(|| caches.map(|caches| caches.join("huggingface")));
        let own = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(expand);
        let cache = own.or_else(|| hf_home.as_ref().map(|home| home.join("hub"))).ok_or_else(|| Error::Setting {
            variable: "HF_HOME",
            reason: "neither it nor HOME is set, so there is no place for a cache".into(),
        })?;
        let token_file = variable("HF_TOKEN_PATH").map(expand).or_else(|| hf_home.map(|home| home.join("token")));
        let is_true = |name: &str| {
            variable(name)
                .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str()))
        };
        let endpoint = endpoint(variable("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT))?;
        Ok(Self {
            token: token(variable, token_file.as_deref(), is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"))?,
            cache,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            connect_timeout: timeout(variable, "HF_HUB_ETAG_TIMEOUT")?,
            read_timeout: timeout(variable, "HF_HUB_DOWNLOAD_TIMEOUT")?,
            certificates: variable("SSL_CERT_FILE").map(PathBuf::from),
            socks: socks(variable, endpoint.scheme()),
            endpoint,
        })
    }
}

fn endpoint(text: &str) -> Result<Url> {
    let fault = || Error::Setting {
        variable: "HF_ENDPOINT",
        reason: format!("it is not the address of a hub, such as {ENDPOINT}"),
    };
    let mut url: Url = text.trim().trim_end_matches('/').parse().map_err(|_| fault())?;
    let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !is_plain {
        return Err(fault());
    }
    url.set_fragment(None);
    Ok(url)
}

/// Returns the token to send, in the order in which Hugging Face's programs look for it.
fn token(variable: &dyn Fn(&str) -> Option<String>, file: Option<&Path>, only_explicit: bool) -> Result<Option<Token>> {
    if only_explicit {
        return Ok(None);
    }
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = variable(name) {
            return checked(name, &text).map(Some);
        }
    }
    // Most people have none.
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).filter(|text| !text.trim().is_empty());
    text.map(|text| checked("HF_TOKEN_PATH", &text)).transpose()
}

fn checked(variable: &'static str, text: &str) -> Result<Token> {
    let text = text.trim();
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Token(text.to_owned()));
    }
    let reason = "the token has characters that no token has, such as a blank or a line break".into();
    Err(Error::Setting { variable, reason })
}

fn timeout(variable: &dyn Fn(&str) -> Option<String>, name: &'static str) -> Result<Duration> {
    let Some(text) = variable(name) else { return Ok(PATIENCE) };
    let seconds: Option<f64> = text.trim().parse().ok();
    seconds
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| Error::Setting { variable: name, reason: "it must be a number of seconds above 0".into() })
}

/// Returns the variable that sends requests of `scheme` through a SOCKS proxy.
fn socks(variable: &dyn Fn(&str) -> Option<String>, scheme: &str) -> Option<&'static str> {
    let of_scheme = if scheme == "https" { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let mut order = of_scheme.into_iter().chain(["ALL_PROXY", "all_proxy"]);
    let (name, proxy) = order.find_map(|name| Some((name, variable(name)?)))?;
    proxy.trim().to_ascii_lowercase().starts_with("socks").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::read(&find)
    }

    #[test]
    fn the_cache_is_where_hugging_faces_programs_have_it() {
        for (pairs, folder) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(read(pairs).expect("settings").cache, Path::new(folder), "{pairs:?}");
        }
        assert!(read(&[]).is_err());
    }

    #[test]
    fn a_token_is_taken_from_the_first_place_that_has_one_and_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().to_str().expect("text");
        std::fs::write(folder.path().join("token"), "hf_file\n").expect("written");
        std::fs::write(folder.path().join("other"), "hf_other").expect("written");
        let other = folder.path().join("other");
        let other = ("HF_TOKEN_PATH", other.to_str().expect("text"));
        let token = |more: &[(&str, &str)]| {
            let settings = read(&[&[("HF_HOME", home)], more].concat()).expect("settings");
            assert!(!format!("{settings:?}").contains("hf_"));
            settings.token.map(|token| token.0)
        };
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[other]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[other, ("HF_TOKEN", " hf_env\n")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let said = read(&[("HF_HOME", home), ("HF_TOKEN", "hf_se cret")]).expect_err("a blank").to_string();
        assert!(said.contains("HF_TOKEN") && !said.contains("cret"), "{said}");
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "ftp://x"),
            ("HF_ENDPOINT", "http://user:secret@x"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("HF_HUB_ETAG_TIMEOUT", "-1"),
        ] {
            let said = read(&[("HOME", "/h"), (name, value)]).expect_err(value).to_string();
            assert!(said.contains(name) && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn a_socks_proxy_is_noticed_where_it_would_be_used() {
        let socks = |pairs: &[(&str, &str)]| read(&[&[("HOME", "/h")], pairs].concat()).expect("settings").socks;
        assert_eq!(socks(&[("ALL_PROXY", "socks5h://x:1")]), Some("ALL_PROXY"));
        assert_eq!(socks(&[("ALL_PROXY", "socks5://x:1"), ("https_proxy", "http://y:2")]), None);
        assert_eq!(socks(&[("HTTP_PROXY", "socks5://x:1")]), None);
    }
}
