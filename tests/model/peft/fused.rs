//! Adapters of layers that hold several sites (Phi-3), as PEFT saves them: one A, and the rows of B of all sites.

use std::collections::HashMap;

use super::*;

fn adapter() -> (PeftFiles, Adapter) {
    let (config, weights) = files(FUSED);
    let adapter = peft::read(&config, &weights, &model(FUSED), &Device::Cpu).unwrap();
    (PeftFiles { config, weights }, adapter)
}

fn tensors(files: &PeftFiles) -> HashMap<String, Tensor> {
    candle_core::safetensors::load_buffer(&files.weights, &Device::Cpu).unwrap()
}

fn refused(config: &[u8], tensors: &HashMap<String, Tensor>, family: &str) -> String {
    let weights = safetensors::serialize(tensors, None).unwrap();
    peft::read(config, &weights, &model(family), &Device::Cpu).unwrap_err().to_string()
}

#[test]
fn the_sites_of_a_layer_share_its_a_and_have_their_rows_of_its_b() {
    let (files, adapter) = adapter();
    let (tensors, model) = (tensors(&files), model(FUSED));
    for (index, layer) in adapter.layers.iter().enumerate() {
        for (path, sites) in [
            ("self_attn.qkv_proj", &[Site::Query, Site::Key, Site::Value][..]),
            ("self_attn.o_proj", &[Site::Output]),
            ("mlp.gate_up_proj", &[Site::Gate, Site::Up]),
            ("mlp.down_proj", &[Site::Down]),
        ] {
            let name = format!("base_model.model.model.layers.{index}.{path}");
            let (a, b) = (&tensors[&format!("{name}.lora_A.weight")], &tensors[&format!("{name}.lora_B.weight")]);
            let mut start = 0;
            for site in sites {
                let (pair, rows) = (layer.get(*site).unwrap(), site.shape(&model).0);
                assert_eq!(numbers(&pair.a), numbers(a));
                assert_eq!(numbers(&pair.b), numbers(&b.narrow(0, start, rows).unwrap()), "{path} {site:?}");
                start += rows;
            }
            assert_eq!(start, b.dim(0).unwrap());
        }
    }
}

#[test]
fn adapters_of_single_sites_are_refused_by_the_name_of_their_layer() {
    let (files, _) = adapter();
    let mut config: Value = serde_json::from_slice(&files.config).unwrap();
    config["target_modules"] = json!(["q_proj", "v_proj"]);
    let config = serde_json::to_vec(&config).unwrap();
    let tensor = |rows, columns| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
    for (family, site, layer) in [
        (FUSED, "self_attn.q_proj", "qkv_proj"),
        (FUSED, "mlp.up_proj", "gate_up_proj"),
        ("granite_hybrid", "mlp.gate_proj", "input_linear"),
    ] {
        let name = format!("base_model.model.model.layers.0.{site}");
        let separate = HashMap::from([
            (format!("{name}.lora_A.weight"), tensor(4, 64)),
            (format!("{name}.lora_B.weight"), tensor(64, 4)),
        ]);
        let error = refused(&config, &separate, family);
        assert!(error.contains(site) && error.contains(&format!("its layer is `{layer}`")), "{error}");
    }
}

#[test]
fn an_adapter_of_a_fused_layer_has_no_place_in_a_model_of_single_ones() {
    let (files, _) = adapter();
    let error = refused(&files.config, &tensors(&files), "ministral3");
    assert!(error.contains("no place for the tensor") && error.contains("proj"), "{error}");
}

#[test]
fn a_b_that_lacks_the_rows_of_a_site_is_refused() {
    let (files, _) = adapter();
    let mut tensors = tensors(&files);
    let name = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight".to_owned();
    let rows = tensors[&name].dim(0).unwrap();
    let fewer = tensors[&name].narrow(0, 0, rows - 32).unwrap().contiguous().unwrap();
    tensors.insert(name, fewer);
    assert!(refused(&files.config, &tensors, FUSED).contains("qkv_proj.lora_B"));
}
