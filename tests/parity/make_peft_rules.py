"""Writes tests/fixtures/peft_rules.json: configurations of PEFT, and which layers PEFT itself changes under each, with which
rank and scale.

    python tests/parity/make_peft_rules.py
"""

import json
from pathlib import Path

import peft
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parents[1] / "fixtures" / "peft_rules.json"
# Two digits, so that block 1 and block 11 can be mistaken for each other.
BLOCKS = 12
PLAIN = {"r": 4, "lora_alpha": 8}

CASES = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["self_attn.q_proj", "model.layers.3.mlp.up_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": "ALL-linear"},
    {"target_modules": r".*\.(q|k)_proj"},
    {"target_modules": r"model\.layers\.(1|2)\.mlp\.[a-z]+_proj"},
    {"target_modules": r"q_proj|.*\.11\.mlp\.up_proj"},
    {"target_modules": r".*\.[0-3]\.self_attn\.[^k]_proj$"},
    {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.1\..*"},
    {"target_modules": "all-linear", "exclude_modules": ["mlp.down_proj", "o_proj"]},
    {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["la[xy]ers"]},
    {"target_modules": ["q_proj", "model.layers.5.self_attn.v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 2}},
    {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"proj": 2, "_proj": 3}},
    {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q.proj": 2, ".*k_proj": 6}},
    {"target_modules": ["q_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    {"target_modules": ["q_proj"], "rank_pattern": {"model.layers.1.self_attn.q_proj": 2, "q_proj": 6}},
    {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 6, "model.layers.1.self_attn.q_proj": 2}},
    {"target_modules": ["q_proj"], "rank_pattern": {"^model.layers.1.self_attn.q_proj": 2, "^q_proj": 6}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"^model\.layers\.1[01]\.self_attn\.q_proj$": 2}},
    {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {r"layers\.[0-4]\.(self_attn\.q|mlp\.up)_proj": 5}},
    {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj|up_proj": 5}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"\d\.self_attn\.q_proj": 5}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"[a-z]_proj": 5, r"(?:1|2)\.self_attn\.q_proj": 7}},
    {"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": 3}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3.5}, "rank_pattern": {"q_proj": 7}},
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "alpha_pattern": {r"1\.self_attn\..*": 32},
        "rank_pattern": {"layers.2.self_attn.v_proj": 9},
    },
    {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    {"target_modules": ["q_proj"], "init_lora_weights": False},
]


def changed(case):
    """The layers that PEFT changes, by name: rank and scale."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=BLOCKS, vocab_size=8))
    config = peft.LoraConfig(task_type="CAUSAL_LM", **PLAIN, **case)
    model = peft.get_peft_model(base, config)
    prefix = "base_model.model."
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    return {name[len(prefix) :]: [layer.r["default"], layer.scaling["default"]] for name, layer in layers.items()}


def main():
    cases = [{"config": {"peft_type": "LORA", **PLAIN, **case}, "changed": changed(case)} for case in CASES]
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"peft": "{peft.__version__}", "blocks": {BLOCKS}, "cases": [\n{lines}\n]}}\n'
    OUT.write_text(text)
    print(f"{len(cases)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
