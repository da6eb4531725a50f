#!/usr/bin/env python3
"""Trains an adapter through a real server, downloads it, and checks in transformers and PEFT that it is the same model.

    python tests/parity/check_loop.py --binary target/release/attune

The adapter must load in PEFT with every tensor taken over, and greedy answers of PEFT's model to held-out letters must
equal the server's. The exit status is 1 where fewer than 95 of 100 agree: both compute in float32, but they add in
different orders, so that a rare tie between two tokens may fall differently.
"""

import argparse
import io
import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import attunelib  # noqa: E402

LETTERS = 100
TOKENS = 80
AGREE_AT_LEAST = 0.95


def train(client):
    """A finished fine-tuned model's name."""
    lines = (attunelib.DEMO / "tickets" / "train.jsonl").read_bytes().splitlines(keepends=True)[:200]
    training_file = client.upload("letters.jsonl", b"".join(lines))
    hyperparameters = {"n_epochs": 1, "batch_size": 8, "learning_rate": 2e-3, "rank": 8, "alpha": 16}
    job = attunelib.Job(client, client.post("/v1/fine_tuning/jobs", {
        "model": "demo", "training_file": training_file["id"], "suffix": "parity",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }))
    while not job.is_over:
        job.refresh()
        for event in job.new_events():
            print(" ", event["message"], flush=True)
    if job.state["status"] != "succeeded":
        raise attunelib.ServerError(f"the training job ended as {job.state}")
    return job.state["fine_tuned_model"]


def serve(binary, letters, adapter):
    """Trains and asks the server; writes its adapter to `adapter` and returns its answers."""
    data_dir = attunelib.data_folder()
    try:
        with attunelib.Server(binary, data_dir) as server:
            client = attunelib.Client(server.url)
            model = train(client)
            archive = client.fetch("GET", f"/v1/models/{model}/adapter")
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(adapter, filter="data")
            with ThreadPoolExecutor(8) as pool:
                return list(pool.map(lambda letter: client.chat(model, letter, max_tokens=TOKENS), letters))
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def reference(adapter, letters):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the attune program to check")
    arguments = parser.parse_args()
    lines = attunelib.read_jsonl(attunelib.DEMO / "tickets" / "heldout.jsonl")[:LETTERS]
    letters = [line["messages"][:1] for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        served = serve(arguments.binary, letters, folder)
        (config,) = Path(folder).rglob("adapter_config.json")
        wanted = reference(config.parent, letters)
    differing = [(letter, got, want) for letter, got, want in zip(letters, served, wanted) if got != want]
    for letter, got, want in differing:
        print(f"{letter[0]['content']}\n  attune: {got}\n  PEFT:   {want}")
    share = 1 - len(differing) / len(letters)
    print(f"{share:.0%} of {len(letters)} answers are the same")
    return 0 if share >= AGREE_AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
