//! The mixture of experts as `config.json` describes it. Read by [`super::ModelConfig`], used by the decoder.

use super::fields::Fields;
use crate::forms::Activation;
use crate::sites::{Module, Site};

/// The experts that take the place of every block's MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// Experts of a block.
    pub count: usize,
    /// Experts that each row goes through.
    pub chosen: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// True if the weights of a row's experts are divided by their sum.
    pub normalized: bool,
    /// The activation of an expert.
    pub glu: Glu,
    /// True if router and experts have biases.
    pub biases: bool,
}

/// Activation of an expert's gate and up projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Glu {
    /// activation(gate) · up.
    Gated(Activation),
    /// gpt-oss's: (up + 1) · gate · σ(α · gate), both within limits.
    Clamped(GluLimits),
}

/// Numbers of gpt-oss's activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GluLimits {
    /// Factor inside the sigmoid.
    pub alpha: f32,
    /// Largest value of the gate, and largest size of up.
    pub limit: f32,
}

impl GluLimits {
    /// Returns gate and up within their limits.
    pub(crate) fn clamp(self, gate: f32, up: f32) -> (f32, f32) {
        (gate.min(self.limit), up.clamp(-self.limit, self.limit))
    }

    /// Returns the derivatives of `(u + 1) · g · σ(α g)` with respect to gate and up, 0 beyond their limits.
    pub(crate) fn slopes(self, gate: f32, up: f32, sigmoid: impl Fn(f32) -> f32) -> (f32, f32) {
        let (clamped_gate, clamped_up) = self.clamp(gate, up);
        let scaled = self.alpha * clamped_gate;
        let share = sigmoid(scaled);
        let dgate = if gate <= self.limit { (clamped_up + 1.0) * share * (1.0 + scaled * (1.0 - share)) } else { 0.0 };
        let dup = if up.abs() <= self.limit { clamped_gate * share } else { 0.0 };
        (dgate, dup)
    }
}

/// What transformers takes for missing fields, where families differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertDefaults {
    pub(super) count: usize,
    pub(super) chosen: usize,
    /// Name of the field with the width of an expert, and its default.
    pub(super) intermediate_size: (&'static str, usize),
    /// `None` if `norm_topk_prob` decides.
    pub(super) normalized: Option<bool>,
    /// True for gpt-oss: biases, and its activation.
    pub(super) gpt_oss: bool,
}

impl ExpertsConfig {
    /// Returns `(out, in)` of an expert's layer at `site`, one of gate, up and down, in a model with hidden states of
    /// `hidden_size`.
    pub fn site_shape(&self, site: Site, hidden_size: usize) -> (usize, usize) {
        let width = self.intermediate_size;
        if site == Site::Down { (hidden_size, width) } else { (width, hidden_size) }
    }

    /// Returns `(out, in)` of an expert's part of `module`, one of [`EXPERTS`](crate::sites::EXPERTS).
    pub fn shape(&self, module: &Module, hidden_size: usize) -> (usize, usize) {
        let shapes = module.sites.iter().map(|site| self.site_shape(*site, hidden_size));
        shapes.reduce(|(out, input), (more, _)| (out + more, input)).unwrap_or_default()
    }

    /// Reads the fields of a family with experts, and refuses by name those that the decoder does not apply.
    pub(super) fn parse(fields: &Fields, defaults: ExpertDefaults, activation: Activation) -> Result<Self, String> {
        refuse_unknown(fields)?;
        // Which of the two names a file has depends on the version that wrote it.
        let (one, other) = (fields.optional_size("num_experts")?, fields.optional_size("num_local_experts")?);
        if one.is_some() && other.is_some() && one != other {
            return Err("num_experts and num_local_experts differ".into());
        }
        let count = one.or(other).unwrap_or(defaults.count);
        let chosen = fields.size("num_experts_per_tok", defaults.chosen)?;
        if chosen > count {
            return Err(format!("num_experts_per_tok {chosen} is more than the {count} experts"));
        }
        let (name, width) = defaults.intermediate_size;
        let normalized = match defaults.normalized {
            Some(normalized) => normalized,
            None => fields.flag("norm_topk_prob", false)?,
        };
        let glu = if defaults.gpt_oss {
            let number = |name: &str, default: f64| Ok::<_, String>(fields.number(name)?.unwrap_or(default) as f32);
            Glu::Clamped(GluLimits {
                alpha: number("swiglu_alpha", 1.702)?,
                limit: limit(number("swiglu_limit", 7.0)?)?,
            })
        } else {
            Glu::Gated(activation)
        };
        Ok(Self {
            count,
            chosen,
            intermediate_size: fields.size(name, width)?,
            normalized,
            glu,
            biases: defaults.gpt_oss,
        })
    }
}

