//! Limits of one engine: how much runs in a step, how much waits, and for how long. Given to the engine when it starts.

/// Limits of one engine. The operator sets them under `limits` in the configuration.
#[derive(Debug, Clone)]
pub struct EngineLimits {
    /// Sequences that run in one step; `None`: 64, on a GPU 256.
    pub max_sequences: Option<usize>,
    /// Tokens (prompt and new ones) in one step; `None`: 512, on a GPU 2,048.
    pub max_step_tokens: Option<usize>,
    /// Sequences that wait for a place before new ones are refused as [`Overloaded`](crate::Error::Overloaded); as many
    /// again may wait for organisations that have few waiting.
    pub max_waiting: usize,
    /// Seconds that a request waits to begin before it is refused.
    pub max_queue_seconds: u64,
    /// Seconds that a request may take in all, from its arrival to its last token.
    pub max_request_seconds: u64,
    /// Keep the keys and values of past prompts and answers in free cache blocks, for requests that begin alike.
    pub prefix_cache: bool,
    /// Memory for keys and values, in MiB; `None`: 1024. `app` sets what the weights leave room for.
    pub kv_cache_mib: Option<usize>,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            max_sequences: None,
            max_step_tokens: None,
            max_waiting: 1024,
            max_queue_seconds: 600,
            max_request_seconds: 3600,
            prefix_cache: true,
            kv_cache_mib: None,
        }
    }
}

impl EngineLimits {
    /// Returns the most sequences that run in one step.
    pub fn sequences(&self) -> usize {
        self.max_sequences.unwrap_or(64)
    }

    /// Returns the most tokens in one step.
    pub fn step_tokens(&self) -> usize {
        self.max_step_tokens.unwrap_or(512)
    }

    /// Returns the memory for keys and values, in MiB.
    pub fn cache_mib(&self) -> usize {
        self.kv_cache_mib.unwrap_or(1024)
    }

    /// Fills in the defaults of a GPU, where a step that is too small takes as long as a larger one.
    #[must_use]
    pub fn on_gpu(self) -> Self {
        Self {
            max_sequences: self.max_sequences.or(Some(256)),
            max_step_tokens: self.max_step_tokens.or(Some(2048)),
            ..self
        }
    }
}
