//! Names of tensors, as gguf-py's table maps them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::gguf::Value;

fn names(architecture: &str, experts: u32) -> Names {
    let keys: [(&str, u32); 6] = [
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("embedding_length", 64),
        ("feed_forward_length", 112),
        ("expert_count", experts),
    ];
    let keys = keys.map(|(name, size)| (format!("{architecture}.{name}"), Value::from(size)));
    let keys = keys.into_iter().chain([("general.architecture".to_owned(), Value::from(architecture))]);
    Names::of(&Metadata::new("m.gguf", keys)).unwrap()
}

#[test]
fn every_architecture_has_its_own_names_for_norms_and_mlps() {
    let common = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.7.self_attn.o_proj.weight", "blk.7.attn_output.weight"),
        ("model.layers.7.self_attn.o_proj.bias", "blk.7.attn_output.bias"),
    ];
    let around = [
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight"),
        ("model.layers.0.pre_feedforward_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight"),
    ];
    let plain = [
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight"),
        ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
    ];
    let fused = [
        ("model.layers.0.self_attn.qkv_proj.weight", "blk.0.attn_qkv.weight"),
        ("model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
    ];
    let sinks = [
        ("model.layers.0.self_attn.sinks", "blk.0.attn_sinks.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight"),
        ("model.layers.0.mlp.router.bias", "blk.0.ffn_gate_inp.bias"),
    ];
    let lfm = [
        ("model.layers.0.operator_norm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.ffn_norm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.0.self_attn.out_proj.weight", "blk.0.attn_output.weight"),
        ("model.layers.0.self_attn.k_layernorm.weight", "blk.0.attn_k_norm.weight"),
        ("model.layers.0.conv.conv.weight", "blk.0.shortconv.conv.weight"),
        ("model.layers.0.feed_forward.w3.weight", "blk.0.ffn_up.weight"),
        ("model.embedding_norm.weight", "token_embd_norm.weight"),
    ];
    let olmo = [("model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight"), around[3]];
    for (architecture, experts, own) in [
        ("llama", 0, &plain[..]),
        ("llama", 3, &[("model.layers.0.block_sparse_moe.gate.weight", "blk.0.ffn_gate_inp.weight")]),
        ("mistral3", 0, &plain),
        ("qwen2", 0, &plain),
        ("qwen3", 0, &plain),
        ("smollm3", 0, &plain),
        ("gemma", 0, &plain),
        ("gemma2", 0, &around),
        ("gemma3", 0, &around),
        ("granite", 0, &plain),
        ("phi3", 0, &fused),
        ("olmo2", 0, &olmo),
        ("qwen3moe", 3, &[plain[0], ("model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight")]),
        ("olmoe", 3, &plain[..2]),
        ("gpt-oss", 3, &sinks),
        ("lfm2", 0, &lfm),
    ] {
        let names = names(architecture, experts);
        let common = if architecture == "lfm2" { &common[..1] } else { &common[..] };
        for (original, file) in common.iter().chain(own) {
            let place = names.places(original).remove(0);
            assert_eq!((place.tensor.as_str(), &place.part), (*file, &Part::Whole), "{architecture}: {original}");
            assert_eq!(names.originals(file), [*original], "{architecture}: {file}");
        }
        assert!(names.places("model.layers.0.self_attn.rotary_emb.inv_freq").is_empty());
        assert!(names.originals("blk.0.ssm_a").is_empty() && names.originals("rope_freqs.weight").is_empty());
    }
}

#[test]
fn layers_may_lie_within_fused_tensors() {
    let place = |architecture: &str, name: &str| names(architecture, 0).places(name).pop().unwrap();
    let rows = |tensor: &str, rows, heads| Place { tensor: tensor.into(), part: Part::Rows(rows), heads };
    let layer = |name: &str| format!("model.layers.2.{name}");
    let (query, key, value) = ("self_attn.q_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.weight");
    // Query and key keep the order of their architecture, within the tensor.
    assert_eq!(place("llama", &layer(query)), rows("blk.2.attn_qkv.weight", 0..64, Some(4)));
    assert_eq!(place("llama", &layer(key)), rows("blk.2.attn_qkv.bias", 64..96, Some(2)));
    assert_eq!(place("qwen2", &layer(key)), rows("blk.2.attn_qkv.bias", 64..96, None));
    assert_eq!(place("qwen2", &layer(value)), rows("blk.2.attn_qkv.weight", 96..128, None));
    assert_eq!(place("phi3", &layer("mlp.up_proj.weight")), rows("blk.2.ffn_up.weight", 112..224, None));
    assert_eq!(place("qwen3", &layer("mlp.gate_proj.weight")), rows("blk.2.ffn_gate_up.weight", 0..112, None));
}

#[test]
fn experts_lie_in_stacks() {
    let moe = names("qwen3moe", 3);
    let places = moe.places("model.layers.1.mlp.experts.2.up_proj.weight");
    let at = |tensor: &str, part| Place { tensor: tensor.into(), part, heads: None };
    let half = Part::ExpertHalf { expert: 2, second: true };
    assert_eq!(places, [at("blk.1.ffn_up_exps.weight", Part::Expert(2)), at("blk.1.ffn_gate_up_exps.weight", half)]);
    let originals = moe.originals("blk.1.ffn_down_exps.weight");
    assert_eq!(originals.len(), 3);
    assert_eq!(originals[2], "model.layers.1.mlp.experts.2.down_proj.weight");
    let mixtral = names("llama", 3);
    let places = mixtral.places("model.layers.1.block_sparse_moe.experts.0.w3.weight");
    assert_eq!(places[0], at("blk.1.ffn_up_exps.weight", Part::Expert(0)));
    assert_eq!(mixtral.originals("blk.1.ffn_up_exps.weight")[1], "model.layers.1.block_sparse_moe.experts.1.w3.weight");
    let biases = names("gpt-oss", 3).places("model.layers.1.mlp.experts.1.gate_proj.bias");
    assert_eq!(biases[0], at("blk.1.ffn_gate_exps.bias", Part::Expert(1)));
}
