//! How often, and after which pauses, a request is sent again.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use crate::{Error, Result};

/// Faults in a row, with no progress between them, after which it is given up.
const MOST_FAULTS: u32 = 5;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest that a hub may ask to wait: its limits count in windows of five minutes.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// Faults since the last progress.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    faults: u32,
}

impl Patience {
    /// Forgets the faults: something has arrived.
    pub(crate) fn reset(&mut self) {
        self.faults = 0;
    }

    /// Waits before the next try, as long as the hub asked to or else longer each time, and tells `notice` so; returns
    /// the error once it is enough.
    pub(crate) async fn rest(
        &mut self,
        (error, wait): (Error, Option<Duration>),
        notice: impl FnOnce(&Error, Duration),
    ) -> Result<()> {
        self.faults += 1;
        let pause = wait.unwrap_or(FIRST_PAUSE * 2_u32.pow(self.faults - 1));
        if self.faults >= MOST_FAULTS || pause > LONGEST_WAIT {
            return Err(error);
        }
        notice(&error, pause);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Returns `None` for an answer that stays, else how long the hub asks to wait.
#[allow(clippy::option_option, reason = "an answer that passes may say how long, or not")]
pub(crate) fn passing_wait(response: &Response) -> Option<Option<Duration>> {
    let passing = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    passing.then(|| retry_after(response).map(Duration::from_secs))
}

/// Returns the seconds that the hub asks to wait; the form with a date is not used by hubs.
pub(crate) fn retry_after(response: &Response) -> Option<u64> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(wait: Option<Duration>) -> (Error, Option<Duration>) {
        (Error::Unreachable { host: "h".into(), reason: "r".into() }, wait)
    }

    #[tokio::test]
    async fn pauses_grow_until_it_is_enough_and_progress_begins_anew() {
        let mut patience = Patience::default();
        let short = Duration::from_millis(1);
        for _ in 0..20 {
            patience.rest(fault(Some(short)), |_, pause| assert_eq!(pause, short)).await.expect("another try");
            patience.reset();
        }
        for _ in 1..MOST_FAULTS {
            patience.rest(fault(Some(short)), |_, _| ()).await.expect("another try");
        }
        assert!(patience.rest(fault(Some(short)), |_, _| ()).await.is_err());
        let mut patience = Patience::default();
        assert!(patience.rest(fault(Some(LONGEST_WAIT * 2)), |_, _| ()).await.is_err(), "nobody waits so long");
    }
}
