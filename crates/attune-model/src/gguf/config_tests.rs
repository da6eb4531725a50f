//! Keys of each architecture, against the `config.json` of transformers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::slice::from_ref;

use bytes::Bytes;

use super::*;
use crate::blocks::BlockType;
use crate::gguf::Metadata;
use crate::gguf::Value as Key;
use crate::gguf::writer::{self, TensorToWrite};

/// Translates a file of `architecture` with the usual keys and `more`, and with vectors of these names and lengths.
fn translated(architecture: &str, more: &[(&str, Key)], vectors: &[(&str, usize)]) -> Result<Map<String, Value>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let usual: [(&str, Key); 8] = [
        ("block_count", 6_u32.into()),
        ("context_length", 512_u32.into()),
        ("embedding_length", 64_u32.into()),
        ("feed_forward_length", 128_u32.into()),
        ("attention.head_count", 4_u32.into()),
        ("attention.head_count_kv", 2_u32.into()),
        ("attention.layer_norm_rms_epsilon", 1e-6_f32.into()),
        ("rope.freq_base", 1e6_f32.into()),
    ];
    let keys = usual.iter().chain(more).map(|(name, key)| (format!("{architecture}.{name}"), key.clone()));
    let keys = keys.chain([("general.architecture".to_owned(), architecture.into())]);
    let of =
        |name: &str, shape: &[usize]| TensorToWrite { name: name.into(), shape: shape.into(), kind: BlockType::F32 };
    let mut tensors = vec![of("token_embd.weight", &[160, 64])];
    tensors.extend((0..6).map(|layer| of(&format!("blk.{layer}.attn_norm.weight"), &[64])));
    tensors.extend(vectors.iter().map(|(name, length)| of(name, &[*length])));
    let mut file = Vec::new();
    let twos = |tensor: &TensorToWrite| {
        let bytes: Vec<u8> = (0..tensor.shape.iter().product::<usize>()).flat_map(|_| 2_f32.to_le_bytes()).collect();
        Ok(Bytes::from(bytes))
    };
    writer::write(&mut file, &Metadata::new("m.gguf", keys), &tensors, twos).unwrap();
    std::fs::write(&path, file).unwrap();
    fields(&Gguf::open(&path).unwrap())
}

/// Checks that the translation has these fields.
#[track_caller]
fn assert_fields(fields: &Map<String, Value>, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        let found = fields.get(name).unwrap_or(&Value::Null);
        let equal = match (found.as_f64(), value.as_f64()) {
            (Some(found), Some(value)) => (found - value).abs() <= 1e-6 * value.abs(),
            _ => found == value,
        };
        assert!(equal, "{name} is {found}, not {value}");
    }
}

#[test]
fn the_common_shape_is_translated_for_every_architecture() {
    let needs: [(&str, Key); 3] = [
        ("expert_count", 8_u32.into()),
        ("expert_used_count", 2_u32.into()),
        ("expert_feed_forward_length", 32_u32.into()),
    ];
    let window: (&str, Key) = ("attention.sliding_window", 16_u32.into());
    for (architecture, model_type, more) in [
        ("llama", "llama", &[][..]),
        ("llama", "mixtral", &needs[..2]),
        ("mistral3", "mistral", &[]),
        ("qwen2", "qwen2", &[]),
        ("qwen3", "qwen3", &[]),
        ("smollm3", "smollm3", &[]),
        ("gemma", "gemma", &[]),
        ("gemma2", "gemma2", from_ref(&window)),
        ("gemma3", "gemma3_text", from_ref(&window)),
        ("granite", "granite", &[]),
        ("phi3", "phi3", from_ref(&window)),
        ("olmo2", "olmo2", &[]),
        ("olmo2", "olmo3", from_ref(&window)),
        ("qwen3moe", "qwen3_moe", &needs[..]),
        ("olmoe", "olmoe", &needs[..2]),
        ("gpt-oss", "gpt_oss", &[&needs[..], from_ref(&window)].concat()),
        ("lfm2", "lfm2", &[("shortconv.l_cache", 3_u32.into())]),
    ] {
        let fields = translated(architecture, more, &[]).unwrap();
        let expected = json!({
            "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 160, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "attention_bias": false,
            "intermediate_size": if model_type == "gpt_oss" { 32 } else { 128 },
        });
        assert_fields(&fields, &expected);
        let of_full = || &fields["rope_parameters"]["full_attention"]["rope_theta"];
        let theta = fields.get("rope_theta").unwrap_or_else(of_full);
        assert_eq!(theta, &json!(1e6), "{model_type}");
        // Files of Mistral are usually made as those of Llama.
        let usual = if model_type == "mistral" { "llama" } else { architecture };
        assert_eq!(Architecture::of_model_type(model_type).unwrap().name(), usual);
        let wrong = translated(architecture, &[more, &[("unheard_of", 1_u32.into())]].concat(), &[]);
        let said = wrong.unwrap_err().to_string();
        assert!(said.contains(&format!("the key `{architecture}.unheard_of` is not known")), "{said}");
    }
}

