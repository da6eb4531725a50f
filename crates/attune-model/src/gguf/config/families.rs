//! What each architecture has beside the common shape, and what llama.cpp fixes for it in code. Called by the
//! translation of the keys.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{encoders, rope};
use crate::Result;
use crate::gguf::architecture::Architecture;

/// Every how many blocks SmolLM 3 does not rotate.
const SMOLLM3_INTERVAL: usize = 4;
/// Blocks of the largest Gemma 2 and 3, whose attention is scaled by another width than that of a head.
const GEMMA2_27B_BLOCKS: u64 = 46;
const GEMMA3_27B_BLOCKS: u64 = 62;
/// Base of the rotation in Gemma 3's blocks with a window.
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;
/// Value of `expert_gating_func` for a softmax over all experts.
const SOFTMAX: f64 = 1.0;
/// Value of `expert_gating_func` for a softmax over the chosen experts.
const SOFTMAX_OF_CHOSEN: f64 = 3.0;

/// Adds the fields of `architecture`.
pub(super) fn apply(architecture: Architecture, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    match architecture {
        Architecture::Llama => llama(keys, fields),
        Architecture::Mistral3 => mistral3(keys, fields),
        Architecture::Qwen2 => dense("qwen2", keys, fields),
        Architecture::Qwen3 => dense("qwen3", keys, fields),
        Architecture::SmolLm3 => {
            set(fields, "no_rope_layer_interval", json!(SMOLLM3_INTERVAL));
            dense("smollm3", keys, fields)
        }
        Architecture::Gemma => gemma("gemma", keys, fields),
        Architecture::Gemma2 => gemma2(keys, fields),
        Architecture::Gemma3 => gemma3(keys, fields),
        Architecture::Granite => granite(keys, fields),
        Architecture::Phi3 => phi3(keys, fields),
        Architecture::Olmo2 => olmo(keys, fields),
        Architecture::Qwen3Moe => qwen3_moe(keys, fields),
        Architecture::Olmoe => olmoe(keys, fields),
        Architecture::GptOss => gpt_oss(keys, fields),
        Architecture::Lfm2 => lfm2(keys, fields),
        Architecture::Bert => encoders::bert(keys, fields),
        Architecture::NomicBert => encoders::nomic(keys, fields),
        Architecture::ModernBert => encoders::modern(keys, fields),
        Architecture::GemmaEmbedding => {
            set(fields, "use_bidirectional_attention", json!(true));
            // Names of what the tensors' shapes say already.
            for part in ["dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out"] {
                keys.optional_size(part)?;
            }
            gemma3(keys, fields)
        }
    }
}

fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.insert(name.to_owned(), value);
}

/// Adds what a model of the type `model_type` with one MLP in each block has.
fn dense(model_type: &str, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, "model_type", json!(model_type));
    set(fields, "intermediate_size", json!(keys.size("feed_forward_length")?));
    for count in ["expert_count", "expert_used_count"] {
        keys.only(count, 0.0)?;
    }
    rope::apply(keys, fields)
}

fn llama(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    if keys.optional_count("expert_count")?.unwrap_or(0) == 0 {
        return dense("llama", keys, fields);
    }
    set(fields, "model_type", json!("mixtral"));
    set(fields, "intermediate_size", json!(keys.size("feed_forward_length")?));
    set(fields, "sliding_window", Value::Null);
    experts("num_local_experts", SOFTMAX, keys, fields)?;
    rope::apply(keys, fields)
}

fn mistral3(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let temperature = keys.number("attention.temperature_scale")?;
    let log_multiplier = keys.number("rope.scaling.yarn_log_multiplier")?;
    // The same architecture without the growing queries is Mistral.
    dense(if temperature.is_some() { "ministral3" } else { "mistral" }, keys, fields)?;
    set(fields, "sliding_window", Value::Null);
    let Some(temperature) = temperature else { return keys.only("rope.scaling.yarn_log_multiplier", 0.0) };
    let scaling = fields.get_mut("rope_scaling").filter(|scaling| scaling["rope_type"] == "yarn");
    let Some(scaling) = scaling else {
        return Err(keys.fault("attention.temperature_scale", "needs the `rope.scaling.type` yarn"));
    };
    scaling["llama_4_scaling_beta"] = json!(temperature);
    if let Some(multiplier) = log_multiplier {
        scaling["mscale"] = json!(1.0);
        scaling["mscale_all_dim"] = json!(multiplier);
    }
    // Ministral 3 has the current spelling alone.
    let mut scaling = scaling.take();
    scaling["rope_theta"] = fields["rope_theta"].clone();
    fields.remove("rope_scaling");
    set(fields, "rope_parameters", scaling);
    Ok(())
}

fn gemma(model_type: &str, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    dense(model_type, keys, fields)?;
    set(fields, "hidden_activation", json!("gelu_pytorch_tanh"));
    // Files have no head of their own: transformers ties it to the embedding.
    Ok(())
}

