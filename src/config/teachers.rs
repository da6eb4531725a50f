//! Models of other servers: the tables `[teachers.NAME]`. Jobs of distillation and graders ask them as `teacher:NAME`;
//! `teachers` sends the requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::secrets::first_line;
use super::{Error, Result, Secret};

/// Teachers at the most.
const MAX_TEACHERS: usize = 64;
/// A price above it, in money per million tokens, is a mistake.
const MAX_PRICE: f64 = 1e6;
/// The longest that a request may take, in seconds: an hour.
const MAX_TIMEOUT: u64 = 3600;
/// Tokens of an answer, and of a template, that can be meant.
const MAX_TOKENS: u32 = 1 << 20;

/// A model of another server with OpenAI's API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Where the API is, `https://HOST/v1`. Addresses of private networks are allowed: only the operator names one.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// Environment variable that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// File that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Requests per minute of this server to the teacher; `None`: as many as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// What the teacher takes for its tokens.
    #[serde(default)]
    pub price_per_million: TeacherPrice,
    /// Tokens of an answer at the most, where a request does not say.
    #[serde(default = "max_tokens")]
    pub max_tokens: u32,
    /// Field of a request that bounds the answer.
    #[serde(default)]
    pub max_tokens_field: MaxTokensField,
    /// Tokens that the teacher's own template adds to a prompt at the most: budgets count with them.
    #[serde(default = "prompt_overhead_tokens")]
    pub prompt_overhead_tokens: u32,
    /// Seconds that a request may take.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
    /// The key, once it has been read.
    #[serde(skip)]
    pub key: Option<Secret>,
}

/// Prices in money per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherPrice {
    /// Tokens of prompts.
    pub prompt: f64,
    /// Tokens of answers.
    pub completion: f64,
}

/// A field that bounds an answer. A server that does not know the one that is sent would answer without a bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// Known to every server; some newer models of OpenAI refuse it.
    #[default]
    MaxTokens,
    /// The newer name.
    MaxCompletionTokens,
}

impl MaxTokensField {
    /// Returns the name of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

const fn max_tokens() -> u32 {
    1024
}

const fn prompt_overhead_tokens() -> u32 {
    256
}

const fn timeout_seconds() -> u64 {
    300
}

impl Teacher {
    /// Refuses a teacher whose key is not where it should be.
    pub fn check_key(&self) -> Result<()> {
        if self.api_key_env.is_none() || self.key.is_some() {
            return Ok(());
        }
        // Whoever wrote the key itself there must not find it in a log.
        let missing = "api_key_env must be the name of an environment variable that holds the key, and there is no such \
                       variable (what is there now is not shown)";
        Err(Error(missing.into()))
    }

