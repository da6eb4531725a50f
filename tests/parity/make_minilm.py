#!/usr/bin/env python3
"""Writes `tests/fixtures/real_files/all-MiniLM-L6-v2.json`: what sentence-transformers says of a few texts with the real model,
in f32, each text alone.

    .venv-parity/bin/python tests/parity/make_minilm.py

`tests/sdk/test_minilm.py` compares the server's answers with it. Each text has its token ids, cut to the model's 256, and its
vector, as base64 of little-endian f32.
"""

import base64
import json
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import real_models  # noqa: E402

OUT = ROOT / "tests" / "fixtures" / "real_files" / f"{real_models.MINILM.name}.json"
TEXTS = {
    "short": "What is Deep Learning?",
    "empty": "",
    "whitespace": "  \t\n ",
    "one character": ".",
    "too long": " ".join(
        f"Sentence {number} talks about the weather in city number {7 * number} and why the trains were late."
        for number in range(40)
    ),
    "scripts": "Zażółć gęślą jaźń — naïve café 😀👩\u200d👩\u200d👧 漢字かな한국어 عربى ﬁ ½ İstanbul",
    "code": 'fn main() { let v: Vec<u32> = (0..10).filter(|x| x % 2 == 0).collect(); println!("{:?}", v); }',
    "paragraph": "The quick brown fox jumps over the lazy dog. Embedding servers batch requests by token count; padding "
    "wastes compute, so variable-length attention is preferred.",
    "unknown words": "a" * 150 + " pneumonoultramicroscopicsilicovolcanoconiosis supercalifragilisticexpialidocious",
}


def facts(model, name, text):
    """What is written of a text."""
    ids = model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
    vector = model.encode([text], convert_to_numpy=True)[0]
    return {"name": name, "text": text, "ids": ids, "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode()}


def main():
    torch.set_num_threads(1)
    model = SentenceTransformer(str(real_models.MINILM.fetch()), device="cpu")
    written = [json.dumps(facts(model, name, text), ensure_ascii=False) for name, text in TEXTS.items()]
    OUT.write_text("[\n" + ",\n".join(written) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