#[test]
fn what_llama_cpp_fixes_in_code_is_written_out() {
    let fields = translated("smollm3", &[], &[]).unwrap();
    assert_fields(&fields, &json!({ "no_rope_layer_interval": 4 }));
    let slides = |pattern: [bool; 6]| pattern.map(|slides| if slides { "sliding_attention" } else { "full_attention" });
    let window: (&str, Key) = ("attention.sliding_window", 16_u32.into());
    let fields = translated("gemma2", from_ref(&window), &[]).unwrap();
    assert_fields(
        &fields,
        &json!({
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16,
            "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": slides([true, false, true, false, true, false]),
        }),
    );
    let fields = translated("gemma3", &[window.clone(), ("attention.key_length", 32_u32.into())], &[]).unwrap();
    assert_fields(
        &fields,
        &json!({
            "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 32, "sliding_window": 16,
            "layer_types": slides([true, true, true, true, true, false]),
        }),
    );
    let full = translated("gemma3", &[], &[]).unwrap();
    assert_fields(&full, &json!({ "layer_types": slides([false; 6]) }));
    let pattern: (&str, Key) = ("attention.sliding_window_pattern", vec![true, true, false, false, true, true].into());
    let fields = translated("olmo2", &[window.clone(), pattern], &[]).unwrap();
    assert_fields(&fields, &json!({ "layer_types": slides([true, true, false, false, true, true]) }));
    let largest: [(&str, Key); 2] = [window, ("attention.sliding_window_pattern", vec![true; 5].into())];
    assert!(translated("olmo2", &largest, &[]).unwrap_err().to_string().contains("must have 6 values"));
}

#[test]
fn scales_of_granite_have_the_names_of_transformers() {
    let scales: [(&str, Key); 4] = [
        ("embedding_scale", 12_f32.into()),
        ("residual_scale", 0.25_f32.into()),
        ("attention.scale", 0.125_f32.into()),
        ("logit_scale", 8_f32.into()),
    ];
    let named = |embedding, residual, attention, logits| {
        json!({
            "embedding_multiplier": embedding, "residual_multiplier": residual, "attention_multiplier": attention,
            "logits_scaling": logits,
        })
    };
    assert_fields(&translated("granite", &scales, &[]).unwrap(), &named(12.0, 0.25, 0.125, 8.0));
    assert_fields(&translated("granite", &[], &[]).unwrap(), &named(1.0, 1.0, 0.25, 1.0));
    let unrotated = translated("granite", &[("rope.scaling.finetuned", false.into())], &[]);
    assert!(unrotated.unwrap_err().to_string().contains("models without rotation"));
}

#[test]
fn blocks_of_lfm2_without_key_value_heads_have_convolutions() {
    let keys: [(&str, Key); 2] =
        [("shortconv.l_cache", 4_u32.into()), ("attention.head_count_kv", vec![0_u32, 2, 0, 0, 2, 0].into())];
    let types = ["conv", "full_attention", "conv", "conv", "full_attention", "conv"];
    let expected = json!({
        "layer_types": types, "conv_L_cache": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "block_auto_adjust_ff_dim": false, "norm_eps": 1e-6,
    });
    assert_fields(&translated("lfm2", &keys, &[]).unwrap(), &expected);
    for other in [vec![0_u32, 2, 0, 0, 4, 0], vec![0, 2]] {
        let keys = [&keys[..1], &[("attention.head_count_kv", other.into())]].concat();
        let said = translated("lfm2", &keys, &[]).unwrap_err().to_string();
        assert!(said.contains("`lfm2.attention.head_count_kv`"), "{said}");
    }
}

#[test]
fn granite_4_is_told_by_the_width_of_its_shared_mlp() {
    let keys: [(&str, Key); 4] = [
        ("expert_shared_feed_forward_length", 128_u32.into()),
        ("expert_count", 0_u32.into()),
        ("ssm.conv_kernel", 4_u32.into()),
        ("rope.scaling.finetuned", true.into()),
    ];
    let expected = json!({
        "model_type": "granitemoehybrid", "shared_intermediate_size": 128, "num_local_experts": 0,
        "layer_types": vec!["attention"; 6], "position_embedding_type": "rope",
    });
    assert_fields(&translated("granite", &keys, &[]).unwrap(), &expected);
    let unrotated = [&keys[..3], &[("rope.scaling.finetuned", false.into())]].concat();
    assert_fields(&translated("granite", &unrotated, &[]).unwrap(), &json!({ "position_embedding_type": null }));
    for (name, key) in [("expert_shared_feed_forward_length", 64_u32), ("expert_count", 8)] {
        let other: (&str, Key) = (name, key.into());
        let said = translated("granite", &[&keys[..1], &[other]].concat(), &[]).unwrap_err().to_string();
        assert!(said.contains(&format!("`granite.{name}`")), "{said}");
    }
}

