//! Scaling of the rotary embedding beyond the context that a model was first trained on, as given in `config.json`.
//! Read by [`crate::config`], applied by [`crate::rope`].

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
            other => {
                Err(format!("rope type `{other}` is not supported; supported are default, linear, llama3 and yarn"))
            }
        }
    }
}
