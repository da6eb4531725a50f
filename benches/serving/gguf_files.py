"""Models of the Llama family and their adapters in GGUF, for llama.cpp."""

import json

import gguf
from safetensors.numpy import load_file

KINDS = gguf.GGMLQuantizationType
PRECISIONS = {"f32": KINDS.F32, "f16": KINDS.F16, "q8_0": KINDS.Q8_0}
# Linear layers of a block: name in the checkpoint, name in GGUF, key of its number of heads where llama.cpp rotates neighbours.
LAYERS = (
    ("self_attn.q_proj", "attn_q", "num_attention_heads"),
    ("self_attn.k_proj", "attn_k", "num_key_value_heads"),
    ("self_attn.v_proj", "attn_v", None),
    ("self_attn.o_proj", "attn_output", None),
    ("mlp.gate_proj", "ffn_gate", None),
    ("mlp.up_proj", "ffn_up", None),
    ("mlp.down_proj", "ffn_down", None),
)


def in_order(rows, heads):
    """The rows in the order of GGUF, whose Llama rotates neighbouring values where the checkpoint has halves of a head."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape) if heads else rows


def write_model(path, folder, named, precision="f32"):
    """The model whose config.json and tokenizer.json are in `folder`, with the f32 tensors `named`."""
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    types = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(words, key=words.get))
    writer.add_token_types([types.CONTROL if number in special else types.NORMAL for number in range(len(words))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)

    def add(name, value):
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            kind = PRECISIONS[precision]
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)

    add("token_embd.weight", named["model.embed_tokens.weight"])
    add("output_norm.weight", named["model.norm.weight"])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        add(f"blk.{layer}.attn_norm.weight", named[f"{prefix}.input_layernorm.weight"])
        add(f"blk.{layer}.ffn_norm.weight", named[f"{prefix}.post_attention_layernorm.weight"])
        for name, other, heads in LAYERS:
            add(f"blk.{layer}.{other}.weight", in_order(named[f"{prefix}.{name}.weight"], config.get(heads)))
    finish(writer)


def write_adapter(path, config, adapter):
    """The PEFT folder `adapter` of a model with `config`, in f32, as llama.cpp's own converter writes it."""
    named = load_file(adapter / "adapter_model.safetensors")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]))
    for layer in range(config["num_hidden_layers"]):
        for name, other, heads in LAYERS:
            a, b = (named[f"base_model.model.model.layers.{layer}.{name}.lora_{half}.weight"] for half in "AB")
            writer.add_tensor(f"blk.{layer}.{other}.weight.lora_a", a)
            writer.add_tensor(f"blk.{layer}.{other}.weight.lora_b", in_order(b, config.get(heads)))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
