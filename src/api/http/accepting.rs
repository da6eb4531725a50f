//! Failures to accept a connection, counted, and told once for each time that they go on. Called by `serving`.

use std::io;
use std::time::{Duration, Instant};

use metrics::counter;
use nix::errno::Errno;

/// Time without a failure after which an outage is over: one descriptor that becomes free ends none.
const QUIET: Duration = Duration::from_secs(5);

/// Whether connections can be accepted now.
#[derive(Debug, Default)]
pub(super) struct Outage(Option<Failures>);

#[derive(Debug)]
struct Failures {
    first: Instant,
    last: Instant,
    number: u64,
}

impl Outage {
    /// Notes a failure; returns true if the next connection is likely to fail as well.
    pub(super) fn failed(&mut self, error: &io::Error) -> bool {
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        let name = match errno {
            Errno::EMFILE => "too_many_files_of_process",
            Errno::ENFILE => "too_many_files_of_system",
            Errno::ENOBUFS | Errno::ENOMEM => "out_of_memory",
            // Its client has gone meanwhile, or the network has: errors of that connection alone (accept(2)).
            Errno::ECONNABORTED | Errno::ECONNRESET | Errno::EINTR | Errno::EPROTO | Errno::EPERM => "of_connection",
            _ => "other",
        };
        counter!("attune_accept_errors_total", "error" => name).increment(1);
        if name == "of_connection" {
            return false;
        }
        let now = Instant::now();
        let failures = self.0.get_or_insert_with(|| {
            tracing::error!("cannot accept connections for now: {error}");
            Failures { first: now, last: now, number: 0 }
        });
        failures.last = now;
        failures.number += 1;
        true
    }

    /// Notes that a connection was accepted.
    pub(super) fn accepted(&mut self) {
        if let Some(failures) = self.0.take_if(|failures| failures.last.elapsed() >= QUIET) {
            let seconds = (failures.last - failures.first).as_secs_f64();
            tracing::info!(failures = failures.number, seconds, "connections are accepted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_an_outage_and_a_client_that_left_is_none() {
        let mut outage = Outage::default();
        assert!(!outage.failed(&Errno::ECONNABORTED.into()) && outage.0.is_none());
        assert!(outage.failed(&Errno::EMFILE.into()) && outage.failed(&Errno::EMFILE.into()));
        outage.accepted();
        let failures = outage.0.as_mut().expect("one success is not the end");
        assert_eq!(failures.number, 2);
        failures.last -= QUIET;
        outage.accepted();
        assert!(outage.0.is_none());
    }
}
