//! What a family's weights are changed in, and `config.json` with them.

use anyhow::{Context as _, Result, ensure};
use candle_core::safetensors::MmapedSafetensors;
use serde_json::{Map, Value, json};

/// Families whose experts the library computes on a CPU only if all of a layer lie in one tensor.
const EXPERTS: &[&str] = &["deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_moe"];
/// Families with latent attention, which the library computes on a CPU only if values are as wide as keys.
const LATENT: &[&str] = &["deepseek_v2", "deepseek_v3", "glm4_moe_lite"];

/// What the library reads otherwise than the published files have it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    /// Number of layers.
    pub(crate) layers: usize,
    /// The experts of a layer are put into one tensor.
    pub(crate) packs_experts: bool,
    /// Values get zeros behind them.
    pub(crate) values: Option<Values>,
    /// Rows that are rotated together lie in two halves, and are put beside each other.
    pub(crate) halves: Option<Halves>,
    /// The bias of the router is raised until it is nowhere below 0: the library takes 0 for an expert that it may not
    /// choose.
    pub(crate) raises_bias: bool,
}

/// Widths of a head in latent attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values {
    pub(crate) heads: usize,
    /// Key's part that is not rotated, which comes from the same layer.
    pub(crate) key: usize,
    pub(crate) value: usize,
    /// Width that values get, which is that of whole keys.
    pub(crate) wide: usize,
}

/// Widths of a head in plain attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halves {
    pub(crate) width: usize,
    /// The first ones, which are rotated.
    pub(crate) rotated: usize,
}

/// Returns what is changed in the weights, and changes `config` with it; `None` if nothing is.
pub(crate) fn changes(config: &mut Value, source: &MmapedSafetensors, on_cpu: bool) -> Result<Option<Changes>> {
    let family = config["model_type"].as_str().unwrap_or_default().to_owned();
    let family = family.as_str();
    let number = |config: &Value, name: &str| -> Result<usize> {
        let found = config[name].as_u64().with_context(|| format!("`{name}` is missing in config.json"))?;
        Ok(found as usize)
    };
    let has_experts = || source.tensors().iter().any(|(name, _)| super::expert(name).is_some());
    let packs_experts = on_cpu && EXPERTS.contains(&family) && has_experts();
    let mut values = None;
    if on_cpu && LATENT.contains(&family) {
        let (key, rotated) = (number(config, "qk_nope_head_dim")?, number(config, "qk_rope_head_dim")?);
        let (value, wide) = (number(config, "v_head_dim")?, key + rotated);
        ensure!(value <= wide, "`v_head_dim` {value} is above the width of keys, which is {wide}");
        if value < wide {
            config["v_head_dim"] = json!(wide);
            values = Some(Values { heads: number(config, "num_attention_heads")?, key, value, wide });
        }
    }
    let mut halves = None;
    if family == "glm4_moe" {
        let heads = number(config, "num_attention_heads")?;
        let width =
            number(config, "head_dim").or_else(|_| Ok::<_, anyhow::Error>(number(config, "hidden_size")? / heads))?;
        // The library computes it like this, too.
        let rotated = (config["partial_rotary_factor"].as_f64().unwrap_or(1.0) as f32 * width as f32) as usize;
        halves = Some(Halves { width, rotated });
    }
    let raises_bias =
        ["deepseek_v3", "glm4_moe", "glm4_moe_lite"].contains(&family) && config["n_group"].as_u64().unwrap_or(1) > 1;
    if !packs_experts && values.is_none() && halves.is_none() && !raises_bias {
        return Ok(None);
    }
    ensure!(
        config["quantization_config"].is_null(),
        "the weights of this family are written anew for the library, and these are quantized: take a checkpoint with whole ones"
    );
    let layers = number(config, "num_hidden_layers")?;
    Ok(Some(Changes { layers, packs_experts, values, halves, raises_bias }))
}

/// Says what newer files say under the names that the library reads; where one is missing, it takes a value of its own.
pub(crate) fn with_older_names(config: &mut Value) {
    let family = config["model_type"].as_str().unwrap_or_default().to_owned();
    for part in ["", "text_config"] {
        let fields = if part.is_empty() { Some(&mut *config) } else { config.get_mut(part) };
        if let Some(fields) = fields.and_then(Value::as_object_mut) {
            rotation(fields);
        }
    }
    let Some(fields) = config.as_object_mut() else { return };
    if family == "granitemoehybrid" {
        for kind in fields.get_mut("layer_types").and_then(Value::as_array_mut).into_iter().flatten() {
            match kind.as_str() {
                Some("linear_attention") => *kind = json!("mamba"),
                Some("full_attention") => *kind = json!("attention"),
                _ => {}
            }
        }
    }
    if family == "deepseek_v3" {
        // The only ones that the family has; the library takes others.
        fields.entry("topk_method").or_insert(json!("noaux_tc"));
        fields.entry("scoring_func").or_insert(json!("sigmoid"));
    }
}

/// Says `rope_parameters` as `rope_theta` and `rope_scaling`.
fn rotation(fields: &mut Map<String, Value>) {
    let Some(Value::Object(newer)) = fields.get("rope_parameters").cloned() else { return };
    if fields.contains_key("rope_theta") || !newer.contains_key("rope_theta") {
        return;
    }
    fields.insert("rope_theta".into(), newer["rope_theta"].clone());
    if let Some(factor) = newer.get("partial_rotary_factor") {
        fields.entry("partial_rotary_factor").or_insert(factor.clone());
    }
    if fields.get("rope_scaling").is_some_and(|scaling| !scaling.is_null()) {
        return;
    }
    let kind = newer.get("rope_type").cloned().unwrap_or_else(|| json!("default"));
    if newer.contains_key("mrope_section") {
        fields.insert("rope_scaling".into(), json!({"type": "mrope", "mrope_section": newer["mrope_section"]}));
    } else if kind != "default" {
        let mut older = newer;
        older.insert("type".into(), kind);
        fields.insert("rope_scaling".into(), Value::Object(older));
    }
}
