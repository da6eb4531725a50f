//! The form of a request's vectors: how many values they have, whether they have the length 1, and how they are written.
//! Called by `embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::http::error::{Problem, Result};
use crate::engine::EmbedOutput;
use crate::model::vectors::{VectorForm, normalize};

/// How vectors are written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// JSON numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

/// A vector as numbers or as base64.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian 32-bit floats.
    Base64(String),
}

impl EncodingFormat {
    /// Writes `vector` in this form.
    pub(crate) fn write(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Float(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

/// What becomes of the model's vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Values that are kept, the first ones.
    width: usize,
    /// Vectors that the engine is asked for.
    pub output: EmbedOutput,
    /// True if what the engine makes is scaled to length 1 here.
    is_scaled: bool,
}

impl Shape {
    /// Reads the fields `dimensions` and `normalize` of a request to a model of this `form`, whose vectors are scaled
    /// as the model does it unless the request says otherwise.
    pub(crate) fn of(form: &VectorForm, dimensions: Option<usize>, wants_one: Option<bool>) -> Result<Self> {
        let width = form.width();
        let kept = dimensions.unwrap_or(width);
        check_dimensions(kept, width, &form.shorter_widths)?;
        let wants_one = wants_one.unwrap_or(form.is_normalized);
        let output = if form.is_normalized && !wants_one { EmbedOutput::Unscaled } else { EmbedOutput::Vector };
        // A part of a vector of length 1 is shorter.
        let is_scaled = wants_one && (kept < width || !form.is_normalized);
        Ok(Self { width: kept, output, is_scaled })
    }

    /// Makes the vector of the answer of what the engine made.
    pub(crate) fn apply(self, mut vector: Vec<f32>) -> Vec<f32> {
        vector.truncate(self.width);
        if self.is_scaled {
            normalize(&mut vector);
        }
        vector
    }
}

/// Refuses numbers of values that the model's vectors cannot have: it has `width` of them, and may be trained for
/// `shorter` vectors.
fn check_dimensions(asked: usize, width: usize, shorter: &[usize]) -> Result<()> {
    if asked == width || (shorter.is_empty() && (1..width).contains(&asked)) || shorter.contains(&asked) {
        return Ok(());
    }
    let may_be = if shorter.is_empty() {
        format!("between 1 and {width}")
    } else {
        let widths: Vec<String> = shorter.iter().chain([&width]).map(usize::to_string).collect();
        format!("one of {}", widths.join(", "))
    };
    let message = format!("'dimensions' must be {may_be} for this model, or left out; {asked} was asked for.");
    Err(Problem::invalid_code("dimensions", "invalid_value", message))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::vectors::Pooling;

    fn form(is_normalized: bool, shorter_widths: &[usize]) -> VectorForm {
        VectorForm {
            poolings: vec![Pooling::Mean, Pooling::Max],
            pools_prompt: true,
            layers: Vec::new(),
            is_normalized,
            prompts: BTreeMap::new(),
            default_prompt: None,
            is_lower_cased: false,
            max_tokens: 8,
            shorter_widths: shorter_widths.to_vec(),
            hidden_size: 2,
        }
    }

    #[test]
    fn base64_is_little_endian_float32() {
        let vector = vec![0.5, -1.0, 2.0];
        assert_eq!(EncodingFormat::Base64.write(vector.clone()), Vector::Base64("AAAAPwAAgL8AAABA".into()));
        let numbers = serde_json::to_string(&EncodingFormat::Float.write(vector)).expect("JSON");
        assert_eq!(numbers, "[0.5,-1.0,2.0]");
    }

    #[test]
    fn shorter_vectors_are_those_that_the_model_names_or_any() {
        let is_fine = |shorter: &[usize], asked| Shape::of(&form(true, shorter), Some(asked), None).is_ok();
        assert_eq!([0, 1, 3, 4, 5].map(|asked| is_fine(&[], asked)), [false, true, true, true, false]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|asked| is_fine(&[2], asked)), [false, false, true, false, true, false]);
        let problem = Shape::of(&form(true, &[2]), Some(3), None).expect_err("not trained for");
        assert_eq!(problem.error.param.as_deref(), Some("dimensions"));
        assert!(problem.error.message.contains("one of 2, 4"), "{problem}");
    }

    #[test]
    fn vectors_have_the_length_that_model_and_request_say() {
        // The engine has scaled the first two, and not the others.
        for (is_normalized, wants_one, made, output, expected) in [
            (true, None, [0.6, 0.0, 0.8, 0.0], EmbedOutput::Vector, [1.0, 0.0]),
            (true, Some(true), [0.0, 0.5, 0.5, 0.5], EmbedOutput::Vector, [0.0, 1.0]),
            (true, Some(false), [3.0, 0.0, 4.0, 0.0], EmbedOutput::Unscaled, [3.0, 0.0]),
            (false, None, [3.0, 4.0, 1.0, 0.0], EmbedOutput::Vector, [3.0, 4.0]),
            (false, Some(true), [3.0, 4.0, 1.0, 0.0], EmbedOutput::Vector, [0.6, 0.8]),
        ] {
            let shape = Shape::of(&form(is_normalized, &[]), Some(2), wants_one).expect("a shape");
            assert_eq!(shape.output, output, "{is_normalized} {wants_one:?}");
            assert_eq!(shape.apply(made.to_vec()), expected, "{is_normalized} {wants_one:?}");
        }
        let whole = Shape::of(&form(false, &[]), None, Some(true)).expect("a shape");
        assert_eq!(whole.apply(vec![0.0, 3.0, 0.0, 4.0]), [0.0, 0.6, 0.0, 0.8]);
        let plain = Shape::of(&form(true, &[]), None, None).expect("a shape");
        assert_eq!(plain.apply(vec![0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4], "as the engine made it");
    }
}
