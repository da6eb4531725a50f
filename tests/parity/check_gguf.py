#!/usr/bin/env python3
"""Serves a GGUF file and checks its greedy answers against transformers on the file's dequantized weights.

    python tests/parity/check_gguf.py --binary target/release/attune MODEL.gguf ...

It runs where `tests/parity/requirements.txt` and the package `gguf` are installed. Names, row orders and configuration
are worked out here once more, apart from the program's own. Files of the architectures llama, qwen2, qwen3 and gemma3 are
known. The exit status is 1 where an answer differs before its 64th token and the two tokens are not nearly equally probable.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGUFReader, dequantize

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import attunelib  # noqa: E402

TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees, and freezes at",
    "A recipe for pancakes. Ingredients:\n- 2 eggs\n-",
]
# Logits as near to the best one as rounding in other orders and of activations may put either first.
NEARLY = 0.15
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def model_of(path):
    """The model in transformers, in f32, with the file's weights."""
    reader = GGUFReader(path)

    def key(name, default=None):
        field = reader.fields.get(name)
        return default if field is None else field.contents()

    kind = key("general.architecture")
    of = lambda name, default=None: key(f"{kind}.{name}", default)  # noqa: E731
    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shape = {
        "hidden_size": of("embedding_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": of("attention.key_length", of("embedding_length") // heads),
        "intermediate_size": of("feed_forward_length"),
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    names = dict(BLOCK)
    if kind == "gemma3":
        names |= GEMMA
        shape |= {"rope_local_base_freq": 10000.0, "sliding_window": of("attention.sliding_window"),
                  "query_pre_attn_scalar": shape["head_dim"]}  # fmt: skip
    classes = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config,
               "gemma3": transformers.Gemma3TextConfig}  # fmt: skip
    config = classes[kind](**shape, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {}
    for name, tensor in tensors.items():
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if kind == "llama" and ".attn_q." in name or kind == "llama" and ".attn_k." in name:
            count = heads if ".attn_q." in name else kv_heads
            rows = values.shape[0] // count // 2
            values = values.reshape(count, rows, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if kind == "gemma3" and name.endswith("norm.weight"):
            values = values - 1
        match name.split("."):
            case ["token_embd", end]:
                state[f"model.embed_tokens.{end}"] = values
            case ["output_norm", end]:
                state[f"model.norm.{end}"] = values
            case ["output", end]:
                state[f"lm_head.{end}"] = values
            case ["blk", number, part, end]:
                state[f"model.layers.{number}.{names[part]}.{end}"] = values
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()


def check(binary, path):
    model = model_of(path)
    differing = 0
    with attunelib.Server(binary, attunelib.data_folder(), "--model", f"m={path}") as server:
        client = attunelib.Client(server.url)
        for prompt in PROMPTS:
            ids = client.post("/v1/tokenize", {"model": "m", "prompt": prompt})["tokens"]
            body = {"model": "m", "prompt": ids, "max_tokens": TOKENS, "temperature": 0}
            text = client.post("/v1/completions", body)["choices"][0]["text"]
            with torch.no_grad():
                out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
                                     pad_token_id=0)  # fmt: skip
            expected = out[0, len(ids) :].tolist()
            whole = client.post("/v1/detokenize", {"model": "m", "tokens": expected})["prompt"]
            if whole.startswith(text):
                print(f"{path.name}: same: {text[:70]!r}")
                continue
            # The answer's own tokens, to find where it leaves.
            found = client.post("/v1/tokenize", {"model": "m", "prompt": text, "add_special_tokens": False})["tokens"]
            at = next((i for i, (one, other) in enumerate(zip(found, expected)) if one != other), len(found))
            with torch.no_grad():
                logits = model(torch.tensor([ids + expected[:at]])).logits[0, -1]
            gap = float(logits.max() - logits[found[at]]) if at < len(found) else 0.0
            differing += gap > NEARLY
            print(f"{path.name}: leaves at token {at}, logit {gap:.4f} below the best: {text[:70]!r}")
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    return 1 if sum(check(options.binary, path.resolve()) for path in options.files) else 0


if __name__ == "__main__":
    sys.exit(main())
