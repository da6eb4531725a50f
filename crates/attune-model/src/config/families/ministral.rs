//! Ministral 3: Mistral with YaRN, and queries that grow with the position.

use serde_json::json;

use super::{Defaults, Family, llama, window};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{RopeParameters, ropes};
use crate::rope_scaling::{QueryScaling, RopeScaling};

/// Ministral 3 by itself.
pub(super) const MINISTRAL3: Family = Family {
    name: "ministral3",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        intermediate_size: 14_336,
        num_hidden_layers: 34,
        num_key_value_heads: Some(8),
        head_dim: Some(128),
        vocab_size: 131_072,
        max_position_embeddings: 262_144,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply,
};

/// Ministral 3 in a model that sees images too.
pub(super) const MISTRAL3: Family = Family {
    name: "mistral3",
    inside: Some("ministral3"),
    reads_both_ways: false,
    defaults: Defaults { tie_word_embeddings: true, ..MINISTRAL3.defaults },
    apply,
};

/// Every block has the window.
fn apply(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.sliding_windows = vec![window(fields, None)?; config.num_hidden_layers];
    // What transformers takes if the file has no rotary settings at all.
    let usual = json!({
        "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "original_max_position_embeddings": 16_384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
    });
    let (own, context) = (ropes::parameters(fields)?, config.max_position_embeddings);
    let original_context = ropes::original_context(fields, &MINISTRAL3.defaults)?;
    let rope = match own {
        Some(_) => ropes::read(fields, &MINISTRAL3.defaults, context)?,
        None => RopeParameters::whole(1_000_000.0, RopeScaling::parse(Some(&usual), context, original_context)?),
    };
    let query_scaling = QueryScaling::parse(own.unwrap_or(&usual), original_context)?;
    config.ropes = vec![RopeParameters { query_scaling: Some(query_scaling), ..rope }];
    Ok(())
}
