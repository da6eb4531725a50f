//! The families that the crate mistralrs 0.8.1 has, what is known of its answers for each, and what of a `config.json` it does
//! not compute as transformers does. Asked by [`super`] before anything is started.

use std::path::Path;

use serde_json::Value;

use super::fault;
use crate::Result;

/// A family that mistralrs serves as a model of text.
pub(super) struct Family {
    /// The `model_type` of `config.json`.
    pub(super) name: &'static str,
    /// The class in `architectures` that it loads.
    class: &'static str,
    pub(super) standing: Standing,
    /// The types of scaled rotation that it applies; it passes over all others without a word.
    rotations: &'static [&'static str],
}

/// What is known of the answers of a family. What was compared was compared with transformers, on small random models and on
/// the CPU.
#[derive(PartialEq)]
pub(super) enum Standing {
    /// The same as transformers', to 1e-4.
    Compared,
    /// Attune's decoder has the family; the answers of those that were compared are the same.
    Shared,
    /// Nobody has compared them.
    Unknown,
    /// It fails on a CPU, in this way.
    FailsOnCpu(&'static str),
    /// They are others than transformers', for this reason.
    Wrong(&'static str),
}

/// What a file may say of a family: what mistralrs takes as given, whatever the file says.
struct Rule {
    family: &'static str,
    field: &'static str,
    /// The only value, as JSON; it may be left out.
    only: &'static str,
}

use Standing::{Compared, FailsOnCpu, Shared, Unknown, Wrong};

const PARTIAL: &str = "it cannot rotate a part of a head there";
const LLAMA: &[&str] = &["llama3"];
const YARN: &[&str] = &["yarn"];
const LONG: &[&str] = &["longrope", "su"];
/// Of models that read pictures: text has the usual rotation.
const SECTIONS: &[&str] = &["mrope"];

/// All families.
const FAMILIES: &[Family] = &[
    family("starcoder2", "Starcoder2ForCausalLM", Compared, &[]),
    family("glm4", "Glm4ForCausalLM", Compared, &[]),
    family("deepseek_v2", "DeepseekV2ForCausalLM", Compared, YARN),
    family("deepseek_v3", "DeepseekV3ForCausalLM", Compared, YARN),
    family("glm4_moe", "Glm4MoeForCausalLM", Compared, &[]),
    family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", Compared, &[]),
    family("granitemoehybrid", "GraniteMoeHybridForCausalLM", Compared, &[]),
    family("qwen2_vl", "Qwen2VLForConditionalGeneration", Compared, SECTIONS),
    family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", Compared, SECTIONS),
    family("qwen3_vl", "Qwen3VLForConditionalGeneration", Compared, SECTIONS),
    family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", Compared, SECTIONS),
    family("gemma4", "Gemma4ForConditionalGeneration", Compared, &[]),
    family("mllama", "MllamaForConditionalGeneration", Compared, LLAMA),
    family("llama", "LlamaForCausalLM", Shared, LLAMA),
    family("mistral", "MistralForCausalLM", Shared, &[]),
    family("mixtral", "MixtralForCausalLM", Shared, &[]),
    family("qwen2", "Qwen2ForCausalLM", Shared, &[]),
    family("qwen3", "Qwen3ForCausalLM", Shared, &[]),
    family("qwen3_moe", "Qwen3MoeForCausalLM", Shared, &[]),
    family("smollm3", "SmolLM3ForCausalLM", Shared, LLAMA),
    family("gemma", "GemmaForCausalLM", Shared, &[]),
    family("gemma2", "Gemma2ForCausalLM", Shared, &[]),
    family("phi3", "Phi3ForCausalLM", Shared, LONG),
    family("gpt_oss", "GptOssForCausalLM", Shared, YARN),
    family("gemma3n", "Gemma3nForConditionalGeneration", Unknown, &[]),
    family("phi", "PhiForCausalLM", FailsOnCpu(PARTIAL), &[]),
    family("qwen3_next", "Qwen3NextForCausalLM", FailsOnCpu(PARTIAL), &[]),
    family("qwen3_5", "Qwen3_5ForConditionalGeneration", FailsOnCpu(PARTIAL), SECTIONS),
    family("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", FailsOnCpu(PARTIAL), SECTIONS),
    family("phimoe", "PhiMoEForCausalLM", Wrong("it lets other experts answer beside the first"), &[]),
    family(
        "llama4",
        "Llama4ForConditionalGeneration",
        Wrong("it weighs what an expert says, and not what it reads"),
        &[],
    ),
];

const RULES: &[Rule] = &[
    rule("starcoder2", "tie_word_embeddings", "true"),
    rule("deepseek_v2", "topk_method", "\"greedy\""),
    rule("deepseek_v2", "scoring_func", "\"softmax\""),
    rule("deepseek_v2", "norm_topk_prob", "false"),
    rule("deepseek_v2", "moe_layer_freq", "1"),
    rule("deepseek_v3", "topk_method", "\"noaux_tc\""),
    rule("deepseek_v3", "scoring_func", "\"sigmoid\""),
    rule("deepseek_v3", "norm_topk_prob", "true"),
    rule("deepseek_v3", "moe_layer_freq", "1"),
    rule("deepseek_v3", "rope_interleave", "true"),
    rule("glm4_moe_lite", "rope_interleave", "true"),
    rule("granitemoehybrid", "attention_bias", "false"),
    rule("granitemoehybrid", "hidden_act", "\"silu\""),
];

const fn family(
    name: &'static str,
    class: &'static str,
    standing: Standing,
    rotations: &'static [&'static str],
) -> Family {
    Family { name, class, standing, rotations }
}

const fn rule(family: &'static str, field: &'static str, only: &'static str) -> Rule {
    Rule { family, field, only }
}

impl Family {
    /// Returns the family with this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// Returns the family of this `config.json` if mistralrs takes it by itself: its answers were compared, and Attune's own
    /// decoder does not have it.
    pub(super) fn by_itself(fields: &Value) -> Option<&'static Self> {
        let family = Self::named(fields["model_type"].as_str()?)?;
        let is_own = family.name == "granitemoehybrid" && is_plain(fields);
        (family.standing == Compared && !is_own).then_some(family)
    }

