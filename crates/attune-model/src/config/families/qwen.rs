//! Qwen 2 and 3, dense.

use super::{Defaults, Family, llama, window, windows};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, QueryKeyNorm};

/// Qwen 2 and 2.5 (dense).
pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        vocab_size: 151_936,
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        ..llama::DEFAULTS
    },
    apply: apply_qwen2,
};

fn apply_qwen2(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.biases = Biases { query_key_value: true, output: false, mlp: false };
    config.sliding_windows = upper_windows(fields, config.num_hidden_layers)?;
    Ok(())
}

/// Qwen 3 (dense).
pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    apply: apply_qwen3,
};

fn apply_qwen3(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.query_key_norm = Some(QueryKeyNorm::Head);
    config.sliding_windows = upper_windows(fields, config.num_hidden_layers)?;
    Ok(())
}

/// Returns the window of each block: those from `max_window_layers` on have one, if `use_sliding_window`.
fn upper_windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>, String> {
    let switched_on = fields.flag("use_sliding_window", false)?;
    let window = window(fields, QWEN2.defaults.sliding_window)?.filter(|_| switched_on);
    let first = match fields.get("max_window_layers") {
        Some(first) => first.as_u64().ok_or("`max_window_layers` must be a whole number")? as usize,
        None => 28,
    };
    windows(fields, layers, window, |layer| layer >= first)
}
