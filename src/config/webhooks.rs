//! Where webhooks go: the tables `[[webhooks]]`. `api::webhooks` sends to them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{Error, Result, Secret};

/// Types of events.
pub const EVENTS: [&str; 14] = [
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.cancelled",
    "batch.expired",
    "response.completed",
    "response.failed",
    "response.incomplete",
    "response.cancelled",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",
];
/// Endpoints at the most.
const MAX_ENDPOINTS: usize = 16;

/// An address that is told of events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where events are sent, `https://…` or `http://…`. It may hold a secret itself.
    pub url: Secret,
    /// The key of signatures: `whsec_` and Base64, or any text.
    pub secret: Secret,
    /// Types of events to send; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// The one organisation whose events are sent; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
}

impl Webhook {
    /// Returns the address.
    pub fn address(&self) -> Result<Url> {
        let url = Url::parse(self.url.as_str().trim()).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        url.ok_or_else(|| Error("url must have the form https://HOST/PATH (what is there now is not shown)".into()))
    }

    /// Returns the bytes of the key: what stands in Base64 after `whsec_`, or else the text itself.
    pub fn key(&self) -> Result<Vec<u8>> {
        let text = self.secret.as_str().trim();
        let key = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).unwrap_or_default(),
            None => text.as_bytes().to_vec(),
        };
        if key.is_empty() {
            return Err(Error("secret must be `whsec_` and Base64, or any other text (it is not shown)".into()));
        }
        Ok(key)
    }
}

/// Refuses endpoints that cannot be used.
pub(super) fn check(webhooks: &[Webhook]) -> Result<()> {
    if webhooks.len() > MAX_ENDPOINTS {
        return Err(Error(format!("webhooks: there are {}; at most {MAX_ENDPOINTS} are allowed", webhooks.len())));
    }
    for (index, webhook) in webhooks.iter().enumerate() {
        let fault = |what: &dyn std::fmt::Display| Error(format!("webhooks: number {}: {what}", index + 1));
        let address = webhook.address().map_err(|error| fault(&error))?;
        webhook.key().map_err(|error| fault(&error))?;
        if webhooks[..index].iter().any(|other| other.address().is_ok_and(|other| other == address)) {
            return Err(fault(&"its url is given twice: list all of its events in one table"));
        }
        if let Some(event) = webhook.events.iter().find(|event| !EVENTS.contains(&event.as_str())) {
            return Err(fault(&format!("`{event}` is not a type of events: use {}", EVENTS.join(", "))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, secret: &str, events: &[&str]) -> Webhook {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        Webhook { url: url.into(), secret: secret.into(), events, organization: None }
    }

    #[test]
    fn a_key_is_base64_after_its_prefix_and_otherwise_the_text() {
        assert_eq!(webhook("http://a/", "whsec_AAEC/w==", &[]).key().expect("a key"), [0, 1, 2, 255]);
        assert_eq!(webhook("http://a/", "plain", &[]).key().expect("a key"), b"plain");
    }

    #[test]
    fn what_cannot_be_sent_to_is_refused_without_showing_a_secret() {
        let good = || webhook("https://a.example/hook", "whsec_c2VjcmV0", &["batch.completed"]);
        assert!(check(&[]).is_ok() && check(&[good(), webhook("http://127.0.0.1:9/x", "text", &[])]).is_ok());
        for (wrong, says) in [
            (webhook("hidden", "x", &[]), "url must"),
            (webhook("ftp://hidden/", "x", &[]), "url must"),
            (webhook("https://hidden/", "", &[]), "secret must"),
            (webhook("https://hidden/", "whsec_?hidden", &[]), "secret must"),
            (webhook("https://hidden/", "x", &["job.done"]), "`job.done` is not a type of events"),
            (good(), "given twice"),
        ] {
            let said = check(&[good(), wrong]).expect_err(says).to_string();
            assert!(said.contains(says) && said.contains("number 2") && !said.contains("hidden"), "{said}");
        }
    }
}
