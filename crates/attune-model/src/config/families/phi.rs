//! Phi-3, 3.5 and 4: the type `phi3`. Checkpoints hold query, key and value in one layer, gate and up in another, and
//! may have two tables of rotary frequencies (Abdin et al., "Phi-3 Technical Report", 2024).

use super::{Defaults, Family, llama, window};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::ropes;
use crate::rope_scaling::RopeScaling;
use crate::sites;

/// Phi-3 and what came after it, with the same shape.
pub(super) const PHI3: Family = Family {
    name: "phi3",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 3072,
        intermediate_size: 8192,
        vocab_size: 32_064,
        max_position_embeddings: 4096,
        original_context: Some(4096.0),
        partial_rotary: true,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply,
};

/// Every block has the window.
fn apply(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.modules = &sites::FUSED;
    config.sliding_windows = vec![window(fields, None)?; config.num_hidden_layers];
    let rope = ropes::read(fields, &PHI3.defaults, config.max_position_embeddings)?;
    if !matches!(rope.scaling, RopeScaling::None | RopeScaling::LongRope { .. }) {
        return Err("the rope type of a phi3 model must be default or longrope".into());
    }
    config.ropes = vec![rope];
    Ok(())
}
