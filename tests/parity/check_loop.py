#!/usr/bin/env python3
"""Trains an adapter through a real server, downloads it, and checks in transformers and PEFT that it is the same model.

    python tests/parity/check_loop.py --binary target/release/attune

The adapter must load in PEFT with every tensor taken over, and greedy answers of PEFT's model to held-out letters must
equal the server's. The exit status is 1 where fewer than 95 of 100 agree: both compute in float32, but they add in
different orders, so that a rare tie between two tokens may fall differently.
"""

import argparse
import sys

import torch
from loop import TOKENS, attunelib, check
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


def reference(letters, adapter, _folder):
    """PEFT's greedy answers, one letter at a time."""
    tokenizer = AutoTokenizer.from_pretrained(attunelib.DEMO)
    base = AutoModelForCausalLM.from_pretrained(attunelib.DEMO, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    loaded = {name for name in model.state_dict() if "lora_" in name}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        stored = {name.replace(".weight", ".default.weight") for name in file.keys()}
    if loaded != stored:
        raise attunelib.ServerError(f"PEFT did not take over the same tensors: {sorted(loaded ^ stored)[:6]}")
    answers = []
    for letter in letters:
        prompt = tokenizer.apply_chat_template(letter, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the attune program to check")
    sys.exit(check(parser.parse_args().binary, {"PEFT": reference}))
