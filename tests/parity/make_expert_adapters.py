#!/usr/bin/env python3
"""Write adapters that change experts, and what PEFT computes with them, beside the
fixtures of the families with experts. tests/parity/README.md describes the files.

    python tests/parity/make_expert_adapters.py              # rewrites tests/fixtures/*/peft_*
    python tests/parity/make_expert_adapters.py --only olmoe
"""

import argparse
import copy
import json
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import make_fixtures as base

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

# Folder, and the settings of its LoraConfig. Ranks differ from the number of experts, which tells their order.
STACKED = {
    "qwen3_moe": {
        "peft_experts": dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], target_parameters=BOTH),
    },
    "mixtral": {
        "peft_experts": dict(r=3, lora_alpha=6, target_modules=["o_proj"], target_parameters=["gate_up_proj", "down_proj"]),
    },
    "olmoe": {
        "peft_experts": dict(
            r=2,
            lora_alpha=4,
            target_modules=["q_proj"],
            target_parameters=BOTH,
            rank_pattern={"mlp.experts.down_proj": 5},
            alpha_pattern={"mlp.experts.gate_up_proj": 3},
        ),
        "peft_down": dict(r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj"], target_parameters=BOTH[1:]),
    },
    "gpt_oss": {
        "peft_experts": dict(r=3, lora_alpha=6, target_modules=[], target_parameters=BOTH),
        "peft_gate_up": dict(r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=["layers.1.mlp.experts.gate_up_proj"]),
    },
}
# Names of the layers of an expert before transformers 5, and the parameter that holds them now.
SINGLE = {
    "qwen3_moe": ("mlp.experts", [("gate_proj", 0), ("up_proj", 1), ("down_proj", 2)]),
    "mixtral": ("block_sparse_moe.experts", [("w1", 0), ("w3", 1), ("w2", 2)]),
}


def load(family):
    folder = base.DEFAULT_OUT / family
    return base.load_with_config(folder, transformers.AutoConfig.from_pretrained(folder))


def tidy(folder):
    """PEFT keeps sets, whose order changes from run to run."""
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for name in ["target_modules", "target_parameters"]:
        settings[name] = sorted(settings[name] or [])
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def make_stacked(folder, family, settings, seed):
    """Write an adapter as PEFT saves it, with its logits, loss and gradients, and a training run of its shape."""
    model = load(family)
    ids = load_file(base.DEFAULT_OUT / family / "reference.safetensors")["input_ids"]
    base_logits = base.forward(model, ids)["logits"]
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    adapter = base.random_adapter(model, seed, std_of_b=0.1)
    batch = base.make_batch(seed + 1)

    def compute(model):
        base.set_adapter(model, adapter)
        return {"logits": base.forward(model, ids)["logits"]}, base.loss_and_gradients(model, batch)

    logits, gradients = compute(model)
    with base.float64_rerun(family):
        exact_logits, exact_gradients = compute(copy.deepcopy(model).double())
    base.assert_close("logits", logits, exact_logits)
    base.assert_close("loss and gradients", gradients, exact_gradients)
    effect = (logits["logits"] - base_logits).abs().mean().item()
    print(f"  the adapter moves the logits by {effect:.2f} on average; loss {gradients['loss']:.6f}")
    assert effect > 0.1
    init, curve = base.make_training_run(model, base.FAMILIES[family], batch, seed + 2)
    print("  losses:", " ".join(f"{x:.4f}" for x in curve["losses"]))
    assert curve["losses"][-1] < curve["losses"][0] - 0.2
    base.set_adapter(model, adapter)

    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = family
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy(folder)
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == adapter.keys() and all(saved[name].equal(adapter[name]) for name in saved)
    sequences, masks = batch
    reference = {
        "input_ids": ids,
        "batch_tokens": torch.cat(sequences),
        "batch_lengths": torch.tensor(base.BATCH_LENGTHS),
        "batch_targets_mask": torch.cat(masks),
        **logits,
        **gradients,
    }
    save_file(reference, folder / "reference.safetensors")
    save_file({**{f"init.{n}": v for n, v in init.items()}, **curve}, folder / "curve.safetensors")


def make_single(folder, family, seed):
    """Write an adapter with the names of transformers 4, and its logits in PEFT, which are those of the sums."""
    place, layers = SINGLE[family]
    model = load(family)
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = load_file(base.DEFAULT_OUT / family / "reference.safetensors")["input_ids"]
    experts = model.model.layers[0].mlp.experts
    width, hidden, rank, alpha = experts.down_proj.shape[2], config.hidden_size, 2, 3
    shapes = [(width, hidden), (width, hidden), (hidden, width)]
    tensors, summed = {}, copy.deepcopy(model)
    for block in range(config.num_hidden_layers):
        stack = summed.model.layers[block].mlp.experts
        for expert in range(experts.down_proj.shape[0]):
            for (name, part), (out, width_in) in zip(layers, shapes):
                a = (2 * torch.rand((rank, width_in), generator=generator) - 1) / width_in**0.5
                b = base.random_tensor(generator, (out, rank), 0.1)
                path = f"base_model.model.model.layers.{block}.{place}.{expert}.{name}"
                tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
                with torch.no_grad():
                    target = stack.down_proj if part == 2 else stack.gate_up_proj
                    first = width if part == 1 else 0
                    target[expert, first:first + out] += alpha / rank * b @ a
    shutil.rmtree(folder, ignore_errors=True)
    names = [name for name, _ in layers]
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=names)
    settings.base_model_name_or_path, settings.inference_mode = family, True
    settings.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    tidy(folder)
    base_logits = base.forward(model, ids)["logits"]
    loaded = peft.PeftModel.from_pretrained(model, folder).eval()
    logits = base.forward(loaded, ids)["logits"]
    own = base.forward(summed, ids)["logits"]
    effect = (logits - base_logits).abs().mean().item()
    print(f"  the adapter moves the logits by {effect:.2f} on average, {(logits - own).abs().max():.1e} from the sums")
    assert effect > 0.1 and (logits - own).abs().max() < 1e-4
    save_file({"input_ids": ids, "logits": logits}, folder / "reference.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STACKED, help="write those of this family alone")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    for number, (family, folders) in enumerate(STACKED.items()):
        if only not in (None, family):
            continue
        for index, (name, settings) in enumerate(folders.items()):
            print(f"{family}/{name}")
            seed = 80_000 + 100 * number + 10 * index
            make_stacked(base.DEFAULT_OUT / family / name, family, dict(settings), seed)
        if family in SINGLE:
            print(f"{family}/peft_single")
            make_single(base.DEFAULT_OUT / family / "peft_single", family, 81_000 + number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
