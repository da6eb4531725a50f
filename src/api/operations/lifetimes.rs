//! The fields that say when a file is to be removed. Used by `files`, `uploads` and `batches`.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::api::operations::checks::within;
use crate::datasets::parse::shorten;

/// When to remove a file.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct ExpiresAfter {
    /// Always `created_at`: of the file.
    pub anchor: String,
    /// Seconds after that, an hour to 30 days.
    #[schema(minimum = 3600, maximum = 2_592_000)]
    #[serde(deserialize_with = "values::number")]
    pub seconds: i64,
}

impl ExpiresAfter {
    /// Returns the seconds that the file stays; errors name the field `param`.
    pub(crate) fn lifetime(&self, param: &str) -> Result<i64> {
        lifetime(&self.anchor, self.seconds, [&format!("{param}.anchor"), &format!("{param}.seconds")])
    }
}

/// Returns the `seconds` that a file stays after the time that `anchor` names; errors name the fields `params`.
pub(super) fn lifetime(anchor: &str, seconds: i64, [of_anchor, of_seconds]: [&str; 2]) -> Result<i64> {
    if anchor != "created_at" {
        let message = format!("'{}' is not an anchor: use created_at.", shorten(anchor));
        return Err(Problem::invalid_code(of_anchor, "invalid_value", message));
    }
    within(of_seconds, Some(seconds), 3_600, 2_592_000).map(|_| seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    #[derive(Debug, Deserialize)]
    struct Body {
        expires_after: Option<ExpiresAfter>,
    }

    #[test]
    fn a_lifetime_is_an_hour_to_thirty_days_after_the_creation() {
        let read = |json: &str| {
            let body: Body = parse(format!("{{\"expires_after\":{json}}}").as_bytes())?;
            body.expires_after.map(|given| given.lifetime("expires_after")).transpose()
        };
        for (json, expected) in [
            ("null", None),
            (r#"{"anchor":"created_at","seconds":3600}"#, Some(3_600)),
            (r#"{"anchor":"created_at","seconds":2592000.0}"#, Some(2_592_000)),
        ] {
            assert_eq!(read(json).expect(json), expected);
        }
        for (json, param) in [
            (r#"{"seconds":3600}"#, "expires_after.anchor"),
            (r#"{"anchor":"created_at"}"#, "expires_after.seconds"),
            (r#"{"anchor":"last_active_at","seconds":3600}"#, "expires_after.anchor"),
            (r#"{"anchor":"created_at","seconds":3599}"#, "expires_after.seconds"),
            (r#"{"anchor":"created_at","seconds":2592001}"#, "expires_after.seconds"),
            (r#"{"anchor":"created_at","seconds":"soon"}"#, "expires_after.seconds"),
            ("3600", "expires_after"),
        ] {
            assert_eq!(read(json).expect_err(json).error.param.as_deref(), Some(param), "{json}");
        }
    }
}
