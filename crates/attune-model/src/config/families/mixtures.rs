//! Families with a mixture of experts in the place of every block's MLP: Qwen 3 with experts, Mixtral, `OLMoE` and gpt-oss.

use super::{Defaults, Family, llama, window, windows};
use crate::ModelConfig;
use crate::config::experts::{ExpertDefaults, ExpertsConfig};
use crate::config::fields::Fields;
use crate::config::{Biases, QueryKeyNorm, ropes};

/// Qwen 3 with experts.
pub(super) const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2048,
        intermediate_size: 6144,
        num_hidden_layers: 24,
        num_key_value_heads: Some(4),
        vocab_size: 151_936,
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        ..llama::DEFAULTS
    },
    apply: apply_qwen3_moe,
};

/// Every block has the window, if `use_sliding_window`.
fn apply_qwen3_moe(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    const EXPERTS: ExpertDefaults = ExpertDefaults {
        count: 128,
        chosen: 8,
        intermediate_size: ("moe_intermediate_size", 768),
        normalized: None,
        gpt_oss: false,
    };
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.query_key_norm = Some(QueryKeyNorm::Head);
    let switched_on = fields.flag("use_sliding_window", false)?;
    let window = window(fields, QWEN3_MOE.defaults.sliding_window)?.filter(|_| switched_on);
    config.sliding_windows = vec![window; config.num_hidden_layers];
    config.experts = Some(ExpertsConfig::parse(fields, EXPERTS, config.activation)?);
    Ok(())
}

/// Mixtral.
pub(super) const MIXTRAL: Family = Family {
    name: "mixtral",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply: apply_mixtral,
};

/// Every block has the window, if there is one.
fn apply_mixtral(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    const EXPERTS: ExpertDefaults = ExpertDefaults {
        count: 8,
        chosen: 2,
        intermediate_size: ("intermediate_size", 14_336),
        normalized: Some(true),
        gpt_oss: false,
    };
    config.sliding_windows = vec![window(fields, None)?; config.num_hidden_layers];
    config.experts = Some(ExpertsConfig::parse(fields, EXPERTS, config.activation)?);
    Ok(())
}

/// `OLMoE`.
pub(super) const OLMOE: Family = Family {
    name: "olmoe",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2048,
        intermediate_size: 2048,
        num_hidden_layers: 16,
        num_attention_heads: 16,
        vocab_size: 50_304,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply: apply_olmoe,
};

fn apply_olmoe(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    const EXPERTS: ExpertDefaults = ExpertDefaults {
        count: 64,
        chosen: 8,
        intermediate_size: ("intermediate_size", 2048),
        normalized: None,
        gpt_oss: false,
    };
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.query_key_norm = Some(QueryKeyNorm::Row);
    config.experts = Some(ExpertsConfig::parse(fields, EXPERTS, config.activation)?);
    Ok(())
}

/// gpt-oss.
pub(super) const GPT_OSS: Family = Family {
    name: "gpt_oss",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2880,
        intermediate_size: 2880,
        num_hidden_layers: 36,
        num_attention_heads: 64,
        num_key_value_heads: Some(8),
        head_dim: Some(64),
        vocab_size: 201_088,
        max_position_embeddings: 131_072,
        sliding_window: Some(128),
        rope_theta: 150_000.0,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply: apply_gpt_oss,
};

/// Every second block has the window, the first one included.
fn apply_gpt_oss(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    const EXPERTS: ExpertDefaults = ExpertDefaults {
        count: 128,
        chosen: 4,
        intermediate_size: ("intermediate_size", 2880),
        normalized: Some(true),
        gpt_oss: true,
    };
    if ropes::parameters(fields)?.is_none() {
        return Err("rope_parameters or rope_scaling is missing, which gpt-oss needs".into());
    }
    let attention = fields.flag("attention_bias", true)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.attention_sinks = true;
    let window = window(fields, GPT_OSS.defaults.sliding_window)?;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, |layer| layer.is_multiple_of(2))?;
    config.experts = Some(ExpertsConfig::parse(fields, EXPERTS, config.activation)?);
    Ok(())
}
