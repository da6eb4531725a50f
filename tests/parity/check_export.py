#!/usr/bin/env python3
"""Exports fine-tuned models with `attune export` and reads them elsewhere.

    python tests/parity/check_export.py --binary target/release/attune [FAMILY ...]

For a tiny random model of each family, with a random adapter: the merged folder must load in transformers without a missing
or unexpected tensor and give the logits of PEFT; the merged GGUF file must be what gguf-py reads, with PEFT's merged weights
under llama.cpp's names (for the families that `check_gguf.py` knows, transformers computes the logits from it); and an
adapter on that GGUF file, exported as a folder again, must give PEFT's logits with transformers, and the original's tokens.
With `--llama-server`, the server of llama.cpp must make the original's tokens of texts and give PEFT's log probabilities, too. The exit status is 1
where anything differs.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from check_gguf import model_of
from gguf import GGUFReader
from llama_server import LlamaServer
from peft import LoraConfig, get_peft_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import attunelib  # noqa: E402

# Largest difference of a logit: the same weights, summed in other orders.
TOLERANCE = 1e-4
# Of a log probability in llama.cpp. It looks up Gemma's GELU in a table of f16.
LLAMA_TOLERANCE = 1e-4
LLAMA_GELU_TOLERANCE = 5e-3
SIZES = dict(
    hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, vocab_size=2048, initializer_range=0.15, bos_token_id=0, eos_token_id=2, pad_token_id=3,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
MINISTRAL = dict(rope_type="yarn", rope_theta=300.0, factor=4.0, beta_fast=4.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                 original_max_position_embeddings=16, llama_4_scaling_beta=0.1)  # fmt: skip
def yarn_ramp(dimension, theta=150000.0, context=4096, head_dim=16):
    """The turns within the context of a frequency at `dimension`, which begins or ends yarn's ramp."""
    return context / (2 * math.pi) * theta ** (-2 * dimension / head_dim)


# gpt-oss does not round the ends of yarn's ramp and llama.cpp does, so here they are nearly whole.
GPT_OSS = dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=yarn_ramp(2.00001), beta_slow=yarn_ramp(4.99999),
               original_max_position_embeddings=4096, truncate=False)  # fmt: skip
SLIDING = dict(sliding_window=16, layer_types=["sliding_attention", "sliding_attention", "full_attention"])
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"head_dim": 16}),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "gemma": (transformers.GemmaConfig, {"head_dim": 16}),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 16, "query_pre_attn_scalar": 16, **SLIDING}),
    "granite": (
        transformers.GraniteConfig,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    # llama.cpp looks for Phi-3's own special tokens where a file's name says so.
    "phi_3": (transformers.Phi3Config, {"partial_rotary_factor": 0.75}),
    "olmo2": (transformers.Olmo2Config, {}),
    "olmo3": (transformers.Olmo3Config, SLIDING),
    "smollm3": (transformers.SmolLM3Config, {"num_hidden_layers": 4}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "sliding_window": None}),
    # llama.cpp takes it with as many key and value heads as query heads alone, as all that are published have.
    "olmoe": (transformers.OlmoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "gpt_oss": (
        transformers.GptOssConfig,
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "sliding_window": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": GPT_OSS},
    ),
    "lfm2": (
        transformers.Lfm2Config,
        {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False, "conv_L_cache": 3},
    ),
    "ministral3": (transformers.Ministral3Config, {"head_dim": 16, "rope_parameters": MINISTRAL}),
    "granite_hybrid": (
        transformers.GraniteMoeHybridConfig,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0,
         "layer_types": ["attention"] * 3, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 112,
         "time_step_limit": [0.0, 1.0], "tie_word_embeddings": True, "position_embedding_type": "rope"},
    ),
}  # fmt: skip
# The linear layers of blocks where they have other names.
LAYERS = {
    "phi_3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "lfm2": ["q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"],
    "granite_hybrid": ["q_proj", "k_proj", "v_proj", "o_proj", "input_linear", "output_linear"],
}
BY_CHECK_GGUF = ("llama", "qwen2", "qwen3")
TEXTS = ["The letter of 12 March 2024", "  two  blanks\n\n and lines", "<|im_start|>user\nHi<|im_end|>", "naïve ½ 東京 👍🏽", ""]
# Tokens before the one whose log probabilities llama.cpp is asked for, and how many of the most probable ones are compared.
GIVEN = (1, 7, 24, 40)
COMPARED = 20
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(family, folder):
    """Writes the model and an adapter on it; returns PEFT's logits after adding the adapter once and twice."""
    torch.manual_seed(11)
    config_class, changes = FAMILIES[family]
    config = config_class(**{**SIZES, **changes}, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".bias"):
                tensor.add_(0.1 * torch.randn_like(tensor))
    base = folder / family
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(attunelib.DEMO / name, base / name)
    # Experts have adapters of another kind.
    with_experts = any(changes.get(name) for name in ("num_experts", "num_local_experts"))
    targets = LINEAR[:4] if with_experts else LAYERS.get(family, LINEAR)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_rslora=True, base_model_name_or_path=family)
    tuned = get_peft_model(model, lora)
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.05)
    # On the folder, and on the GGUF file that is made of it.
    for name in (family, f"{family}-gguf"):
        tuned.peft_config["default"].base_model_name_or_path = name
        tuned.save_pretrained(folder / "data" / "adapters" / name)
    ids = torch.arange(40).reshape(1, 40) * 37 % 2048
    with torch.no_grad():
        once = tuned(ids).logits
        for module in tuned.modules():
            if hasattr(module, "lora_B"):
                module.scaling["default"] *= 2
        twice = tuned(ids).logits
    return ids, once, twice


