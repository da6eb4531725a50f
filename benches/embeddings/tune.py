"""A fine-tune on pairs of texts through the API, and what the model finds before and after, beside sentence-transformers' trainer
with the same settings. Called by `__main__.py`.

The pairs are names of Debian's packages and their descriptions in one line. *Found* is the share of the held-out names to which
their own description is the nearest of all held-out ones.
"""

import io
import json
import shutil
import tarfile

import embedders
import numpy as np
import texts
from trainers import BASE, attunelib, in_process, run_job, server_of

SETTINGS = {"n_epochs": 1, "batch_size": 32, "rank": 16, "alpha": 32, "learning_rate": 1e-3, "learning_rate_multiplier": 1,
            "scale": 20, "lora_dropout": 0, "lr_scheduler": "linear", "warmup_ratio": 0, "weight_decay": 0,
            "max_grad_norm": 1}  # fmt: skip
SEED = 1
# What both trainers tune where Attune did not say it: all linear layers of a block.
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
# Texts of one request.
AT_ONCE = 200
# The base's vectors are the same in both, so at most a tie may fall differently.
SAME_BASE = 0.005


def found(embed, lines):
    """The share of the anchors to which their own positive is the nearest."""
    sides = [np.array(embed([line[key] for line in lines])) for key in ("anchor", "positive")]
    return float((np.argmax(sides[0] @ sides[1].T, axis=1) == np.arange(len(lines))).mean())


def embed_of(client, model):
    """A function from texts to a served model's vectors."""

    def embed(inputs):
        parts = [inputs[at:at + AT_ONCE] for at in range(0, len(inputs), AT_ONCE)]
        answers = [client.post("/v1/embeddings", {"model": model, "input": part}) for part in parts]
        return [item["embedding"] for answer in answers for item in answer["data"]]

    return embed


def unpacked(client, model, folder):
    """Downloads a model's adapter as a PEFT folder, and returns what it says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(client.fetch("GET", f"/v1/models/{model}/adapter"))) as archive:
        archive.extractall(folder, filter="data")
    return json.loads((folder / "adapter_config.json").read_text())


def with_attune(binary, model, file, heldout, work):
    """Trains through the API: shares found before and after, what the training took, and the settings for the other trainer."""
    home = attunelib.data_folder()
    try:
        with server_of(binary, model, home) as server:
            client = attunelib.Client(server.url)
            before = found(embed_of(client, BASE), heldout)
            job, _, took = run_job(server, file, SETTINGS, seed=SEED)
            tuned = job.state["fine_tuned_model"]
            settings = job.state["method"]["supervised"]["hyperparameters"]
            settings |= {"seed": SEED, "adapter": unpacked(client, tuned, work / "attune-adapter")}
            return before, found(embed_of(client, tuned), heldout), took, settings
    finally:
        shutil.rmtree(home, ignore_errors=True)


def without_attune():
    """The settings where Attune is left out."""
    adapter = {"r": SETTINGS["rank"], "lora_alpha": SETTINGS["alpha"], "target_modules": TARGETS}
    return {**SETTINGS, "seed": SEED, "adapter": adapter}


def with_sentence_transformers(model, file, heldout, settings, work):
    """Trains with the model's own library: shares found before and after, with Attune's adapter, and what the training took."""
    told, out = work / "tune-settings.json", work / "sentence-transformers"
    told.write_text(json.dumps(settings))
    took = in_process(embedders.HERE / "sentence_trainer.py", work / "sentence-transformers.log", model, file, told, out)
    shares = {"before": found_with(model, None, heldout), "after": found_with(model, out, heldout)}
    if (work / "attune-adapter").exists():
        shares["with Attune's adapter"] = found_with(model, work / "attune-adapter", heldout)
    return shares, took


def found_with(model, adapter, heldout):
    """What sentence-transformers finds, with an adapter where there is one."""
    embedder = embedders.InProcess("sentence-transformers", model, adapter or "").start()
    try:
        return found(embedder.vectors, heldout)
    finally:
        embedder.stop()


def run(binary, model, work, count):
    """Trains with both, one after the other, and prints the table."""
    learned, heldout = texts.pairs()
    file = work / "pairs.jsonl"
    digest = texts.write_pairs(file, learned[:count])
    rows = []
    if binary is None:
        settings = without_attune()
    else:
        before, after, ours, settings = with_attune(binary, model, file, heldout, work)
        rows.append(("Attune, a job over HTTP", before, after, ours))
    shares, theirs = with_sentence_transformers(model, file, heldout, settings, work)
    rows.append(("sentence-transformers' trainer with PEFT", shares["before"], shares["after"], theirs))
    print(f"\n{count} pairs (SHA-256 {digest[:12]}), {len(heldout)} held out, {json.dumps(settings)}\n")
    print("| trainer | found before | after | s | CPU s | tokens | peak MiB |\n|---|---|---|---|---|---|---|")
    for name, before, after, took in rows:
        print(f"| {name} | {before:.3f} | {after:.3f} | {took.seconds:,.1f} | {took.cpu_seconds:,.1f} | {took.tokens:,} | "
              f"{took.peak / 2**20:,.0f} |")  # fmt: skip
    if binary is not None:
        share = shares["with Attune's adapter"]
        print(f"\nAttune's adapter in sentence-transformers finds {share:.3f}")
        if abs(rows[0][1] - shares["before"]) > SAME_BASE:
            raise RuntimeError("the base model finds other texts in Attune than in sentence-transformers")