    /// Returns the address of the route for chats.
    pub fn chat_url(&self) -> Result<Url> {
        let fault = || Error("base_url must have the form https://HOST/v1, without a user, a query or a `#`".into());
        let url = Url::parse(self.base_url.trim()).map_err(|_| fault())?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain || url.fragment().is_some() {
            return Err(fault());
        }
        Url::parse(&format!("{}/chat/completions", url.as_str().trim_end_matches('/'))).map_err(|_| fault())
    }
}

/// Reads the keys of teachers.
pub(super) fn read_keys(teachers: &mut BTreeMap<String, Teacher>) -> Result<()> {
    for (name, teacher) in teachers {
        let fault = |what: &str| Error(format!("teachers: `{name}`: {what}"));
        teacher.key = match (&teacher.api_key_env, &teacher.api_key_file) {
            (Some(_), Some(_)) => return Err(fault("api_key_env and api_key_file are both set: remove one")),
            // Commands that ask no teacher do without: a variable that is not there is told by [`Teacher::check_key`].
            (Some(variable), None) => {
                let key = std::env::var(variable).ok().map(|key| key.trim().to_owned());
                key.filter(|key| !key.is_empty()).map(Secret::from)
            }
            (None, Some(file)) => Some(first_line(&format!("teachers: `{name}`: api_key_file"), file)?),
            (None, None) => None,
        };
    }
    Ok(())
}

/// Refuses teachers that cannot be asked.
pub(super) fn check(teachers: &BTreeMap<String, Teacher>) -> Result<()> {
    if teachers.len() > MAX_TEACHERS {
        return Err(Error(format!("teachers: there are {}; at most {MAX_TEACHERS} are allowed", teachers.len())));
    }
    for (name, teacher) in teachers {
        let fault = |what: &str| Error(format!("teachers: `{name}`: {what}"));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
            return Err(fault("a name has 1 to 64 letters (a to z), digits, `-`, `_` and `.`"));
        }
        teacher.chat_url().map_err(|Error(what)| fault(&what))?;
        if teacher.model.trim().is_empty() {
            return Err(fault("model is empty"));
        }
        let key = teacher.key.as_ref().map_or("", Secret::as_str);
        if key.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(fault("the key has characters that no key has (it is not shown)"));
        }
        if teacher.requests_per_minute == Some(0) {
            return Err(fault("requests_per_minute must be at least 1"));
        }
        let TeacherPrice { prompt, completion } = teacher.price_per_million;
        if ![prompt, completion].into_iter().all(is_price) {
            return Err(fault(
                "prices are numbers from 0 to 1,000,000 per million tokens, with 6 digits behind the point at the most",
            ));
        }
        if !(1..=MAX_TOKENS).contains(&teacher.max_tokens) || teacher.prompt_overhead_tokens > MAX_TOKENS {
            return Err(fault("max_tokens must be 1 to 1048576, prompt_overhead_tokens 0 to 1048576"));
        }
        if !(1..=MAX_TIMEOUT).contains(&teacher.timeout_seconds) {
            return Err(fault("timeout_seconds must be 1 to 3600"));
        }
    }
    Ok(())
}

/// True for a price that is a whole number of millionths.
fn is_price(price: f64) -> bool {
    let millionths = price * 1e6;
    (0.0..=MAX_PRICE).contains(&price) && (millionths - millionths.round()).abs() < 1e-3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<()> {
        let mut teachers = toml_of(text);
        read_keys(&mut teachers)?;
        check(&teachers)
    }

    fn toml_of(text: &str) -> BTreeMap<String, Teacher> {
        use figment::providers::Format as _;
        figment::Figment::from(figment::providers::Toml::string(text)).extract().expect("tables")
    }

    #[test]
    fn a_teacher_needs_an_address_and_a_model_and_may_be_on_a_private_network() {
        let asked = &toml_of("[big]\nbase_url = \"http://127.0.0.1:9/v1/\"\nmodel = \"m\"")["big"];
        assert_eq!(asked.chat_url().expect("fine").as_str(), "http://127.0.0.1:9/v1/chat/completions");
        assert_eq!((asked.max_tokens, asked.max_tokens_field.name()), (1024, "max_tokens"));
        let table = "[big]\nmodel = \"m\"\nbase_url = \"https://a/v1\"\n";
        let priced = "price_per_million = { prompt = 0.15, completion = 0.6 }";
        assert!(read(&format!("{table}{priced}")).is_ok());
        for (further, says) in [
            ("requests_per_minute = 0", "requests_per_minute"),
            ("timeout_seconds = 0", "timeout_seconds"),
            ("max_tokens = 0", "max_tokens"),
            ("price_per_million = { prompt = -1.0 }", "prices are"),
            ("price_per_million = { prompt = 0.0000001 }", "6 digits"),
            ("api_key_env = \"A\"\napi_key_file = \"b\"", "both set"),
        ] {
            let said = read(&format!("{table}{further}")).expect_err(says).to_string();
            assert!(said.contains(says) && said.contains("`big`") && !said.contains("hidden"), "{said}");
        }
        let mut keyless = toml_of(&format!("{table}api_key_env = \"sk-hidden\""));
        read_keys(&mut keyless).expect("commands that ask no teacher do without");
        let said = keyless["big"].check_key().expect_err("no key").to_string();
        assert!(said.contains("no such variable") && !said.contains("hidden"), "{said}");
        for wrong in ["ftp://a/v1", "a", "https://user:word@a/v1", "https://a/v1?key=1"] {
            assert!(read(&format!("[big]\nmodel = \"m\"\nbase_url = \"{wrong}\"")).is_err(), "{wrong}");
        }
        assert!(read("[\"a b\"]\nmodel = \"m\"\nbase_url = \"https://a/v1\"").is_err());
    }
}
