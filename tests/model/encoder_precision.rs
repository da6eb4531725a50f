//! Effect of bf16 and 8-bit weights on the vectors of encoders, beside those of f32.

use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::model::linear::Dtype;
use candle_core::Device;

use crate::encoders::{Text, hidden, path, texts, vector};
use crate::fixtures::{folder, max_difference};

/// Fixtures of different blocks: with biases, rotated positions, windows, terms by distance, and an RMS norm.
const ENCODERS: [&str; 5] = ["bert", "mpnet", "modernbert", "nomic_bert", "gemma3_embedding"];

/// Bounds of one storage of weights: about twice the measurements on the worst family, whose random weights amplify
/// rounding more than trained ones do.
struct Bounds {
    name: &'static str,
    dtype: Option<Dtype>,
    quantize: Option<&'static str>,
    /// Largest difference of a value of vectors of length 1.
    value: f32,
    /// Largest 1 − cosine.
    angle: f64,
}

const BOUNDS: [Bounds; 2] = [
    Bounds { name: "bf16", dtype: Some(Dtype::Bf16), quantize: None, value: 1e-2, angle: 1e-3 },
    Bounds { name: "q8_0", dtype: None, quantize: Some("q8_0"), value: 3e-2, angle: 3e-3 },
];

fn load(name: &str, dtype: Option<Dtype>, quantize: Option<&str>) -> BaseModel {
    let entry =
        ModelEntry { dtype, quantize: quantize.map(str::to_owned), ..ModelEntry::new("m", folder(&path(name))) };
    BaseModel::load(&entry, &Device::Cpu).unwrap()
}

fn vectors(model: &mut BaseModel, texts: &[Text]) -> Vec<Vec<f32>> {
    model.vectors.is_normalized = true;
    let states = hidden(model, texts, None);
    texts.iter().zip(&states).map(|(text, states)| vector(model, text, states)).collect()
}

fn angle(left: &[f32], right: &[f32]) -> f64 {
    1.0 - left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum::<f64>()
}

#[test]
fn vectors_stay_close_to_those_of_f32() {
    for Bounds { name, dtype, quantize, value, angle: most } in BOUNDS {
        let (mut worst, mut widest) = (0.0_f32, 0.0_f64);
        for family in ENCODERS {
            let mut exact = load(family, Some(Dtype::F32), None);
            let texts = texts(&folder(&path(family)), &exact);
            let mut rounded = load(family, dtype, quantize);
            assert!(rounded.decoder.weight_bytes() < exact.decoder.weight_bytes(), "{name}, {family}");
            let (wanted, own) = (vectors(&mut exact, &texts), vectors(&mut rounded, &texts));
            let mut moved = 0.0_f32;
            for (wanted, own) in wanted.iter().zip(&own) {
                moved = moved.max(max_difference(own, wanted));
                widest = widest.max(angle(own, wanted));
            }
            assert!(moved > 1e-6, "{name}, {family}: nothing was rounded");
            worst = worst.max(moved);
        }
        println!("{name}: values differ by {worst:.1e}, 1 − cosine is {widest:.1e}");
        assert!(worst <= value && widest <= most, "{name}: {worst:e}, {widest:e}");
    }
}