#[test]
fn experts_are_counted_and_other_choices_of_them_refused() {
    let experts: [(&str, Key); 3] = [
        ("expert_count", 8_u32.into()),
        ("expert_used_count", 2_u32.into()),
        ("expert_feed_forward_length", 32_u32.into()),
    ];
    let expected =
        json!({ "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": true });
    assert_fields(&translated("qwen3moe", &experts, &[]).unwrap(), &expected);
    let expected = json!({ "num_local_experts": 8, "num_experts_per_tok": 2 });
    assert_fields(&translated("llama", &experts[..2], &[]).unwrap(), &expected);
    for (name, key) in [
        ("expert_gating_func", Key::from(2_u32)),
        ("expert_shared_count", 1_u32.into()),
        ("leading_dense_block_count", 1_u32.into()),
        ("expert_weights_scale", 2.5_f32.into()),
        ("expert_weights_norm", false.into()),
    ] {
        let said = translated("qwen3moe", &[&experts[..], &[(name, key)]].concat(), &[]).unwrap_err().to_string();
        assert!(said.contains(&format!("`qwen3moe.{name}`")), "{said}");
    }
}

#[test]
fn scaled_rotations_are_translated() {
    let yarn: [(&str, Key); 4] = [
        ("rope.scaling.type", "yarn".into()),
        ("rope.scaling.factor", 4_f32.into()),
        ("rope.scaling.original_context_length", 128_u32.into()),
        ("rope.scaling.yarn_beta_fast", 24_f32.into()),
    ];
    let expected =
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 24.0 });
    assert_eq!(translated("qwen3", &yarn, &[]).unwrap()["rope_scaling"], expected);
    let other = [&yarn[..], &[("rope.scaling.yarn_attn_factor", 3_f32.into())]].concat();
    assert!(translated("qwen3", &other, &[]).unwrap_err().to_string().contains("yarn_attn_factor` is 3"));
    let linear: [(&str, Key); 2] = [("rope.scaling.type", "linear".into()), ("rope.scaling.factor", 8_f32.into())];
    let expected = json!({ "rope_type": "linear", "factor": 8.0 });
    assert_eq!(translated("gemma3", &linear, &[]).unwrap()["rope_scaling"], expected);

    let divisors = [("rope_freqs.weight", 8)];
    let expected = json!({ "rope_type": "divided", "divisors": vec![2.0; 8] });
    assert_eq!(translated("llama", &[], &divisors).unwrap()["rope_scaling"], expected);
    let both = translated("llama", &linear, &divisors).unwrap_err().to_string();
    assert!(both.contains("`rope_freqs.weight` are not supported together"), "{both}");
    let short = translated("llama", &[], &[("rope_freqs.weight", 7)]).unwrap_err().to_string();
    assert!(short.contains("`rope_freqs.weight` must hold 8 numbers"), "{short}");

    let ministral = [&yarn[..], &[("attention.temperature_scale", 0.1_f32.into())]].concat();
    let ministral = translated("mistral3", &ministral, &[]).unwrap();
    assert_fields(&ministral, &json!({ "model_type": "ministral3", "sliding_window": null }));
    assert!(
        ministral["rope_parameters"]["llama_4_scaling_beta"].as_f64().is_some_and(|beta| (beta - 0.1).abs() < 1e-6)
    );
}

#[test]
fn long_rope_of_phi_has_both_lists() {
    let factor = (1.0 + 4_f64.ln() / 128_f64.ln()).sqrt() as f32;
    let keys: [(&str, Key); 4] = [
        ("rope.scaling.original_context_length", 128_u32.into()),
        ("rope.scaling.attn_factor", factor.into()),
        ("rope.dimension_count", 12_u32.into()),
        ("attention.sliding_window", 0_u32.into()),
    ];
    let lists = [("rope_factors_long.weight", 6), ("rope_factors_short.weight", 6)];
    let fields = translated("phi3", &keys, &lists).unwrap();
    assert_fields(
        &fields,
        &json!({
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128, "sliding_window": null,
            "rope_scaling": { "rope_type": "longrope", "long_factor": vec![2.0; 6], "short_factor": vec![2.0; 6] },
        }),
    );
    let said = translated("phi3", &keys, &lists[..1]).unwrap_err().to_string();
    assert!(said.contains("one is missing"), "{said}");
    let said = translated("phi3", &[keys[0].clone(), keys[2].clone()], &lists).unwrap_err().to_string();
    assert!(said.contains("`phi3.rope.scaling.attn_factor` is 1 where 1.1"), "{said}");
}

#[test]
fn biases_are_those_of_the_file() {
    let all: Vec<String> = (0..6).map(|layer| format!("blk.{layer}.attn_q.bias")).collect();
    let vectors: Vec<(&str, usize)> = all.iter().map(|name| (name.as_str(), 64)).collect();
    assert_fields(&translated("llama", &[], &vectors).unwrap(), &json!({ "attention_bias": true, "mlp_bias": false }));
    let said = translated("llama", &[], &vectors[1..]).unwrap_err().to_string();
    assert!(said.contains("only 5 of 6 blocks have a tensor `attn_q.bias`"), "{said}");
}
