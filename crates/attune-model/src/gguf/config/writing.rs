//! The keys of a GGUF file for a model in Hugging Face form. Whoever writes them reads them again and compares, since
//! files cannot say all that a `config.json` can. Called by the export of merged models.

use serde_json::Value as Json;

use super::{rope, stretch};
use crate::ModelConfig;
use crate::gguf::architecture::Architecture;
use crate::gguf::metadata::Value;
use crate::rope_scaling::RopeScaling;

/// Every how many blocks one attends to everything, where a file does not say: Gemma 2, Gemma 3, OLMo 3, gpt-oss.
const PATTERNS: [(Architecture, usize); 4] =
    [(Architecture::Gemma2, 2), (Architecture::Gemma3, 6), (Architecture::Olmo2, 4), (Architecture::GptOss, 2)];

/// Returns the keys of the model with the shape `config`, whose `config.json` holds `fields`.
pub(crate) fn keys(architecture: Architecture, config: &ModelConfig, fields: &Json) -> Vec<(String, Value)> {
    let size = |size: usize| Value::from(size as u32);
    let mut keys = vec![
        ("block_count", size(config.num_hidden_layers)),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", key_value_heads(config)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.value_length", size(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", config.rms_norm_eps.into()),
        ("vocab_size", size(config.vocab_size)),
    ];
    keys.extend(rotation(config, fields));
    keys.extend(windows(architecture, config));
    keys.extend(config.attention_cap.map(|cap| ("attn_logit_softcapping", cap.into())));
    keys.extend(config.logit_form.cap.map(|cap| ("final_logit_softcapping", cap.into())));
    if architecture == Architecture::Granite {
        keys.extend([
            ("embedding_scale", Value::from(config.embedding_multiplier)),
            ("residual_scale", config.residual_multiplier.into()),
            ("attention.scale", config.attention_scale.into()),
            ("logit_scale", ((1.0 / f64::from(config.logit_form.scale)) as f32).into()),
        ]);
    }
    if config.family == "granitemoehybrid" {
        // The width of the one MLP, and whether positions are rotated.
        keys.push(("expert_shared_feed_forward_length", size(config.intermediate_size)));
        keys.push(("rope.scaling.finetuned", config.rotary.iter().any(Option::is_some).into()));
    }
    keys.extend(config.convolution.as_ref().map(|convolution| ("shortconv.l_cache", size(convolution.taps))));
    if let Some(experts) = &config.experts {
        keys.extend([("expert_count", size(experts.count)), ("expert_used_count", size(experts.chosen))]);
        if matches!(architecture, Architecture::Qwen3Moe | Architecture::GptOss) {
            keys.push(("expert_feed_forward_length", size(experts.intermediate_size)));
        }
    }
    let name = architecture.name();
    let keys = keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value));
    keys.chain([("general.architecture".to_owned(), name.into())]).collect()
}

/// Returns the number of key and value heads, for each block where some have convolutions: 0 says that a block is one.
fn key_value_heads(config: &ModelConfig) -> Value {
    let heads = config.num_key_value_heads as u32;
    match &config.convolution {
        Some(convolution) => Value::from(
            convolution.blocks.iter().map(|convolves| if *convolves { 0 } else { heads }).collect::<Vec<u32>>(),
        ),
        None => heads.into(),
    }
}

/// Returns the keys of the rotary embedding: of that of blocks with full attention, and the base of others.
fn rotation(config: &ModelConfig, fields: &Json) -> Vec<(&'static str, Value)> {
    let Some(rope) = config.ropes.first() else { return Vec::new() };
    let number = |number: f64| Value::from(number as f32);
    let mut keys = vec![
        ("rope.dimension_count", Value::from(rope.rotated(config.head_dim) as u32)),
        ("rope.freq_base", number(rope.theta)),
    ];
    keys.extend(config.ropes.get(1).map(|sliding| ("rope.freq_base_swa", number(sliding.theta))));
    match &rope.scaling {
        RopeScaling::Linear { factor } => {
            keys.extend([("rope.scaling.type", "linear".into()), ("rope.scaling.factor", number(*factor))]);
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, .. } => keys.extend([
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", number(*factor)),
            ("rope.scaling.original_context_length", Value::from(*original_context as u32)),
            ("rope.scaling.yarn_beta_fast", number(*beta_fast)),
            ("rope.scaling.yarn_beta_slow", number(*beta_slow)),
        ]),
        RopeScaling::LongRope { original_context, attention_factor, .. } => keys.extend([
            ("rope.scaling.attn_factor", number(*attention_factor)),
            ("rope.scaling.original_context_length", Value::from(*original_context as u32)),
        ]),
        RopeScaling::None | RopeScaling::Divided { .. } | RopeScaling::Llama3 { .. } => {}
    }
    if let Some(growth) = rope.query_scaling {
        keys.push(("attention.temperature_scale", number(growth.beta)));
        let inner = fields.get("text_config").unwrap_or(fields);
        let multiplier =
            ["rope_parameters", "rope_scaling"].iter().find_map(|name| inner[*name]["mscale_all_dim"].as_f64());
        keys.extend(multiplier.map(|multiplier| ("rope.scaling.yarn_log_multiplier", number(multiplier))));
    }
    keys
}

/// Returns the keys of the blocks' windows, of architectures whose files have some.
fn windows(architecture: Architecture, config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let Some(window) = config.sliding_windows.iter().flatten().max() else { return Vec::new() };
    let window = ("attention.sliding_window", Value::from(*window as u32));
    if architecture == Architecture::Phi3 {
        return vec![window];
    }
    let Some((_, usual)) = PATTERNS.iter().find(|(known, _)| *known == architecture) else { return Vec::new() };
    let slides: Vec<bool> = config.sliding_windows.iter().map(Option::is_some).collect();
    let follows = |pattern: usize| slides.iter().zip(1..).all(|(slides, number)| *slides == (number % pattern != 0));
    let pattern = match (1..=slides.len() + 1).find(|pattern| follows(*pattern)) {
        _ if follows(*usual) => None,
        Some(pattern) => Some(Value::from(pattern as u32)),
        None => Some(slides.into()),
    };
    std::iter::once(window).chain(pattern.map(|pattern| ("attention.sliding_window_pattern", pattern))).collect()
}

/// Returns the tensors that say what no key does, as far as files of the architecture have them: divisors of the
/// frequencies, by their names.
pub(crate) fn tensors(architecture: Architecture, config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let mut tensors = all_tensors(config);
    tensors.retain(|(name, _)| super::settings(architecture).contains(name));
    tensors
}

fn all_tensors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let Some(rope) = config.ropes.first() else { return Vec::new() };
    let single = |list: &[f64]| list.iter().map(|number| *number as f32).collect();
    match &rope.scaling {
        RopeScaling::LongRope { short, long, .. } => vec![(rope::LONG, single(long)), (rope::SHORT, single(short))],
        RopeScaling::Divided { divisors } => vec![(rope::DIVISORS, single(divisors))],
        scaling => {
            let divisors = stretch::divisors(rope.theta, rope.rotated(config.head_dim), scaling);
            divisors.map(|divisors| (rope::DIVISORS, single(&divisors))).into_iter().collect()
        }
    }
}
