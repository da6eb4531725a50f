//! The scaling of Llama 3 as the divisors of the frequencies that files hold, and back.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use crate::rope_scaling::RopeScaling;

/// Ends of the ramp between kept and stretched wavelengths, which all models have.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
/// Stretches beside the one that the divisors show: a short list may not reach it.
const FACTORS: [f64; 5] = [8.0, 32.0, 4.0, 16.0, 2.0];
/// Largest relative difference of a divisor: they are in f32.
const TOLERANCE: f64 = 1e-5;

/// Returns the divisors of `scaling`, for frequencies with the base `theta` of `rotated` elements; `None` if it is not
/// Llama 3's.
pub(super) fn divisors(theta: f64, rotated: usize, scaling: &RopeScaling) -> Option<Vec<f64>> {
    let RopeScaling::Llama3 { factor, low_frequency_factor: low, high_frequency_factor: high, original_context } =
        scaling
    else {
        return None;
    };
    let divisor = |index: usize| {
        let wavelength = 2.0 * PI * theta.powf(2.0 * index as f64 / rotated as f64);
        let kept = ((original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / factor + kept)
    };
    Some((0..rotated / 2).map(divisor).collect())
}

/// Returns the scaling of Llama 3 that gives the divisors in `fields`; `None` if none does.
pub(super) fn of_divisors(fields: &Map<String, Value>) -> Option<Value> {
    let list = fields["rope_scaling"]["divisors"].as_array()?;
    let wanted: Vec<f64> = list.iter().filter_map(Value::as_f64).collect();
    let theta = fields["rope_theta"].as_f64()?;
    let shown = wanted.iter().copied().fold(1.0, f64::max);
    let factors = [(shown * 1000.0).round() / 1000.0].into_iter().chain(FACTORS);
    let contexts = (4..24).map(|power| f64::from(1_u32 << power));
    let mut candidates = factors.flat_map(|factor| contexts.clone().map(move |context| (factor, context)));
    let fits = |(factor, context): &(f64, f64)| {
        let scaling = RopeScaling::Llama3 {
            factor: *factor,
            low_frequency_factor: LOW,
            high_frequency_factor: HIGH,
            original_context: *context,
        };
        let found = divisors(theta, 2 * wanted.len(), &scaling).unwrap_or_default();
        found.iter().zip(&wanted).all(|(found, wanted)| (found - wanted).abs() <= TOLERANCE * wanted)
    };
    let (factor, context) = candidates.find(fits)?;
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": context as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaling_is_found_again_and_other_numbers_are_not_taken_for_it() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_frequency_factor: LOW,
            high_frequency_factor: HIGH,
            original_context: 8192.0,
        };
        let divisors = divisors(500_000.0, 64, &scaling).expect("Llama 3's");
        let stored: Vec<f32> = divisors.iter().map(|divisor| *divisor as f32).collect();
        let fields = |stored: &[f32]| {
            let fields = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "divided", "divisors": stored}});
            fields.as_object().cloned().unwrap_or_default()
        };
        let found = of_divisors(&fields(&stored)).expect("found");
        assert_eq!((&found["factor"], &found["original_max_position_embeddings"]), (&json!(32.0), &json!(8192)));
        let other: Vec<f32> = stored.iter().map(|divisor| divisor * 1.01).collect();
        assert_eq!(of_divisors(&fields(&other)), None);
    }
}
