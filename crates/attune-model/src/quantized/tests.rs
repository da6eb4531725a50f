//! Numbers of small types, packings, names in settings and refusals.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test fails by panicking; small types are exact")]

use serde_json::{Value, json};

use super::floats::{E4M3, E5M2, e8m0};
use super::names::{Patterns, Target};
use super::packed::Packing;
use super::settings::check;

fn refusal(config: &Value) -> String {
    check(|name| config.get(name)).unwrap_err()
}

#[test]
fn small_floating_point_numbers_have_the_values_of_their_specification() {
    assert_eq!([E4M3[0x01], E4M3[0x08], E4M3[0x38], E4M3[0x7e]], [0.001_953_125, 0.015_625, 1.0, 448.0]);
    assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
    assert_eq!([E5M2[0x01], E5M2[0x3c], E5M2[0x7b], E5M2[0x7c]], [1.0 / 65_536.0, 1.0, 57_344.0, f32::INFINITY]);
    assert_eq!([E4M3[0xb8], E5M2[0xbc]], [-1.0, -1.0]);
    assert_eq!([e8m0(0), e8m0(1), e8m0(127), e8m0(254)], [(-127_f32).exp2(), (-126_f32).exp2(), 1.0, 127_f32.exp2()]);
    assert!(e8m0(255).is_nan());
}

#[test]
fn numbers_cross_words_only_where_packed_without_gaps() {
    // 3 bits: the eleventh number crosses into the second word, or begins it.
    let words: Vec<u8> = [0b11_u32 << 30, 0b1_u32].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(Packing::dense(3).at(&words, 10), 7);
    assert_eq!(Packing { bits: 3, padded: true }.at(&words, 10), 1);
    assert_eq!((Packing::dense(3).words(32), Packing { bits: 3, padded: true }.words(32)), (3, 4));
    assert_eq!((Packing::dense(4).words(32), Packing { bits: 4, padded: true }.words(32)), (4, 4));
}

#[test]
fn modules_are_named_as_each_program_does() {
    let patterns = Patterns::of_transformers(&json!(["lm_head", "model.layers.1", "mlp.gate"])).unwrap();
    for (module, is_plain) in [
        ("lm_head", true),
        ("model.layers.1.mlp.up_proj", true),
        ("model.layers.11.mlp.up_proj", false),
        ("model.layers.0.mlp.gate", true),
        ("model.layers.0.mlp.gate_proj", false),
    ] {
        assert_eq!(patterns.matches(module), is_plain, "{module}");
    }
    let patterns = Patterns::of_wildcards(&json!(["*.self_attn*", "lm_head"])).unwrap();
    assert!(patterns.matches("model.layers.0.self_attn.q_proj") && patterns.matches("lm_head"));
    assert!(!patterns.matches("model.layers.0.mlp.up_proj"));
    let patterns = Patterns::of_compressed_tensors(&json!(["re:.*lm_head", "model.layers.0.mlp.up_proj"])).unwrap();
    assert!(patterns.matches("lm_head") && patterns.matches("model.layers.0.mlp.up_proj"));
    assert!(!patterns.matches("model.layers.0.mlp"));
    let rank = |target: &str, module: &str| Target::parse(target).unwrap().rank(module).map(|(rank, _)| rank);
    assert_eq!(rank("Linear", "lm_head"), Some(2));
    assert_eq!(rank("Linear", "model.embed_tokens"), None);
    assert_eq!(rank("re:.*q_proj$", "model.layers.0.self_attn.q_proj"), Some(1));
    assert!(Target::parse("re:(?!x)").unwrap_err().contains("look-around is not supported"));
}

#[test]
fn formats_that_are_not_read_are_refused_by_name() {
    for method in ["hqq", "aqlm", "eetq", "quanto", "torchao", "spqr", "vptq", "exl2", "higgs", "bitnet", "quark"] {
        let error = refusal(&json!({"quantization_config": {"quant_method": method}}));
        assert!(
            error.contains(&format!("`{method}` are not supported")) && error.contains("original weights"),
            "{error}"
        );
    }
    let gptq = |more: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"quantization_config": config})
    };
    let scheme = |more: Value| {
        let config = json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": more}});
        json!({"quantization_config": config})
    };
    for (config, says) in [
        (json!({"quantization_config": {"quant_method": "auto-round"}}), "auto_gptq"),
        (gptq(json!({"bits": 5})), "`bits` 5"),
        (gptq(json!({"checkpoint_format": "marlin"})), "`marlin`"),
        (gptq(json!({"group_size": 0})), "`group_size` 0"),
        (gptq(json!({"dynamic": {"+:(?=x)": {}}})), "look-around"),
        (json!({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}), "`gemv`"),
        (json!({"quantization_config": {"quant_method": "awq", "bits": 3}}), "`bits` 3"),
        (json!({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}), "`mxfp4`"),
        (json!({"quantization": {"bits": 7, "group_size": 32}}), "`bits` 7"),
        (json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}}), "`NVFP4_AWQ`"),
        (scheme(json!({"format": "marlin-24", "targets": []})), "`marlin-24`"),
        (scheme(json!({"targets": ["Linear"], "weights": {"num_bits": 16}})), "`num_bits` 16"),
        (
            json!({"quantization_config": {"quant_method": "compressed-tensors",
            "transform_config": {"config_groups": {"u": {}}}}}),
            "`transform_config`",
        ),
        (json!({"text_config": {"quantization_config": {"quant_method": "hqq"}}}), "`hqq`"),
        (json!({"quantization_config": 3}), "must be an object"),
    ] {
        let error = refusal(&config);
        assert!(error.contains(says), "{config}: {error}");
    }
    assert!(check(|_| None).is_ok());
}