def configure(folder, models):
    file = folder / "attune.toml"
    file.write_text("".join(f'[[models]]\nid = "{name}"\npath = "{path}"\n' for name, path in models.items()))
    return file


def export_all(binary, folder, config, wanted):
    """Starts a server, loads the adapters of `wanted` and exports them: base, form, output, more arguments."""
    data = folder / "data"
    with attunelib.Server(binary, data, "--config", str(config)) as server:
        client = attunelib.Client(server.url)
        for base in {base for base, *_ in wanted}:
            wanted_adapter = {"lora_name": f"of-{base}", "lora_path": f"adapters/{base}"}
            # The answer is a sentence, not JSON.
            client.fetch("POST", "/v1/load_lora_adapter", json.dumps(wanted_adapter).encode())
        for base, form, output, *more in wanted:
            command = [binary, "export", f"of-{base}", "--merged", form, output, *more]
            place = ["--data-dir", data, "--config", config]
            subprocess.run([str(part) for part in command + place], check=True, env=attunelib.environment(), cwd=folder)


def logits_of(folder, ids):
    """Logits in transformers; refuses a checkpoint that does not fit the class to the last tensor."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    faults = {name: found for name, found in report.items() if found}
    assert not faults, faults
    with torch.no_grad():
        return model.eval()(ids).logits


def differs(what, found, expected):
    difference = float((found - expected).abs().max())
    print(f"{what}: logits differ by {difference:.1e}" + ("" if difference <= TOLERANCE else ": TOO MUCH"))
    return difference > TOLERANCE


def tokens_differ(family, one, other):
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (one, other)]
    wrong = [text for text in TEXTS if tokenizers[0](text).input_ids != tokenizers[1](text).input_ids]
    chat = [{"role": "user", "content": "Hello"}]
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers]
    if wrong or rendered[0] != rendered[1]:
        print(f"{family}: tokens of {wrong} or the template differ")
    return bool(wrong) or rendered[0] != rendered[1]


def differs_in_llama_cpp(program, family, base, file, ids, logits):
    """Asks llama.cpp for the tokens of texts, and for the most probable tokens behind beginnings of `ids`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    largest, wrong = 0.0, []
    with LlamaServer(file, program=program) as server:
        for text in TEXTS:
            if server.tokenize(text) != tokenizer(text).input_ids:
                wrong.append(text)
        for given in GIVEN:
            answer = server.complete(ids[0, :given].tolist(), 1, n_probs=COMPARED)
            expected = torch.log_softmax(logits[0, given - 1].double(), -1)
            (place,) = answer["completion_probabilities"]
            found = {token["id"]: token["logprob"] for token in place["top_logprobs"]}
            assert len(found) == COMPARED, answer
            largest = max([largest, *(abs(float(expected[token]) - value) for token, value in found.items())])
    bad = largest > (LLAMA_GELU_TOLERANCE if "gemma" in family else LLAMA_TOLERANCE) or bool(wrong)
    said = f", and other tokens of {wrong}" if wrong else ""
    print(f"{family}, GGUF in llama.cpp: log probabilities differ by {largest:.1e}{said}" + (": TOO MUCH" if bad else ""))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server; without it llama.cpp is left out")
    options = parser.parse_args()
    binary, families, program = options.binary.resolve(), options.families, options.llama_server
    if program is None:
        print("SKIPPED: llama.cpp reads none of the files, since --llama-server is not given", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="attune-export-"))
    folder.chmod(0o711)
    (folder / "data").mkdir(mode=0o711)
    expected = {family: make(family, folder) for family in families}
    config = configure(folder, {family: folder / family for family in families})
    export_all(binary, folder, config, [
        wish for family in families for wish in (
            (family, "safetensors", folder / f"{family}.merged"), (family, "gguf", folder / f"{family}.gguf"))
    ])  # fmt: skip
    config = configure(folder, {f"{family}-gguf": folder / f"{family}.gguf" for family in families})
    export_all(binary, folder, config, [
        (f"{family}-gguf", "safetensors", folder / f"{family}.again") for family in families
    ])  # fmt: skip
    failed = 0
    for family in families:
        ids, once, twice = expected[family]
        failed += differs(f"{family}, folder", logits_of(folder / f"{family}.merged", ids), once)
        failed += differs(f"{family}, folder of GGUF", logits_of(folder / f"{family}.again", ids), twice)
        failed += tokens_differ(family, folder / family, folder / f"{family}.again")
        file = folder / f"{family}.gguf"
        GGUFReader(file)
        if family in BY_CHECK_GGUF:
            with torch.no_grad():
                failed += differs(f"{family}, GGUF by gguf-py", model_of(file)(ids).logits, once)
        if program:
            failed += differs_in_llama_cpp(program, family, folder / family, file, ids, once)
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