    /// Refuses what mistralrs does not compute as transformers does.
    pub(super) fn check(&self, folder: &Path, fields: &Value) -> Result<()> {
        self.check_class(folder, fields)?;
        if let Wrong(reason) = self.standing {
            let name = self.name;
            return Err(fault(
                folder,
                &format!("mistralrs 0.8.1 gives other answers than transformers for model_type `{name}`: {reason}"),
            ));
        }
        let broken = RULES.iter().find(|rule| {
            let (said, is_said) = (fields[rule.field].to_string(), !fields[rule.field].is_null());
            rule.family == self.name && is_said && said != rule.only
        });
        if let Some(Rule { field, only, .. }) = broken {
            let message = format!(
                "`{field}` is {}, but mistralrs 0.8.1 computes this family as if it were {only}",
                fields[*field]
            );
            return Err(fault(folder, &message));
        }
        match scaled(fields).or_else(|| scaled(&fields["text_config"])) {
            Some(kind) if !self.rotations.contains(&kind) => Err(fault(
                folder,
                &format!("the rotation is scaled (`{kind}`), which mistralrs 0.8.1 does not do for this family"),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a class of the family that is no model of text, such as one with a head for labels.
    fn check_class(&self, folder: &Path, fields: &Value) -> Result<()> {
        let found = fields["architectures"].as_array().and_then(|names| names.first()).and_then(Value::as_str);
        if found == Some(self.class) {
            return Ok(());
        }
        let message = format!(
            "`architectures` of config.json is {}, but the second engine loads {}",
            found.map_or_else(|| "missing".to_owned(), |name| format!("`{name}`")),
            self.class
        );
        Err(fault(folder, &message))
    }
}

/// Returns true if a hybrid model has neither Mamba's layers nor experts.
fn is_plain(fields: &Value) -> bool {
    let kinds = ["layer_types", "layers_block_type"].iter().find_map(|name| fields[*name].as_array());
    let is_attention = |kind: &Value| kind == "attention" || kind == "full_attention";
    kinds.is_some_and(|kinds| kinds.iter().all(is_attention)) && fields["num_local_experts"] == 0
}

/// Returns the type of a rotation that is not the usual one.
fn scaled(fields: &Value) -> Option<&str> {
    let kind = |name: &str| {
        let said = &fields[name];
        said["rope_type"].as_str().or_else(|| said["type"].as_str())
    };
    ["rope_scaling", "rope_parameters"].into_iter().filter_map(kind).find(|kind| *kind != "default")
}
