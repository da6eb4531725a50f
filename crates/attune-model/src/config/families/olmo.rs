//! OLMo 2 and 3, whose norms stand behind attention and MLP, and span whole rows of queries and keys.

use super::{Defaults, Family, llama, window, windows};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, NormPlaces, QueryKeyNorm, ropes};

/// OLMo 2.
pub(super) const OLMO2: Family = Family {
    name: "olmo2",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults { vocab_size: 50_304, rms_norm_eps: 1e-5, ..llama::DEFAULTS },
    apply: apply_olmo2,
};

fn apply_olmo2(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.norm_places = NormPlaces::After;
    config.query_key_norm = Some(QueryKeyNorm::Row);
    Ok(())
}

/// OLMo 3.
pub(super) const OLMO3: Family = Family {
    name: "olmo3",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults { sliding_window: Some(4096), rope_theta: 500_000.0, ..OLMO2.defaults },
    apply: apply_olmo3,
};

/// Every block has the window but each fourth, whose rotation alone is stretched.
fn apply_olmo3(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply_olmo2(fields, config)?;
    let window = window(fields, OLMO3.defaults.sliding_window)?;
    let is_sliding = |layer: usize| !(layer + 1).is_multiple_of(4);
    config.rotary = ropes::by_layer_type(fields, config.num_hidden_layers, is_sliding)?;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, is_sliding)?;
    config.ropes = ropes::read_by_type(fields, [OLMO3.defaults.rope_theta; 2], config)?;
    Ok(())
}
