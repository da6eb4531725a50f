//! Scaling of the rotary embedding beyond the context that a model was first trained on, as given in `config.json`.
//! Read by [`crate::config`], applied by [`crate::rope`].
//!
//! Numbers that are there have the meaning that transformers' `modeling_rope_utils` gives them.

use serde_json::Value;

/// Stretching of the frequencies for contexts longer than the one first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No stretching.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Every frequency divided by a number of its own, as GGUF files write out the scaling of Llama 3.1.
    Divided {
        /// One number for each frequency.
        divisors: Vec<f64>,
    },
    /// Llama 3.1: long wavelengths stretched, short ones kept, a smooth passage between.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low_frequency_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_frequency_factor: f64,
        /// The context first trained on, in tokens.
        original_context: f64,
    },
    /// YaRN: a ramp between stretched and kept frequencies, and cosines and sines scaled by `attention_factor`.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Rotations over the original context from which a frequency is kept.
        beta_fast: f64,
        /// Rotations up to which a frequency is stretched.
        beta_slow: f64,
        /// The context first trained on, in tokens.
        original_context: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// True if the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE: every frequency divided by a factor of its own, one list of factors for sequences of the context first
    /// trained on and one for longer ones, and cosines and sines scaled by `attention_factor`.
    LongRope {
        /// Factors of sequences of up to `original_context` tokens, one for each frequency.
        short: Vec<f64>,
        /// Factors of longer sequences, one for each frequency.
        long: Vec<f64>,
        /// The context first trained on, in tokens.
        original_context: usize,
        /// Factor on cosines and sines, of both tables.
        attention_factor: f64,
    },
}

/// Growth of the rotated queries beyond the context that a model was first trained on (Ministral 3): those of position
/// `p` are multiplied by `1 + beta · ln(1 + ⌊p / original_context⌋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScaling {
    /// Strength.
    pub beta: f64,
    /// The context first trained on, in tokens.
    pub original_context: f64,
}

impl QueryScaling {
    /// Reads `llama_4_scaling_beta` beside the `scaling` whose original context it counts in.
    pub fn parse(parameters: &Value, original_context: Option<f64>) -> Result<Self, String> {
        let number = |name: &str| parameters[name].as_f64();
        let beta = number("llama_4_scaling_beta").ok_or("rope_parameters need `llama_4_scaling_beta`")?;
        let original_context = original_context.or(number("original_max_position_embeddings"));
        match original_context.filter(|context| *context >= 1.0) {
            Some(original_context) => Ok(Self { beta, original_context }),
            None => Err("rope_parameters need `original_max_position_embeddings`".into()),
        }
    }

    /// Returns the factor on the queries of `position`.
    pub fn factor(&self, position: usize) -> f32 {
        (1.0 + self.beta * (position as f64 / self.original_context).floor().ln_1p()) as f32
    }
}

impl RopeScaling {
    /// Reads `rope_parameters` or the older `rope_scaling` of a model with a `context` in tokens. What the
    /// configuration itself calls its `original_context` wins over what the parameters call so.
    pub fn parse(parameters: Option<&Value>, context: usize, original_context: Option<f64>) -> Result<Self, String> {
        let Some(parameters) = parameters.filter(|value| !value.is_null()) else { return Ok(Self::None) };
        let kind = parameters["rope_type"].as_str().or(parameters["type"].as_str()).unwrap_or("default");
        let number = |name: &str| parameters[name].as_f64();
        let required = |name: &str| number(name).ok_or(format!("rope type `{kind}` needs `{name}`"));
        let context = context as f64;
        let original_context = original_context.or(number("original_max_position_embeddings")).unwrap_or(context);
        match kind {
            "default" => Ok(Self::None),
            // It stretches for sequences beyond the model's own context, of which there are none here.
            "dynamic" => required("factor").map(|_| Self::None),
            "linear" => Ok(Self::Linear { factor: required("factor")? }),
            "divided" => {
                let divisors = parameters["divisors"].as_array().map(|list| list.iter().filter_map(Value::as_f64));
                Ok(Self::Divided { divisors: divisors.ok_or("rope type `divided` needs `divisors`")?.collect() })
            }
            "llama3" => Ok(Self::Llama3 {
                factor: required("factor")?,
                low_frequency_factor: required("low_freq_factor")?,
                high_frequency_factor: required("high_freq_factor")?,
                original_context,
            }),
            "yarn" => {
                // Present and `null`, it is the ratio of the two contexts.
                let factor = match parameters.get("factor") {
                    Some(Value::Null) => context / original_context,
                    _ => required("factor")?,
                };
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let default_factor = match (number("mscale"), number("mscale_all_dim")) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
                    _ => scale(1.0),
                };
                Ok(Self::Yarn {
                    factor,
                    beta_fast: number("beta_fast").filter(|beta| *beta != 0.0).unwrap_or(32.0),
                    beta_slow: number("beta_slow").filter(|beta| *beta != 0.0).unwrap_or(1.0),
                    original_context,
                    attention_factor: number("attention_factor").unwrap_or(default_factor),
                    truncate: parameters["truncate"].as_bool().unwrap_or(true),
                })
            }
            // The name under which it came.
            "longrope" | "su" => long_rope(parameters, context, original_context),
            other => Err(format!(
                "rope type `{other}` is not supported; supported are default, linear, dynamic, llama3, yarn and longrope"
            )),
        }
    }

    /// Refuses lists of factors that are not as long as the list of frequencies of `rotated` elements.
    pub fn check(&self, rotated: usize) -> Result<(), String> {
        let Self::LongRope { short, long, .. } = self else { return Ok(()) };
        for (name, factors) in [("short_factor", short), ("long_factor", long)] {
            if factors.len() != rotated / 2 {
                return Err(format!(
                    "`{name}` has {} factors, but there are {} frequencies",
                    factors.len(),
                    rotated / 2
                ));
            }
        }
        Ok(())
    }
}

fn long_rope(parameters: &Value, context: f64, original_context: f64) -> Result<RopeScaling, String> {
    let factors = |name: &str| {
        let list =
            parameters[name].as_array().ok_or_else(|| format!("rope type `longrope` needs the list `{name}`"))?;
        let factor = |value: &Value| value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0);
        let factors: Option<Vec<f64>> = list.iter().map(factor).collect();
        factors.ok_or_else(|| format!("`{name}` must hold numbers above 0"))
    };
    if original_context < 2.0 {
        return Err("`original_max_position_embeddings` must be at least 2".into());
    }
    let factor = parameters["factor"].as_f64().unwrap_or(context / original_context);
    let default_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original_context: original_context as usize,
        attention_factor: parameters["attention_factor"].as_f64().unwrap_or(default_factor),
    })
}

#[cfg(test)]
#[path = "rope_scaling_tests.rs"]
mod tests;
