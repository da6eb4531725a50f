//! Fields of `config.json`, changed one at a time (`tests/parity/make_fields.py`): the model gives transformers' logits, or
//! is refused. With `ATTUNE_FIELDS` the test reads another table that the script wrote.

use std::path::PathBuf;

use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, TextRows};
use attune::model::linear::Storage;
use attune::model::weights::Weights;
use attune::train::backward::hidden_states;
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::fixtures::{Reference, device, floats, folder, max_difference, one_sequence};

/// Of the last token's logits every so manieth is in the table.
const KEPT: usize = 40;
/// Of an encoder's hidden states every so manieth number is.
const KEPT_HIDDEN: usize = 320;

/// Returns numbers that depend on the name alone, as the script computes them.
fn filled(name: &str, shape: &[usize]) -> Tensor {
    let phase = f64::from(name.bytes().map(u32::from).sum::<u32>());
    let middle = if name.contains("norm") { 1.0 } else { 0.0 };
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|index| ((index as f64 * 0.7 + phase).sin() * 0.2 + middle) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Computes logits of the last token after the change of `case`, or says why the model is refused.
fn logits(case: &Value) -> Result<Vec<f32>, String> {
    let family = case["family"].as_str().unwrap();
    let target = tempfile::tempdir().unwrap();
    let native = folder(family).join("config_native.json");
    let file = if native.exists() { native } else { folder(family).join("config.json") };
    let text = std::fs::read_to_string(file).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    config.extend(case["set"].as_object().cloned().unwrap_or_default());
    if let Some(name) = case["remove"].as_str() {
        config.remove(name);
    }
    let config = ModelConfig::parse(&Value::Object(config).to_string())?;
    let file = folder(family).join("model.safetensors");
    let Some(tensors) = case["tensors"].as_object() else {
        return logits_of(&config, &folder(family), family);
    };
    let mut weights = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    for (name, shape) in tensors {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        weights.insert(name.clone(), filled(name, &shape));
    }
    candle_core::safetensors::save(&weights, target.path().join("model.safetensors")).unwrap();
    logits_of(&config, target.path(), family)
}

fn longest_text(family: &str) -> Vec<u32> {
    let texts = std::fs::read_to_string(folder(family).join("texts.json")).unwrap();
    let texts: Value = serde_json::from_str(&texts).unwrap();
    let texts = texts["cases"].as_array().unwrap().iter();
    // The first of several that are as long.
    let longest = texts.rev().max_by_key(|case| case["input_ids"].as_array().unwrap().len()).unwrap();
    serde_json::from_value(longest["input_ids"].clone()).unwrap()
}

fn logits_of(config: &ModelConfig, folder: &std::path::Path, family: &str) -> Result<Vec<f32>, String> {
    let weights = Weights::open(folder, &device()).map_err(|error| error.to_string())?;
    let decoder = Decoder::load(config, &weights, &Storage::default()).map_err(|error| error.to_string())?;
    if family.starts_with("encoders/") {
        let tokens = longest_text(family);
        let hidden = if config.is_encoder {
            let rows = [TextRows { rows: 0..tokens.len(), second: None, adapter: None }];
            decoder.encode(&tokens, &rows).map_err(|error| error.to_string())?
        } else {
            hidden_states(&decoder, None, &one_sequence(&tokens)).map_err(|error| error.to_string())?
        };
        return Ok(floats(&hidden).into_iter().step_by(KEPT_HIDDEN).collect());
    }
    let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
    let hidden = hidden_states(&decoder, None, &one_sequence(&tokens)).map_err(|error| error.to_string())?;
    let last = hidden.narrow(0, tokens.len() - 1, 1).unwrap();
    Ok(floats(&decoder.logits(&last).unwrap()).into_iter().step_by(KEPT).collect())
}

/// Returns what `case` gives, or if it does not say so, what its fixture does: an encoder's is the first of its `cases`.
/// `None` if transformers refuses the case.
fn expected(case: &Value, cases: &[Value]) -> Option<Vec<f32>> {
    if case["error"].is_string() {
        return None;
    }
    let family = case["family"].as_str().unwrap();
    let of_encoder =
        || cases.iter().find(|first| first["family"] == family).filter(|_| family.starts_with("encoders/"));
    let Some(logits) = case["logits"].as_array().or_else(|| of_encoder()?["logits"].as_array()) else {
        let all = Reference::read(family, "reference.safetensors").tensor("logits").clone();
        let last = all.narrow(0, all.dim(0).unwrap() - 1, 1).unwrap();
        return Some(floats(&last).into_iter().step_by(KEPT).collect());
    };
    Some(logits.iter().map(|value| value.as_f64().unwrap() as f32).collect())
}

#[test]
fn a_changed_field_gives_the_logits_of_transformers_or_is_refused() {
    let file = std::env::var_os("ATTUNE_FIELDS").map_or_else(|| folder("fields.json"), PathBuf::from);
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let (mut wrong, mut equal) = (Vec::new(), 0);
    for case in &cases {
        let what = format!("{} set {} remove {}", case["family"], case["set"], case["remove"]);
        match (logits(case), expected(case, &cases)) {
            (Ok(found), Some(expected)) => {
                let difference = max_difference(&found, &expected);
                if difference <= 1e-4 {
                    equal += 1;
                } else {
                    wrong.push(format!("{what}: logits differ by {difference:e}"));
                }
            }
            (Ok(_), None) => println!("not refused: {what}: {}", case["error"]),
            (Err(said), expected) => {
                println!("refused{}: {what}: {said}", if expected.is_some() { "" } else { " by both" });
            }
        }
    }
    println!("{equal} of {} are equal", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
