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