fn gemma2(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    gemma("gemma2", keys, fields)?;
    set(fields, "attn_logit_softcapping", json!(keys.number("attn_logit_softcapping")?.unwrap_or(50.0)));
    set(fields, "final_logit_softcapping", json!(keys.number("final_logit_softcapping")?.unwrap_or(30.0)));
    set_attention_width(GEMMA2_27B_BLOCKS, fields);
    let window = keys.optional_size("attention.sliding_window")?.unwrap_or(4096);
    set(fields, "sliding_window", json!(window));
    set_windows(2, keys, fields)
}

fn gemma3(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    gemma("gemma3_text", keys, fields)?;
    let theta = keys.required_number("rope.freq_base")?;
    set(fields, "rope_theta", json!(theta));
    let local = keys.number("rope.freq_base_swa")?.unwrap_or(GEMMA3_LOCAL_THETA);
    set(fields, "rope_local_base_freq", json!(local));
    if let Some(cap) = keys.number("final_logit_softcapping")? {
        set(fields, "final_logit_softcapping", json!(cap));
    }
    set_attention_width(GEMMA3_27B_BLOCKS, fields);
    let Some(window) = keys.optional_count("attention.sliding_window")?.filter(|window| *window > 0) else {
        // A model whose blocks all attend to everything.
        let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0);
        let full: Vec<_> = (0..layers).map(|_| "full_attention").collect();
        set(fields, "layer_types", json!(full));
        return Ok(());
    };
    set(fields, "sliding_window", json!(window));
    set_windows(6, keys, fields)
}

/// Sets the width that Gemma 2 and 3 scale attention by: that of a head, but for the largest ones.
fn set_attention_width(largest: u64, fields: &mut Map<String, Value>) {
    let number = |name: &str| fields[name].as_u64().unwrap_or(1);
    let width = match number("num_hidden_layers") {
        layers if layers == largest => number("hidden_size") / number("num_attention_heads").max(1),
        _ => number("head_dim"),
    };
    set(fields, "query_pre_attn_scalar", json!(width));
}

/// Sets the kinds of blocks: by the key, else every `pattern`-th one attends to everything.
fn set_windows(pattern: usize, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    const KEY: &str = "attention.sliding_window_pattern";
    let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    let slides: Vec<bool> = match keys.flags(KEY)? {
        Some(flags) if flags.len() == layers => flags,
        Some(_) => return Err(keys.fault(KEY, &format!("must have {layers} values"))),
        None => {
            let pattern = keys.optional_size(KEY)?.unwrap_or(pattern);
            (1..=layers).map(|number| !number.is_multiple_of(pattern)).collect()
        }
    };
    let kind = |slides| if slides { "sliding_attention" } else { "full_attention" };
    set(fields, "layer_types", slides.into_iter().map(kind).collect());
    Ok(())
}

fn granite(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    dense("granite", keys, fields)?;
    // For this architecture the key says whether positions are rotated at all.
    let is_rotated = keys.flag("rope.scaling.finetuned")? != Some(false);
    // Only Granite 4 has it, whose MLP is the one that its experts would share.
    if let Some(width) = keys.optional_size("expert_shared_feed_forward_length")? {
        granite_hybrid(width, is_rotated, keys, fields)?;
    } else if !is_rotated {
        return Err(keys.fault("rope.scaling.finetuned", "is false: models without rotation are not supported"));
    }
    let head_dim = fields["head_dim"].as_f64().unwrap_or(1.0);
    for (key, field, default) in [
        ("embedding_scale", "embedding_multiplier", 1.0),
        ("residual_scale", "residual_multiplier", 1.0),
        ("attention.scale", "attention_multiplier", head_dim.powf(-0.5)),
        ("logit_scale", "logits_scaling", 1.0),
    ] {
        // 0 means in files that nothing is scaled.
        let number = keys.number(key)?.filter(|number| number.abs() > 0.0).unwrap_or(default);
        set(fields, field, json!(number));
    }
    Ok(())
}

/// Adds what Granite 4 without Mamba layers has. Files say how wide these would be, too.
fn granite_hybrid(width: usize, is_rotated: bool, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    if fields["intermediate_size"] != json!(width) {
        let message = "differs from `feed_forward_length`, which is not supported";
        return Err(keys.fault("expert_shared_feed_forward_length", message));
    }
    for name in ["conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"] {
        keys.optional_count(&format!("ssm.{name}"))?;
    }
    let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    set(fields, "model_type", json!("granitemoehybrid"));
    set(fields, "shared_intermediate_size", json!(width));
    set(fields, "num_local_experts", json!(0));
    set(fields, "layer_types", json!(vec!["attention"; layers]));
    set(fields, "position_embedding_type", json!(is_rotated.then_some("rope")));
    Ok(())
}

