//! How long what has ended is kept: the settings under `retention`. `jobs::retention` removes what is older.

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A century: a longer time is a mistake, where 0 is meant.
const MAX_DAYS: u32 = 36_500;

/// Days for which things are kept; 0 keeps them for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Events of a job, counted from its end.
    pub job_event_days: u32,
    /// Jobs that have ended and of which no model is left, with their result files; counted from the end.
    pub ended_job_days: u32,
    /// Sums of tokens by day, key and model.
    pub usage_days: u32,
    /// Chats that clients asked to store, counted from the answer.
    pub stored_completion_days: u32,
    /// Responses that have ended, counted from when they were asked for, and conversations, from when they were last added
    /// to.
    pub response_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            job_event_days: 90,
            ended_job_days: 365,
            usage_days: 1_100,
            stored_completion_days: 30,
            response_days: 30,
        }
    }
}

impl Retention {
    /// Refuses times that cannot be meant.
    pub(super) fn check(&self) -> Result<()> {
        let days = [
            self.job_event_days,
            self.ended_job_days,
            self.usage_days,
            self.stored_completion_days,
            self.response_days,
        ];
        if days.iter().any(|days| *days > MAX_DAYS) {
            return Err(Error(format!(
                "retention: job_event_days, ended_job_days, usage_days, stored_completion_days and response_days must be 0 \
                 (for ever) to {MAX_DAYS}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_days_or_for_ever() {
        assert!(Retention::default().check().is_ok());
        assert!(Retention { usage_days: 0, ..Retention::default() }.check().is_ok());
        let said = Retention { usage_days: MAX_DAYS + 1, ..Retention::default() }.check().expect_err("a mistake");
        assert!(said.to_string().contains("usage_days"), "{said}");
    }
}
