//! BERT (Devlin et al., 2018) and the encoders with its blocks: RoBERTa, XLM-RoBERTa and CamemBERT, whose positions begin
//! behind the padding token's, and MPNet (Song et al., 2020), whose attention adds terms by distance.

use super::{ActivationField, Defaults, Family, llama};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, EncoderConfig, NormPlaces, PositionTable};
use crate::forms::Activation;
use crate::sites;

/// What encoders take for fields that are missing.
pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    vocab_size: 30_522,
    max_position_embeddings: 512,
    tie_word_embeddings: true,
    activation: ActivationField { field: "hidden_act", default: Activation::Gelu, gelu: Some(Activation::Gelu) },
    ..llama::DEFAULTS
};

/// BERT: MiniLM, BGE, E5, GTE and many others.
pub(super) const BERT: Family = Family {
    name: "bert",
    inside: None,
    reads_both_ways: false,
    defaults: DEFAULTS,
    apply: |fields, config| {
        apply(
            fields,
            config,
            &Kind { blocks_beside_head: "bert.encoder.layer", padding: None, segments: 2, layer_norm_eps: 1e-12 },
        )
    },
};

/// RoBERTa.
pub(super) const ROBERTA: Family = Family {
    name: "roberta",
    defaults: Defaults { vocab_size: 50_265, ..DEFAULTS },
    apply: |fields, config| apply(fields, config, &AFTER_PADDING),
    ..BERT
};

/// XLM-RoBERTa: multilingual E5, BGE M3 and others.
pub(super) const XLM_ROBERTA: Family =
    Family { name: "xlm-roberta", defaults: Defaults { vocab_size: 30_522, ..DEFAULTS }, ..ROBERTA };

/// CamemBERT.
pub(super) const CAMEMBERT: Family = Family { name: "camembert", ..XLM_ROBERTA };

/// MPNet.
pub(super) const MPNET: Family =
    Family { name: "mpnet", defaults: Defaults { vocab_size: 30_527, ..DEFAULTS }, apply: apply_mpnet, ..BERT };

/// What tells the kinds apart.
struct Kind {
    /// Name of the list of blocks in a checkpoint with a head.
    blocks_beside_head: &'static str,
    /// Id of the padding token if the file does not say, where the first position is the one behind it.
    padding: Option<usize>,
    /// Segments if the file does not say.
    segments: usize,
    layer_norm_eps: f64,
}

const AFTER_PADDING: Kind =
    Kind { blocks_beside_head: "roberta.encoder.layer", padding: Some(1), segments: 2, layer_norm_eps: 1e-12 };

fn apply(fields: &Fields, config: &mut ModelConfig, kind: &Kind) -> Result<(), String> {
    refuse(fields)?;
    config.rms_norm_eps = fields.number("layer_norm_eps")?.unwrap_or(kind.layer_norm_eps) as f32;
    config.biases = Biases { query_key_value: true, output: true, mlp: true };
    config.norm_places = NormPlaces::Behind;
    config.modules = &sites::BERT;
    config.norm_names = &[
        ("post_attention_layernorm", "attention.output.LayerNorm"),
        ("post_feedforward_layernorm", "output.LayerNorm"),
    ];
    config.embedding_name = "model.embeddings.word_embeddings";
    config.blocks_name = "model.encoder.layer";
    config.rotary = vec![None; config.num_hidden_layers];
    let rows = config.max_position_embeddings;
    let first = match kind.padding {
        Some(padding) => padding_token(fields, padding)? + 1,
        None => 0,
    };
    if rows <= first {
        return Err(format!("max_position_embeddings {rows} leaves no position behind that of the padding token"));
    }
    config.max_position_embeddings = rows - first;
    config.is_encoder = true;
    config.encoder = Some(EncoderConfig {
        norm_bias: true,
        positions: Some(PositionTable { rows, first }),
        segments: segments(fields, kind.segments)?,
        embedding_norm: "model.embeddings.LayerNorm",
        final_norm: false,
        skips_first_norm: false,
        is_gated: false,
        distance_buckets: None,
        blocks_beside_head: kind.blocks_beside_head,
        renamed: None,
    });
    Ok(())
}

/// Returns the number of segments, which may be 0: those of `DistilBERT`'s files.
pub(super) fn segments(fields: &Fields, default: usize) -> Result<usize, String> {
    match fields.number("type_vocab_size")? {
        Some(count) if count < 0.0 || count.fract() > 0.0 => Err("`type_vocab_size` must be a whole number".into()),
        count => Ok(count.map_or(default, |count| count as usize)),
    }
}

/// Returns the id of the padding token, which may be 0.
fn padding_token(fields: &Fields, default: usize) -> Result<usize, String> {
    let given = fields.number("pad_token_id")?;
    Ok(given.filter(|id| *id >= 0.0).map_or(default, |id| id as usize))
}

/// Refuses variants that would be computed in another way.
fn refuse(fields: &Fields) -> Result<(), String> {
    if let Some(kind) = fields.text("position_embedding_type")?.filter(|kind| *kind != "absolute") {
        return Err(format!("position_embedding_type `{kind}` is not supported; supported is absolute"));
    }
    for name in ["is_decoder", "add_cross_attention"] {
        if fields.flag(name, false)? {
            return Err(format!("`{name}` is not supported: the model is read as an encoder"));
        }
    }
    Ok(())
}

/// Attention adds a term by the bucket of the distance of key and query.
fn apply_mpnet(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply(fields, config, &Kind { blocks_beside_head: "mpnet.encoder.layer", ..AFTER_PADDING })?;
    config.modules = &sites::MPNET;
    config.norm_names =
        &[("post_attention_layernorm", "attention.LayerNorm"), ("post_feedforward_layernorm", "output.LayerNorm")];
    let buckets = fields.size("relative_attention_num_buckets", 32)?;
    // transformers computes the buckets with 32, whatever the file says.
    if buckets != 32 {
        return Err(format!("relative_attention_num_buckets {buckets} is not supported; supported is 32"));
    }
    if let Some(encoder) = &mut config.encoder {
        encoder.segments = 0;
        encoder.distance_buckets = Some(buckets);
    }
    Ok(())
}