fn phi3(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, "model_type", json!("phi3"));
    set(fields, "intermediate_size", json!(keys.size("feed_forward_length")?));
    let window = keys.optional_count("attention.sliding_window")?.filter(|window| *window > 0);
    set(fields, "sliding_window", json!(window));
    rope::apply_long(keys, fields)
}

fn olmo(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let window = keys.optional_count("attention.sliding_window")?.filter(|window| *window > 0);
    let Some(window) = window else { return dense("olmo2", keys, fields) };
    dense("olmo3", keys, fields)?;
    set(fields, "sliding_window", json!(window));
    // Blocks with a window mostly have the same base, and are not stretched.
    let theta = fields.remove("rope_theta").unwrap_or(Value::Null);
    let local = keys.number("rope.freq_base_swa")?.map_or_else(|| theta.clone(), |local| json!(local));
    let mut full = fields.remove("rope_scaling").unwrap_or_else(|| json!({ "rope_type": "default" }));
    full["rope_theta"] = theta;
    let sliding = json!({ "rope_type": "default", "rope_theta": local });
    set(fields, "rope_parameters", json!({ "full_attention": full, "sliding_attention": sliding }));
    set_windows(4, keys, fields)
}

fn qwen3_moe(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, "model_type", json!("qwen3_moe"));
    // The width of a dense MLP, which no block has.
    let width = keys.size("expert_feed_forward_length")?;
    set(fields, "intermediate_size", json!(keys.optional_size("feed_forward_length")?.unwrap_or(width)));
    set(fields, "moe_intermediate_size", json!(width));
    set(fields, "norm_topk_prob", json!(true));
    set(fields, "decoder_sparse_step", json!(1));
    set(fields, "mlp_only_layers", json!([]));
    experts("num_experts", SOFTMAX, keys, fields)?;
    rope::apply(keys, fields)
}

fn olmoe(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, "model_type", json!("olmoe"));
    set(fields, "intermediate_size", json!(keys.size("feed_forward_length")?));
    set(fields, "norm_topk_prob", json!(false));
    experts("num_experts", SOFTMAX, keys, fields)?;
    rope::apply(keys, fields)
}

fn gpt_oss(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, "model_type", json!("gpt_oss"));
    let width = keys.size("expert_feed_forward_length")?;
    keys.optional_size("feed_forward_length")?;
    set(fields, "intermediate_size", json!(width));
    set(fields, "swiglu_limit", json!(7.0));
    set(fields, "sliding_window", json!(keys.size("attention.sliding_window")?));
    set_windows(2, keys, fields)?;
    experts("num_local_experts", SOFTMAX_OF_CHOSEN, keys, fields)?;
    rope::apply(keys, fields)?;
    if let Some(scaling) = fields.get_mut("rope_scaling") {
        scaling["truncate"] = json!(false);
    }
    Ok(())
}

fn lfm2(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    const HEADS: &str = "attention.head_count_kv";
    dense("lfm2", keys, fields)?;
    let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    // A block without key-value heads has a convolution.
    let heads = keys.sizes(HEADS)?.unwrap_or_else(|| vec![1; layers]);
    if heads.len() != layers {
        return Err(keys.fault(HEADS, &format!("must have {layers} values")));
    }
    let kind = |heads| if heads == 0 { "conv" } else { "full_attention" };
    set(fields, "layer_types", heads.into_iter().map(kind).collect());
    set(fields, "conv_L_cache", json!(keys.size("shortconv.l_cache")?));
    // A file has the width that the rule gave.
    set(fields, "block_auto_adjust_ff_dim", json!(false));
    set(fields, "norm_eps", fields["rms_norm_eps"].clone());
    Ok(())
}

/// Adds the experts, their number under the name `count`; refuses another choice of experts than `gating`, and experts
/// beside which others always work.
fn experts(count: &str, gating: f64, keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    set(fields, count, json!(keys.size("expert_count")?));
    set(fields, "num_experts_per_tok", json!(keys.size("expert_used_count")?));
    keys.only("expert_gating_func", gating)?;
    for (key, neutral) in [
        ("expert_shared_count", 0.0),
        ("expert_shared_feed_forward_length", 0.0),
        ("leading_dense_block_count", 0.0),
        ("expert_group_count", 0.0),
        ("expert_group_used_count", 0.0),
    ] {
        keys.only(key, neutral)?;
    }
    if keys.number("expert_weights_scale")?.is_some_and(|scale| scale.abs() > 0.0) {
        keys.only("expert_weights_scale", 1.0)?;
    }
    if keys.flag("expert_weights_norm")?.is_some_and(|normed| normed != fields_norm(fields)) {
        return Err(keys.fault("expert_weights_norm", "differs from the architecture's"));
    }
    Ok(())
}

/// Returns whether the weights of the chosen experts are divided by their sum.
fn fields_norm(fields: &Map<String, Value>) -> bool {
    fields.get("norm_topk_prob").is_none_or(|norm| norm == true)
}
