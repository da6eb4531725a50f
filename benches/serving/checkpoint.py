"""Random weights of SmolLM2-135M's shape, in the form of each server, and random adapters for them.

Speed does not depend on the weights' values, so nothing is downloaded. The tokenizer has SmolLM2's number of tokens, one
for each byte and only one merge (llama.cpp wants one), of exclamation marks: a text of n small letters is a prompt of
exactly n tokens for every server.
"""

import json
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True, "attention_bias": False,
    "mlp_bias": False, "bos_token_id": 49151, "eos_token_id": 49151,
}  # fmt: skip
END = "<|end|>"
MERGE = ("!", "!")
KEY_WIDTH = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
# Linear layers of a block, (out, in).
LAYERS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (KEY_WIDTH, 576),
    "self_attn.v_proj": (KEY_WIDTH, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def tensors(seed=1):
    """The checkpoint's tensors in f32, each value one of bf16's, which SmolLM2 is published in."""
    random = np.random.default_rng(seed)
    named = {"model.embed_tokens.weight": random.normal(0, 0.02, (CONFIG["vocab_size"], 576)),
             "model.norm.weight": np.ones(576)}  # fmt: skip
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, shape in LAYERS.items():
            named[f"model.layers.{layer}.{name}.weight"] = random.normal(0, 0.02, shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            named[f"model.layers.{layer}.{norm}.weight"] = np.ones(576)
    return {name: value.astype(bfloat16).astype(np.float32) for name, value in named.items()}


def vocabulary():
    """One token for each byte, the merged one, then words that no text has, then the end."""
    of_text = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(MERGE)]
    others = [f"w{number}" for number in range(CONFIG["vocab_size"] - len(of_text) - 1)]
    return [*of_text, *others, END]


def write_folder(folder, named):
    """A folder in Hugging Face form."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: value.astype(bfloat16) for name, value in named.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    words = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 8192,
                "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_adapter(folder, seed, rank=16, targets=tuple(LAYERS), dtype=np.float32):
    """A PEFT folder with random A and B."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    named = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name in targets:
            out, into = LAYERS[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            named[f"{prefix}.lora_A.weight"] = random.normal(0, 0.02, (rank, into)).astype(dtype)
            named[f"{prefix}.lora_B.weight"] = random.normal(0, 0.02, (out, rank)).astype(dtype)
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0,
              "bias": "none", "target_modules": sorted({name.split(".")[1] for name in targets})}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_all(folder: Path):
    """The checkpoint and its GGUF files, made once; their paths by name."""
    # Only needed here: who trains on the checkpoint has no use for them.
    import gguf_files

    paths = {"folder": folder / "model", **{kind: folder / f"model-{kind}.gguf" for kind in gguf_files.PRECISIONS}}
    if (folder / "complete").exists():
        return paths
    named = tensors()
    write_folder(paths["folder"], named)
    for kind in gguf_files.PRECISIONS:
        gguf_files.write_model(paths[kind], paths["folder"], named, kind)
    (folder / "complete").touch()
    return paths
