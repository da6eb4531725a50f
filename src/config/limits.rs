//! The limits on requests that an operator can set under `limits`, with their defaults and checks.

use std::time::Duration;

use attune_engine::EngineLimits;
use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::model::lora::MAX_RANK;

/// More memory, in MiB, than any machine has: a larger setting is a mistake.
const MAX_MIB: u64 = 1 << 30;
/// The longest that a key may go on working without the database, in seconds: a day.
const MAX_KEYS_OUTAGE: u64 = 86_400;

/// The longest time that a connection may be idle, in seconds: a day.
const MAX_IDLE: u64 = 86_400;
/// Connections of a server at the most, unless the configuration says otherwise.
const MOST_CONNECTIONS: usize = 4096;
/// Fewer and a server could not answer its own probes beside requests.
const LEAST_CONNECTIONS: usize = 8;
/// Descriptors for everything but connections and those of the database: the log, listeners, files that are read.
const OTHER_DESCRIPTORS: u64 = 64;
/// Places that running requests leave to probes and new clients, at the most.
const RESERVED_CONNECTIONS: usize = 16;

/// How many connections a server may have, and for how long without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All of them.
    pub most: usize,
    /// Those of one key, or of one address that has sent no key.
    pub most_of_one: usize,
    /// Time without a request.
    pub idle: Duration,
    /// Time for which a client may take nothing of its answer.
    pub unread: Duration,
}

impl ConnectionLimits {
    /// Returns how many connections may have a running request: some places are left to probes and new clients.
    pub fn most_busy(&self) -> usize {
        self.most - (self.most / 8).clamp(1, RESERVED_CONNECTIONS)
    }
}

/// Limits on requests; every one is bounded by default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sequences that run in one step; `None`: 64, on a GPU 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<usize>,
    /// Tokens (prompt and new ones) in one step; `None`: 512, on a GPU 2,048.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_step_tokens: Option<usize>,
    /// Sequences that wait for a place before new ones are answered with 429; as many again may wait for organisations
    /// that have few waiting.
    pub max_waiting: usize,
    /// Seconds that a request waits to begin before it is answered with 429.
    pub max_queue_seconds: u64,
    /// Seconds that a request may take in all, from its arrival to its last token, before it is ended with 504.
    pub max_request_seconds: u64,
    /// Keep the keys and values of past prompts and answers in free cache blocks, for requests that begin alike.
    pub prefix_cache: bool,
    /// Memory for keys and values per base model, in MiB; `None`: 1024 in main memory, on a GPU a part of what is left
    /// of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_mib: Option<usize>,
    /// Bytes of a JSON request body.
    pub max_body_bytes: usize,
    /// Bytes of an uploaded file.
    pub max_file_bytes: usize,
    /// Least speed of an upload in bytes per second, on average of 30 seconds; a slower one is answered with 408.
    pub upload_bytes_per_second: u64,
    /// Seconds that an upload may take in all.
    pub max_upload_seconds: u64,
    /// Seconds for which a client may take nothing of its answer before its connection is closed.
    pub max_unread_seconds: u64,
    /// Memory for the bodies, values, texts and tokens of requests, in MiB; an organisation may hold half of it, and a
    /// request an eighth.
    pub request_mib: u64,
    /// Texts in one embeddings request.
    pub max_inputs: usize,
    /// Seconds that the schemas of a request may take to be compiled.
    pub grammar_seconds: u64,
    /// Memory for the grammars of running answers, in MiB; an organisation may hold a quarter of it, and a request a
    /// quarter of that.
    pub grammar_mib: u64,
    /// Memory for compiled grammars that are kept for the same schemas, in MiB; 0 keeps none.
    pub grammar_cache_mib: u64,
    /// Requests per minute of a key without a limit of its own.
    pub requests_per_minute: u64,
    /// Tokens per minute, prompts and answers together, of a key without a limit of its own.
    pub tokens_per_minute: u64,
    /// Requests of one key that run at a time.
    pub concurrent_requests: usize,
    /// Seconds since the database last confirmed a key for which the key goes on working while the database is away;
    /// 0: none.
    pub keys_outage_seconds: u64,
    /// Connections at a time; `None`: half of what the descriptors of the process allow, 4,096 at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Connections of one key, or of one address without a key; `None`: half of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_per_client: Option<usize>,
    /// Seconds after which a connection without a request is closed.
    pub idle_connection_seconds: u64,
    /// Bytes of the weights of an adapter that is loaded from a folder or an archive.
    pub max_adapter_bytes: u64,
    /// Rank of such an adapter, 1 to 512.
    pub max_adapter_rank: usize,
    /// Memory for adapters that are ready to compute, on the device of the models, in MiB.
    pub adapter_device_mib: u64,
    /// Main memory for adapters' files that have been checked, in MiB; 0 reads them from the disk again.
    pub adapter_host_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sequences: None,
            max_step_tokens: None,
            max_waiting: 1024,
            max_queue_seconds: 600,
            max_request_seconds: 3600,
            prefix_cache: true,
            kv_cache_mib: None,
            max_body_bytes: 8 << 20,
            max_file_bytes: 512 << 20,
            upload_bytes_per_second: 1024,
            max_upload_seconds: 7200,
            max_unread_seconds: 60,
            request_mib: 2048,
            max_inputs: 2048,
            grammar_seconds: 5,
            grammar_mib: 2048,
            grammar_cache_mib: 64,
            requests_per_minute: 60_000,
            tokens_per_minute: 100_000_000,
            concurrent_requests: 256,
            keys_outage_seconds: 600,
            max_connections: None,
            max_connections_per_client: None,
            idle_connection_seconds: 180,
            max_adapter_bytes: 1 << 30,
            max_adapter_rank: 256,
            adapter_device_mib: 1024,
            adapter_host_mib: 2048,
        }
    }
}

