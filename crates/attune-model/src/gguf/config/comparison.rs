//! Whether two configurations mean the same computation: asked before a file is written, whose keys are read again for
//! it.

use crate::ModelConfig;
use crate::rope::Rope;

/// Largest relative difference of numbers, which files have in f32.
const TOLERANCE: f32 = 1e-6;

/// Returns the name of a field in which `file` computes something else than `original`; `None` if there is none. Biases and
/// the tied head follow from the tensors.
pub(crate) fn difference(original: &ModelConfig, file: &ModelConfig) -> Option<&'static str> {
    let sizes = |config: &ModelConfig| {
        [
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
        ]
    };
    let same = [
        ("hidden_size and other sizes", sizes(original) == sizes(file)),
        ("max_position_embeddings", original.max_position_embeddings == file.max_position_embeddings),
        ("rms_norm_eps", close(original.rms_norm_eps, file.rms_norm_eps)),
        ("the places of norms", original.norm_places == file.norm_places),
        ("the form of norms", original.norms_plus_one == file.norms_plus_one),
        ("the norms of query and key", original.query_key_norm == file.query_key_norm),
        ("the scale of attention (query_pre_attn_scalar)", close(original.attention_scale, file.attention_scale)),
        ("attn_logit_softcapping", close_or_none(original.attention_cap, file.attention_cap)),
        ("hidden_act", original.activation == file.activation),
        ("embedding_multiplier", close(original.embedding_multiplier, file.embedding_multiplier)),
        ("residual_multiplier", close(original.residual_multiplier, file.residual_multiplier)),
        ("logits_scaling", close(original.logit_form.scale, file.logit_form.scale)),
        ("final_logit_softcapping", close_or_none(original.logit_form.cap, file.logit_form.cap)),
        ("the layers of a block", original.modules == file.modules),
        ("sliding_window", windows(original) == windows(file)),
        ("rope_parameters", same_rotations(original, file)),
        ("the convolutions", original.convolution == file.convolution),
        ("the experts", original.experts == file.experts),
        ("attention sinks", original.attention_sinks == file.attention_sinks),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
}

fn close(one: f32, other: f32) -> bool {
    (one - other).abs() <= TOLERANCE * one.abs().max(other.abs())
}

fn close_or_none(one: Option<f32>, other: Option<f32>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => close(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Returns the windows of the blocks, but for those that no sequence outgrows.
fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    let acts = |window: &usize| *window < config.max_position_embeddings;
    config.sliding_windows.iter().map(|window| window.filter(acts)).collect()
}

/// Returns true if all blocks rotate by the same frequencies.
fn same_rotations(one: &ModelConfig, other: &ModelConfig) -> bool {
    let ropes = |config: &ModelConfig| -> Vec<Option<Rope>> {
        let kinds: Vec<Rope> = config.ropes.iter().map(|rope| Rope::new(config.head_dim, rope)).collect();
        config.rotary.iter().map(|kind| kind.and_then(|kind| kinds.get(kind).cloned())).collect()
    };
    let (one, other) = (ropes(one), ropes(other));
    one.len() == other.len()
        && one.iter().zip(&other).all(|pair| match pair {
            (Some(one), Some(other)) => one.is_close_to(other, TOLERANCE),
            (one, other) => one.is_none() && other.is_none(),
        })
}
