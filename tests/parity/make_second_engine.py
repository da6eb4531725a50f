#!/usr/bin/env python3
"""Write tests/fixtures/second_engine: tiny random checkpoints of families that only the second engine serves, an adapter of
one, and the tokens and log probabilities that transformers and PEFT give for them, in float32.

On a CPU the second engine rounds what it multiplies to 16 bits. So each checkpoint is the first one, by its seed, in whose
answers no two tokens are about as probable as each other.

    python tests/parity/make_second_engine.py
"""

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from safetensors.torch import load_file, save_file
from second_engine_families import END, FAMILIES, VOCAB
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fixtures" / "second_engine"
PROMPTS = [[5, 9, 31, 7, 88, 12], [140, 3, 3, 61], list(range(20, 52))]
NEW_TOKENS = 16
# Least distance of the log probabilities of the two most probable tokens.
MARGIN = 0.05


def tokenizer():
    """One word for each token, so that a text shows the ids; with the bytes of GPT-2, which the second engine needs."""
    made = Tokenizer(models.BPE({f"Ġt{token}": token for token in range(VOCAB)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def random_model(config, model_class, seed):
    """A model with random weights, norms and biases included, that of a router as well."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.std() < 0.1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            assert torch.isfinite(parameter).all(), name
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer))
    return model


def random_adapter(model, modules, seed):
    """An adapter of these layers on `model`, which changes its answers."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return adapted


def answer(model, prompt):
    """The most probable tokens after `prompt`, one after the other, with their log probabilities and those of the prompt; None
    if two of them are about as probable."""
    tokens, logprobs = list(prompt), []
    with torch.no_grad():
        rows = model(torch.tensor([prompt])).logits[0].double().log_softmax(-1)
        scores = [float(row[token]) for row, token in zip(rows, prompt[1:])]
        for _ in range(NEW_TOKENS):
            row = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
            best = row.topk(2)
            if best.values[0] - best.values[1] < MARGIN:
                return None
            token = int(best.indices[0])
            tokens.append(token)
            logprobs.append(float(best.values[0]))
            if token == END:
                break
    return {"prompt": prompt, "tokens": tokens[len(prompt) :], "logprobs": logprobs, "prompt_logprobs": scores}


def clear_answers(make):
    """The first model that `make` makes of a seed whose answers are clear, and these."""
    for seed in itertools.count():
        model = make(seed)
        answers = [answer(model, prompt) for prompt in PROMPTS]
        if all(answers):
            return model, answers


def write_answers(answers, path):
    path.write_text(json.dumps(answers) + "\n")


def write(folder, family):
    folder.mkdir(parents=True, exist_ok=True)
    fields, model_class = family.fields, family.model_class
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    # As transformers reads it.
    config = model_class.config_class.from_pretrained(folder)
    model, answers = clear_answers(lambda seed: random_model(config, model_class, seed))
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tensors = load_file(Path(saved) / "model.safetensors")
    if family.publish:
        family.publish(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save(str(folder / "tokenizer.json"))
    if "vision_config" in fields:
        # The second engine opens it, and needs its fields for pictures alone.
        (folder / "preprocessor_config.json").write_text("{}\n")
    write_answers(answers, folder / "reference.json")
    if not family.adapter:
        return
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def adapted(seed):
        base = model_class(config).eval()
        base.load_state_dict(state)
        return random_adapter(base, family.adapter, seed)

    adapter, after = clear_answers(adapted)
    assert all(old["tokens"] != new["tokens"] for old, new in zip(answers, after)), "the adapter changes nothing"
    adapter.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    settings["target_modules"].sort()  # PEFT keeps a set; its order changes from run to run
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    write_answers(after, folder / "adapter" / "reference.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="all by default")
    arguments = parser.parse_args()
    out = arguments.out
    torch.set_num_threads(1)
    for name in arguments.families:
        write(out / name, FAMILIES[name])
        print(f"{name}: written to {out / name}")


if __name__ == "__main__":
    main()