impl Limits {
    /// Returns the limits of each engine.
    pub fn engine(&self) -> EngineLimits {
        EngineLimits {
            max_sequences: self.max_sequences,
            max_step_tokens: self.max_step_tokens,
            max_waiting: self.max_waiting,
            max_queue_seconds: self.max_queue_seconds,
            max_request_seconds: self.max_request_seconds,
            prefix_cache: self.prefix_cache,
            kv_cache_mib: self.kv_cache_mib,
        }
    }

    /// Returns for how long a key goes on working without the database.
    pub fn keys_outage(&self) -> Duration {
        Duration::from_secs(self.keys_outage_seconds)
    }

    /// Returns the limits of connections for a process that may have `descriptors`, of which some go to the database.
    pub fn connections(&self, descriptors: Option<u64>, database: u32) -> ConnectionLimits {
        let free = descriptors.map(|all| all.saturating_sub(OTHER_DESCRIPTORS + u64::from(database)));
        let allowed = free.map_or(MOST_CONNECTIONS, |free| usize::try_from(free).unwrap_or(usize::MAX));
        // A request may open a file beside its connection.
        let most = self.max_connections.unwrap_or((allowed / 2).clamp(LEAST_CONNECTIONS, MOST_CONNECTIONS));
        if most > allowed {
            tracing::warn!(
                max_connections = most,
                allowed,
                "limits: this process has too few file descriptors for max_connections"
            );
        }
        let most_of_one = self.max_connections_per_client.unwrap_or(most / 2).min(most);
        ConnectionLimits {
            most,
            most_of_one,
            idle: Duration::from_secs(self.idle_connection_seconds),
            unread: self.unread(),
        }
    }

    /// Returns for how long a client may take nothing of its answer.
    pub fn unread(&self) -> Duration {
        Duration::from_secs(self.max_unread_seconds)
    }