fn limit(limit: f32) -> Result<f32, String> {
    if limit > 0.0 { Ok(limit) } else { Err("swiglu_limit must be above 0".into()) }
}

fn refuse_unknown(fields: &Fields) -> Result<(), String> {
    if fields.list("mlp_only_layers", serde_json::Value::as_u64)?.is_some_and(|layers| !layers.is_empty()) {
        return Err("mlp_only_layers is not supported: every layer must have experts".into());
    }
    if fields.size("decoder_sparse_step", 1)? != 1 {
        return Err("decoder_sparse_step above 1 is not supported: every layer must have experts".into());
    }
    for name in
        ["clip_qkv", "router_jitter_noise", "shared_expert_intermediate_size", "n_shared_experts", "num_shared_experts"]
    {
        if fields.number(name)?.is_some_and(|value| value != 0.0) {
            return Err(format!("{name} is not supported"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use super::*;
    use crate::ModelConfig;

    const FAMILIES: [&str; 4] = ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"];

    fn parse(family: &str, more: &str) -> Result<ModelConfig, String> {
        ModelConfig::parse(&format!(
            r#"{{"model_type":"{family}","hidden_size":64,"num_hidden_layers":4,"num_attention_heads":8,
                "num_key_value_heads":2,"vocab_size":8,"rope_parameters":{{"rope_type":"default","rope_theta":1e4}}{more}}}"#
        ))
    }

    #[test]
    fn both_spellings_of_a_configuration_mean_the_same() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        for family in FAMILIES {
            let read = |file: &str| ModelConfig::read_file(&fixtures.join(family).join(file)).unwrap();
            assert_eq!(
                format!("{:?}", read("config.json")),
                format!("{:?}", read("config_old_style.json")),
                "{family}"
            );
        }
    }

    #[test]
    fn missing_fields_have_the_defaults_of_their_family() {
        // Experts, chosen ones, their width, whether weights are divided by their sum; epsilon of the norms.
        for (family, expected) in [
            ("qwen3_moe", (128, 8, 768, false, 1e-6)),
            ("mixtral", (8, 2, 14_336, true, 1e-5)),
            ("olmoe", (64, 8, 2048, false, 1e-5)),
            ("gpt_oss", (128, 4, 2880, true, 1e-5)),
        ] {
            let config = parse(family, "").unwrap();
            let experts = config.experts.unwrap();
            let read =
                (experts.count, experts.chosen, experts.intermediate_size, experts.normalized, config.rms_norm_eps);
            assert_eq!(read, expected, "{family}");
            assert_eq!(config.attention_sinks, family == "gpt_oss");
        }
        let gpt_oss = parse("gpt_oss", "").unwrap();
        assert_eq!(gpt_oss.sliding_windows, [Some(128), None, Some(128), None]);
        assert_eq!(gpt_oss.experts.unwrap().glu, Glu::Clamped(GluLimits { alpha: 1.702, limit: 7.0 }));
    }

    #[test]
    fn the_number_of_experts_has_two_names() {
        for name in ["num_experts", "num_local_experts"] {
            for family in FAMILIES {
                let config = parse(family, &format!(r#","{name}":16"#)).unwrap();
                assert_eq!(config.experts.unwrap().count, 16, "{family}, {name}");
            }
        }
        assert!(parse("olmoe", r#","num_experts":16,"num_local_experts":8"#).unwrap_err().contains("differ"));
    }

    #[test]
    fn what_the_decoder_does_not_apply_is_refused_by_name() {
        for (family, more, named) in [
            ("qwen3_moe", r#","mlp_only_layers":[1]"#, "mlp_only_layers"),
            ("qwen3_moe", r#","decoder_sparse_step":2"#, "decoder_sparse_step"),
            ("qwen3_moe", r#","shared_expert_intermediate_size":32"#, "shared_expert_intermediate_size"),
            ("mixtral", r#","num_local_experts":2,"num_experts_per_tok":3"#, "num_experts_per_tok"),
            ("mixtral", r#","router_jitter_noise":0.1"#, "router_jitter_noise"),
            ("olmoe", r#","clip_qkv":8.0"#, "clip_qkv"),
            ("gpt_oss", r#","swiglu_limit":0.0"#, "swiglu_limit"),
            ("gpt_oss", r#","rope_parameters":null"#, "rope_parameters"),
            ("qwen2_moe", "", "`qwen2_moe` is not supported"),
        ] {
            let said = parse(family, more).unwrap_err();
            assert!(said.contains(named), "{family}{more}: {said}");
        }
        assert!(parse("qwen3_moe", r#","mlp_only_layers":[],"decoder_sparse_step":1,"clip_qkv":null"#).is_ok());
    }
}
