//! Forms of adapters that PEFT applies though they hold what has no effect, and those that only look like them.

use std::collections::HashMap;

use super::*;

/// Returns the scales of the llama adapter with a changed text of its configuration.
fn scales_of_text(change: impl FnOnce(&str) -> String) -> Vec<f32> {
    let (config, weights) = files("llama");
    let config = change(std::str::from_utf8(&config).unwrap());
    let adapter = peft::read(config.as_bytes(), &weights, &model("llama"), &Device::Cpu).unwrap();
    adapter.layers.iter().flat_map(|layer| Site::USUAL.map(|site| layer.get(site).unwrap().scale)).collect()
}

#[test]
fn what_changes_nothing_in_peft_is_taken() {
    let plain = scales(|_| {});
    let dead = ["W_pack", "query_key_value", "dense", "c_attn", "q_norm", "transformer.h.0.attn"];
    let targets = |config: &mut Value| {
        let targets = config["target_modules"].as_array_mut().unwrap();
        targets.extend(dead.map(Value::from));
    };
    assert_eq!(scales(targets), plain);
    assert_eq!(scales(|config| config["fan_in_fan_out"] = json!(true)), plain);
    assert_eq!(scales_of_text(|text| format!("\u{feff}{text}")), plain);
    assert_eq!(
        scales_of_text(|text| text.replacen('{', "{\"lora_dropout\": NaN, \"x\": [-Infinity, \"NaN\"],", 1)),
        plain
    );
    // Python takes the last of equal keys, which is the one of the file.
    assert_eq!(scales_of_text(|text| text.replacen('{', "{\"r\": 64, \"lora_alpha\": 1,", 1)), plain);
}

#[test]
fn names_that_the_model_has_and_that_cannot_be_adapted_are_refused() {
    for name in ["lm_head", "embed_tokens", "mlp", "input_layernorm", "model.norm", "layers.1"] {
        let refused = refusal(|config| config["target_modules"].as_array_mut().unwrap().push(json!(name)));
        assert!(refused.contains("none of the layers that can be adapted"), "{name}: {refused}");
    }
    assert!(refusal(|config| config["target_modules"] = json!(["W_pack"])).contains("does not name"));
    assert!(refusal(|config| config["use_dora"] = json!("NaN")).contains("use_dora"));
}

#[test]
fn tensors_may_carry_the_name_of_the_adapter_but_not_twice() {
    let (config, weights) = files("llama");
    let exact = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    let mut named: HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| (name.replace(".weight", ".default.weight"), tensor.clone())).collect();
    let read = |tensors: &HashMap<String, Tensor>| {
        let bytes = safetensors::serialize(tensors, None).unwrap();
        peft::read(&config, &bytes, &model("llama"), &Device::Cpu)
    };
    assert_same(&exact, &read(&named).unwrap());
    let (name, tensor) = tensors.iter().next().unwrap();
    named.insert(name.clone(), tensor.clone());
    assert!(read(&named).unwrap_err().to_string().contains("there twice"));
}

/// Returns the llama adapter's files with `layer` in the place of its tensors' `model.layers`, and a list of full names or
/// an expression for the layers.
fn renamed(layer: &str, targets: &Value) -> (Vec<u8>, HashMap<String, Tensor>) {
    let (config, weights) = files("llama");
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["target_modules"] = targets.clone();
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    let name = |name: String| name.replace("base_model.model.model.layers", &format!("base_model.model.{layer}"));
    let tensors = tensors.into_iter().map(|(old, tensor)| (name(old), tensor)).collect();
    (serde_json::to_vec(&config).unwrap(), tensors)
}

fn read(config: &[u8], tensors: &HashMap<String, Tensor>) -> Result<Adapter, String> {
    let bytes = safetensors::serialize(tensors, None).unwrap();
    peft::read(config, &bytes, &model("llama"), &Device::Cpu).map_err(|error| error.to_string())
}

/// The names of one adapter by the class that it was trained on: with the language model alone, or inside of a model that
/// reads images. Each layer is found, or nothing is applied.
#[test]
fn adapters_of_a_language_model_inside_another_model_are_the_same() {
    let (config, weights) = files("llama");
    let exact = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    let sites = json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    for layers in ["model.layers", "model.language_model.layers", "language_model.model.layers"] {
        let expression = json!(format!(r"{}\.\d+\.(self_attn|mlp)\.\w+_proj", layers.replace('.', r"\.")));
        for targets in [&sites, &expression] {
            let (config, tensors) = renamed(layers, targets);
            let found = read(&config, &tensors).unwrap();
            assert_same(&exact, &found);
            assert_eq!(found.names, exact.names, "{layers}");
        }
        // A layer of the other spelling, which only one of the readers would find.
        let (config, mut tensors) = renamed(layers, &sites);
        let first = format!("base_model.model.{layers}.0.mlp.up_proj.lora_A.weight");
        let other = if layers == "model.layers" { "model.language_model.layers" } else { "model.layers" };
        let moved = tensors.remove(&first).unwrap();
        tensors.insert(first.replace(layers, other), moved);
        assert!(read(&config, &tensors).unwrap_err().contains("no place for the tensor"), "{layers}");
    }
    for layers in ["language_model.layers", "model.text_model.layers", "model.vision_tower.layers", "layers"] {
        let (config, tensors) = renamed(layers, &sites);
        assert!(read(&config, &tensors).unwrap_err().contains("no place for the tensor"), "{layers}");
    }
    // Matrices that other programs extracted from a model bear the weight's name, which PEFT does not know.
    let (config, tensors) = renamed("model.layers", &sites);
    let extracted =
        tensors.into_iter().map(|(name, tensor)| (name.replace(".lora_", ".weight.lora_"), tensor)).collect();
    assert!(read(&config, &extracted).unwrap_err().contains("no place for the tensor"));
    let expression = json!(r"model\.layers\..*_proj");
    let (config, tensors) = renamed("model.language_model.layers", &expression);
    assert!(read(&config, &tensors).unwrap_err().contains("which target_modules does not name"));
}
