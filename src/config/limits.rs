//! The limits on requests that an operator can set under `limits`, with their defaults and checks.

use attune_engine::EngineLimits;
use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::model::lora::MAX_RANK;

/// More memory, in MiB, than any machine has: a larger setting is a mistake.
const MAX_MIB: u64 = 1 << 30;

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
    /// Requests that wait for a place before new ones are answered with 429.
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
            request_mib: 2048,
            max_inputs: 2048,
            grammar_seconds: 5,
            grammar_mib: 2048,
            grammar_cache_mib: 64,
            requests_per_minute: 60_000,
            tokens_per_minute: 100_000_000,
            concurrent_requests: 256,
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

    /// Refuses limits that let nothing through, or that are too large to be meant.
    pub(super) fn check(&self) -> Result<()> {
        if [self.max_sequences, self.max_step_tokens, self.kv_cache_mib].contains(&Some(0)) {
            return Err(Error("limits: max_sequences, max_step_tokens and kv_cache_mib must be at least 1".into()));
        }
        if self.max_queue_seconds == 0 || self.max_request_seconds == 0 {
            return Err(Error("limits: max_queue_seconds and max_request_seconds must be at least 1".into()));
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
        let refused: [(&str, Change); 17] = [
            ("max_sequences", |limits| limits.max_sequences = Some(0)),
            ("max_step_tokens", |limits| limits.max_step_tokens = Some(0)),
            ("kv_cache_mib", |limits| limits.kv_cache_mib = Some(0)),
            ("max_queue_seconds", |limits| limits.max_queue_seconds = 0),
            ("max_request_seconds", |limits| limits.max_request_seconds = 0),
            ("max_adapter_rank", |limits| limits.max_adapter_rank = MAX_RANK + 1),
            ("adapter_device_mib", |limits| limits.adapter_device_mib = 0),
            ("adapter_device_mib", |limits| limits.adapter_device_mib = MAX_MIB + 1),
            ("adapter_host_mib", |limits| limits.adapter_host_mib = MAX_MIB + 1),
            ("grammar_seconds", |limits| limits.grammar_seconds = 0),
            ("grammar_mib", |limits| limits.grammar_mib = 15),
            ("grammar_cache_mib", |limits| limits.grammar_cache_mib = MAX_MIB + 1),
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
}
