//! Adapters of models whose blocks differ in their layers (LFM 2): some have attention, some a convolution.

use super::*;

const FAMILY: &str = "lfm2";

fn adapter() -> Adapter {
    let (config, weights) = files(FAMILY);
    peft::read(&config, &weights, &model(FAMILY), &Device::Cpu).unwrap()
}

fn targets(files: &peft::PeftFiles) -> Value {
    serde_json::from_slice::<Value>(&files.config).unwrap()["target_modules"].clone()
}

#[test]
fn a_name_that_layers_of_both_kinds_have_is_written_once() {
    let written = peft::write(&adapter(), FAMILY).unwrap();
    let names = json!(["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w3", "w2"]);
    assert_eq!(targets(&written), names);
}

#[test]
fn an_adapter_of_only_some_layers_of_a_name_is_written_by_their_full_names() {
    let whole = adapter();
    let mut layers = whole.layers.clone();
    let mut without = LoraLayer::default();
    for site in Site::ALL.into_iter().filter(|site| *site != Site::ConvolutionOutput) {
        if let Some(pair) = layers[2].get(site) {
            without.set(site, pair.clone());
        }
    }
    layers[2] = without;
    let part = Adapter::of_blocks("part".into(), layers, whole.names);
    let written = peft::write(&part, FAMILY).unwrap();
    let targets = targets(&written);
    let names: Vec<&str> = targets.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.contains(&"model.layers.0.conv.out_proj") && names.contains(&"model.layers.1.self_attn.out_proj"));
    assert!(!names.contains(&"model.layers.2.conv.out_proj"), "{names:?}");
    assert_same(&part, &peft::read(&written.config, &written.weights, &model(FAMILY), &Device::Cpu).unwrap());
}

#[test]
fn tensors_of_a_layer_that_the_block_does_not_have_are_refused() {
    let (config, weights) = files(FAMILY);
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    for (from, to) in [("layers.0.conv.in_proj", "layers.1.conv.in_proj"), ("layers.1.self_attn", "layers.0.self_attn")]
    {
        let moved = tensors.iter().map(|(name, tensor)| (name.replace(from, to), tensor.clone()));
        let moved: std::collections::HashMap<_, _> = moved.collect();
        let weights = safetensors::serialize(&moved, None).unwrap();
        let said = peft::read(&config, &weights, &model(FAMILY), &Device::Cpu).unwrap_err().to_string();
        assert!(said.contains("no place for the tensor") && said.contains(to), "{said}");
    }
}

#[test]
fn the_filters_of_a_convolution_are_no_target() {
    let (config, weights) = files(FAMILY);
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["target_modules"].as_array_mut().unwrap().push(json!("conv"));
    let config = serde_json::to_vec(&config).unwrap();
    let said = peft::read(&config, &weights, &model(FAMILY), &Device::Cpu).unwrap_err().to_string();
    assert!(said.contains("conv") && said.contains("none of the layers"), "{said}");
}
