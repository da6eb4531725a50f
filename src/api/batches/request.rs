//! The body that creates a batch.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::access::auth::Caller;
use crate::api::http::error::{Problem, Result};
use crate::api::operations::checks::check_metadata;
use crate::api::operations::lifetimes::ExpiresAfter;
use crate::jobs::batches::NewBatch;

/// Routes that a batch may ask.
pub(super) const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
/// The one completion window.
const WINDOW: &str = "24h";

/// A request for a batch.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateBatch {
    /// Id of a file with the purpose `batch`: one request on each line.
    pub input_file_id: String,
    /// `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` or `/v1/responses`: the `url` of every line.
    pub endpoint: String,
    /// Always `24h`: what has not been answered by then goes to the error file.
    pub completion_window: String,
    /// Up to 16 notes of your own: names of up to 64 characters, texts of up to 512.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// When to remove the output and the error file; without this they stay until they are deleted.
    pub output_expires_after: Option<ExpiresAfter>,
}

impl CreateBatch {
    /// Refuses what cannot be done.
    pub(super) fn check(&self) -> Result<()> {
        if !ENDPOINTS.contains(&self.endpoint.as_str()) {
            let message =
                format!("'{}' is not one of the endpoints of batches: {}.", self.endpoint, ENDPOINTS.join(", "));
            return Err(Problem::invalid_code("endpoint", "invalid_value", message));
        }
        if self.completion_window != WINDOW {
            let message = format!("'completion_window' must be '{WINDOW}'.");
            return Err(Problem::invalid_code("completion_window", "invalid_value", message));
        }
        self.output_lifetime()?;
        check_metadata(self.metadata.as_ref())
    }

    /// Returns the seconds that the batch's files stay; `None` until they are deleted.
    fn output_lifetime(&self) -> Result<Option<i64>> {
        self.output_expires_after.as_ref().map(|given| given.lifetime("output_expires_after")).transpose()
    }

    /// Returns the batch of the caller.
    pub(super) fn into_batch(self, caller: &Caller) -> Result<NewBatch> {
        let output_lifetime = self.output_lifetime()?;
        let limits = caller.limiter.allowance();
        let whole = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(NewBatch {
            organization: caller.organization.to_string(),
            api_key: caller.key.to_string(),
            requests_per_minute: whole(limits.requests_per_minute),
            tokens_per_minute: whole(limits.tokens_per_minute),
            endpoint: self.endpoint,
            input_file: self.input_file_id,
            output_lifetime,
            metadata: self.metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn param(more: &str) -> Option<String> {
        let body = format!(r#"{{"input_file_id":"file-a"{more}}}"#);
        let checked = parse::<CreateBatch>(body.as_bytes()).and_then(|request| request.check());
        checked.err().map(|problem| problem.error.param.expect("a field at fault").into_owned())
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let fine = r#","endpoint":"/v1/embeddings","completion_window":"24h","metadata":{"a":"b"}"#;
        assert_eq!(param(fine), None);
        assert_eq!(param(&format!(r#"{fine},"output_expires_after":null"#)), None);
        let day = r#","output_expires_after":{"anchor":"created_at","seconds":86400}"#;
        assert_eq!(param(&format!("{fine}{day}")), None);
        for (more, at_fault) in [
            (r#","completion_window":"24h""#, "endpoint"),
            (r#","endpoint":"/v1/moderations","completion_window":"24h""#, "endpoint"),
            (r#","endpoint":"/v1/embeddings","completion_window":"1h""#, "completion_window"),
            (
                &format!(r#"{fine},"output_expires_after":{{"anchor":"created_at","seconds":60}}"#),
                "output_expires_after.seconds",
            ),
        ] {
            assert_eq!(param(more).as_deref(), Some(at_fault), "{more}");
        }
        let notes = r#","endpoint":"/v1/embeddings","completion_window":"24h","metadata":{"a":1}"#;
        assert_eq!(param(notes).as_deref(), Some("metadata"));
    }
}