    /// Refuses limits that let nothing through, or that are too large to be meant.
    pub(super) fn check(&self) -> Result<()> {
        if [self.max_sequences, self.max_step_tokens, self.kv_cache_mib].contains(&Some(0)) {
            return Err(Error("limits: max_sequences, max_step_tokens and kv_cache_mib must be at least 1".into()));
        }
        if self.max_queue_seconds == 0 || self.max_request_seconds == 0 {
            return Err(Error("limits: max_queue_seconds and max_request_seconds must be at least 1".into()));
        }
        if self.max_connections.is_some_and(|most| most < LEAST_CONNECTIONS) {
            return Err(Error(format!("limits: max_connections must be at least {LEAST_CONNECTIONS}")));
        }
        if self.max_connections_per_client == Some(0) || !(1..=MAX_IDLE).contains(&self.idle_connection_seconds) {
            return Err(Error(format!(
                "limits: max_connections_per_client must be at least 1, idle_connection_seconds 1 to {MAX_IDLE}"
            )));
        }
        if self.upload_bytes_per_second == 0 || self.max_upload_seconds == 0 || self.max_unread_seconds == 0 {
            return Err(Error(
                "limits: upload_bytes_per_second, max_upload_seconds and max_unread_seconds must be at least 1".into(),
            ));
        }
        if !(1..=MAX_RANK).contains(&self.max_adapter_rank) {
            return Err(Error(format!("limits: max_adapter_rank must be 1 to {MAX_RANK}")));
        }
        if !(1..=MAX_MIB).contains(&self.adapter_device_mib) || self.adapter_host_mib > MAX_MIB {
            return Err(Error(format!(
                "limits: adapter_device_mib must be 1 to {MAX_MIB}, adapter_host_mib 0 to {MAX_MIB}"
            )));
        }
        if self.grammar_seconds == 0 || !(16..=MAX_MIB).contains(&self.grammar_mib) || self.grammar_cache_mib > MAX_MIB
        {
            return Err(Error(format!(
                "limits: grammar_seconds must be at least 1, grammar_mib 16 to {MAX_MIB}, grammar_cache_mib 0 to {MAX_MIB}"
            )));
        }
        if self.keys_outage_seconds > MAX_KEYS_OUTAGE {
            return Err(Error(format!("limits: keys_outage_seconds must be 0 to {MAX_KEYS_OUTAGE}")));
        }
        if !(128..=MAX_MIB).contains(&self.request_mib) {
            return Err(Error(format!("limits: request_mib must be 128 to {MAX_MIB}")));
        }
        if self.requests_per_minute == 0 || self.tokens_per_minute == 0 || self.concurrent_requests == 0 {
            return Err(Error(
                "limits: requests_per_minute, tokens_per_minute and concurrent_requests must be at least 1".into(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Limits);

    #[test]
    fn a_limit_that_lets_nothing_through_or_means_too_much_is_named() {
        assert!(Limits::default().check().is_ok());
        let refused: [(&str, Change); 25] = [
            ("max_sequences", |limits| limits.max_sequences = Some(0)),
            ("max_step_tokens", |limits| limits.max_step_tokens = Some(0)),
            ("kv_cache_mib", |limits| limits.kv_cache_mib = Some(0)),
            ("max_queue_seconds", |limits| limits.max_queue_seconds = 0),
            ("max_request_seconds", |limits| limits.max_request_seconds = 0),
            ("max_connections", |limits| limits.max_connections = Some(LEAST_CONNECTIONS - 1)),
            ("max_connections_per_client", |limits| limits.max_connections_per_client = Some(0)),
            ("idle_connection_seconds", |limits| limits.idle_connection_seconds = 0),
            ("idle_connection_seconds", |limits| limits.idle_connection_seconds = MAX_IDLE + 1),
            ("upload_bytes_per_second", |limits| limits.upload_bytes_per_second = 0),
            ("max_upload_seconds", |limits| limits.max_upload_seconds = 0),
            ("max_unread_seconds", |limits| limits.max_unread_seconds = 0),
            ("max_adapter_rank", |limits| limits.max_adapter_rank = MAX_RANK + 1),
            ("adapter_device_mib", |limits| limits.adapter_device_mib = 0),
            ("adapter_device_mib", |limits| limits.adapter_device_mib = MAX_MIB + 1),
            ("adapter_host_mib", |limits| limits.adapter_host_mib = MAX_MIB + 1),
            ("grammar_seconds", |limits| limits.grammar_seconds = 0),
            ("grammar_mib", |limits| limits.grammar_mib = 15),
            ("grammar_cache_mib", |limits| limits.grammar_cache_mib = MAX_MIB + 1),
            ("keys_outage_seconds", |limits| limits.keys_outage_seconds = MAX_KEYS_OUTAGE + 1),
            ("request_mib", |limits| limits.request_mib = 127),
            ("request_mib", |limits| limits.request_mib = MAX_MIB + 1),
            ("requests_per_minute", |limits| limits.requests_per_minute = 0),
            ("tokens_per_minute", |limits| limits.tokens_per_minute = 0),
            ("concurrent_requests", |limits| limits.concurrent_requests = 0),
        ];
        for (name, change) in refused {
            let mut limits = Limits::default();
            change(&mut limits);
            let said = limits.check().expect_err(name).to_string();
            assert!(said.starts_with("limits: ") && said.contains(name), "{name}: {said}");
        }
        assert!(Limits { adapter_host_mib: 0, ..Limits::default() }.check().is_ok(), "0 keeps nothing there");
    }
    #[test]
    fn connections_leave_descriptors_for_the_files_of_their_requests() {
        let limits = Limits::default();
        let most = |descriptors| limits.connections(descriptors, 16).most;
        assert_eq!(most(Some(256)), (256 - 64 - 16) / 2);
        assert_eq!((most(Some(1 << 20)), most(None)), (MOST_CONNECTIONS, MOST_CONNECTIONS / 2));
        assert_eq!(most(Some(70)), LEAST_CONNECTIONS);
        let set = Limits { max_connections: Some(100), max_connections_per_client: Some(200), ..limits };
        let set = set.connections(Some(1024), 16);
        assert_eq!((set.most, set.most_of_one, set.most_busy()), (100, 100, 88));
    }
}
