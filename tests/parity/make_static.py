#!/usr/bin/env python3
"""Write tiny tables of vectors as model2vec saves them, and the vectors of texts with them. tests/parity/README.md
describes the files.

    python3 -m venv /tmp/model2vec && /tmp/model2vec/bin/pip install model2vec==0.10.0
    /tmp/model2vec/bin/python tests/parity/make_static.py

It runs without the packages of the other scripts, whose versions model2vec does not share.
"""

import json
import sys
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from safetensors.numpy import save_file
from tokenizers import Tokenizer

ENCODERS = Path(__file__).resolve().parent.parent / "fixtures" / "encoders"
WIDTH = 24
CONFIG = {
    "model_type": "model2vec",
    "architectures": ["StaticModel"],
    "tokenizer_name": "tiny",
    "apply_pca": WIDTH,
    "apply_zipf": True,
    "hidden_dim": WIDTH,
    "seq_length": 1000000,
}
# How the table of each folder is made: its rows are those of the vocabulary, or fewer, to which `mapping` leads.
FOLDERS = {
    "static": dict(normalize=True),
    "static_mapped": dict(normalize=False, rows=50, max_length=12),
    "static_half": dict(normalize=True, dtype="float16"),
}


def build(settings, tokenizer, generator):
    """A model of random numbers."""
    tokens = tokenizer.get_vocab_size()
    rows = settings.get("rows", tokens)
    table = generator.standard_normal((rows, WIDTH)).astype(settings.get("dtype", "float32"))
    more = {}
    if rows != tokens:
        more["token_mapping"] = generator.integers(0, rows, tokens)
        more["weights"] = generator.uniform(0.2, 2.0, tokens).astype("float32")
    if "max_length" in settings:
        more["max_length"] = settings["max_length"]
    return StaticModel(table, tokenizer, config=CONFIG, normalize=settings["normalize"], **more)


def expected(model, ids, normalize):
    """The vectors by the formula, in float64."""
    rows = ids if model.token_mapping is None else model.token_mapping[ids]
    if not ids:
        return np.zeros(WIDTH)
    table = model.embedding[rows].astype("float64")
    if model.weights is not None:
        table = table * model.weights[ids].astype("float64")[:, None]
    mean = table.mean(0)
    return mean / np.linalg.norm(mean) if normalize else mean


def make(name, settings, seed):
    folder = ENCODERS / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(ENCODERS / "bert" / "tokenizer.json"))
    model = build(settings, tokenizer, np.random.default_rng(seed))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    if "max_length" not in settings:  # which the published folders do not name
        config = json.loads((folder / "config.json").read_text())
        config.pop("max_length")
        (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    model = StaticModel.from_pretrained(folder)
    texts = json.loads((ENCODERS / "bert" / "texts.json").read_text())["cases"]
    # The package cuts the characters first, then the tokens, then leaves out the unknown ones.
    characters = model.max_length * model.median_token_length
    cases = [{"text": case["text"], "input_ids": model.tokenize([case["text"][:characters]])[0]} for case in texts]
    vectors = model.encode([case["text"] for case in cases])
    exact = np.stack([expected(model, case["input_ids"], settings["normalize"]) for case in cases])
    off = np.abs(vectors - exact).max()
    print(f"{name}: {off:.1e} from float64")
    assert off < (1e-6 if model.embedding.dtype == np.float32 else 2e-3)
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    limits = f' "max_length": {model.max_length},\n "max_characters": {characters},\n'
    (folder / "texts.json").write_text(f'{{\n{limits} "cases": [\n{lines}\n ]\n}}\n')
    save_file({"vectors": vectors.astype("float32"), "exact": exact.astype("float32")}, folder / "reference.safetensors")


def main():
    for number, (name, settings) in enumerate(FOLDERS.items()):
        make(name, settings, 7000 + number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
