#!/usr/bin/env python3
"""Writes `tests/fixtures/real_files/*.json`: what transformers says of two real GGUF files, with their dequantized weights in f32.

    .venv-parity/bin/python tests/parity/make_real_files.py

`tests/sdk/test_real_files.py` compares the server's answers with it. Each file has the token ids of `text.txt` by the file's
own vocabulary, the most probable token behind each of them, the perplexity of the text, and greedy continuations of a few
prompts with the most probable tokens and their logits at each step.
"""

import json
import sys
from pathlib import Path

import torch
from check_gguf import PROMPTS, TOKENS, model_of
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import real_models  # noqa: E402

FOLDER = ROOT / "tests" / "fixtures" / "real_files"
PLACES = 2000
# Tokens kept of each step of a greedy answer.
NEAREST = 4


def greedy(model, ids):
    """The continuation of `ids` by the most probable token of each step, and the nearest tokens with their logits."""
    steps, cache, given = [], None, ids
    for _ in range(TOKENS):
        out = model(torch.tensor([given]), past_key_values=cache, use_cache=True)
        cache, top = out.past_key_values, out.logits[0, -1].topk(NEAREST)
        steps.append([[int(token), round(float(logit), 4)] for token, logit in zip(top.indices, top.values)])
        given = [steps[-1][0][0]]
    return steps


@torch.no_grad()
def facts(path):
    """What is written of a file."""
    model = model_of(path)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer((FOLDER / "text.txt").read_text())["input_ids"][:PLACES]
    assert len(ids) == PLACES, len(ids)
    logits = model(torch.tensor([ids])).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:]))
    prompts = [(prompt, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    return {
        "text": ids, "best": logits.argmax(-1).tolist(), "perplexity": float(loss.exp()),
        "prompts": [{"prompt": prompt, "ids": of, "steps": greedy(model, of)} for prompt, of in prompts],
    }  # fmt: skip


def main():
    for model in real_models.ALL:
        path = model.fetch()
        written = json.dumps(facts(path), separators=(",", ":"))
        (FOLDER / f"{model.name}.json").write_text(written + "\n")
        print(f"{model.name}: {len(written):,} characters")


if __name__ == "__main__":
    main()
