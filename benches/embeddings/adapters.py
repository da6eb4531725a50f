"""What many adapters cost: the same texts for the base alone, for one adapter, and spread over all of them. Called by
`__main__.py`. The adapters are PEFT folders with random weights, loaded through the operator's route."""

import itertools
import json
import random
import statistics

import embedders
import numpy as np
import texts
from safetensors.numpy import save_file

RANK, ALPHA = 8, 16
# PEFT's default for encoders of this family.
TARGETS = ("query", "value")
# Small enough to leave the vectors meaningful, large enough to change them.
SIZE = 0.02


def write(folder, config, seed):
    """A PEFT folder with random A and B."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, width = np.random.default_rng(seed), config["hidden_size"]
    named = {}
    for layer in range(config["num_hidden_layers"]):
        for target in TARGETS:
            prefix = f"base_model.model.encoder.layer.{layer}.attention.self.{target}"
            named[f"{prefix}.lora_A.weight"] = numbers.normal(0, SIZE, (RANK, width)).astype(np.float32)
            named[f"{prefix}.lora_B.weight"] = numbers.normal(0, SIZE, (width, RANK)).astype(np.float32)
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    told = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0,
            "bias": "none", "target_modules": list(TARGETS)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told))


def load(server, model, count):
    """Loads the adapters; returns their names and the milliseconds that a load took, as the median."""
    config = json.loads((model / "config.json").read_text())
    folder, names, waits = server.data / "adapters-of-the-benchmark", [], []
    for number in range(count):
        name = f"adapter-{number}"
        write(folder / name, config, number)
        waits.append(1000 * embedders.timed(lambda name=name: server.load_adapter(name, folder / name)))
        names.append(name)
    return names, statistics.median(waits)


def check(server, names, made):
    """Adapters that change nothing, or all the same, would measure nothing."""
    (query,) = made.queries(1, 0)
    vectors = [np.array(server.ask([query], model)[0]) for model in (None, names[0], names[-1])]
    for one, other in itertools.combinations(vectors, 2):
        if np.abs(one - other).max() < 1e-4:
            raise RuntimeError("an adapter changes nothing")


def run(binary, model, work, count, rounds):
    """Measures and prints a table. Nobody else serves adapters of an encoder."""
    if binary is None:
        return
    made, seeds = texts.Texts(model), itertools.count(1)
    server = embedders.Attune(binary, model, "adapters", work, dtype="f32").start()
    try:
        names, loaded = load(server, model, count)
        check(server, names, made)
        cases = {
            "base": lambda _: None,
            "one adapter": lambda _: [names[0]] * texts.COUNT,
            f"{count} adapters": lambda seed: random.Random(seed).choices(names, k=texts.COUNT),
        }
        figures = {case: [] for case in cases}
        for _ in range(rounds + 1):
            for case, choose in cases.items():
                seed = next(seeds)
                mixed, before = made.mixed(seed), server.cpu_seconds()
                tokens = sum(map(made.tokens, mixed))
                seconds = server.embed_singly(mixed, choose(seed))
                figures[case].append((tokens / seconds, 1000 * (server.cpu_seconds() - before) / tokens))
    finally:
        server.stop()
    print(f"\n{count} adapters of rank {RANK}, {embedders.CALLERS} requests of one text at once; loading one took {loaded:.1f} ms\n")
    print("| of | tokens/s | times the base | CPU s for 1,000 tokens |\n|---|---|---|---|")
    # The first round pays for what is made on demand.
    base = [speed for speed, _ in figures["base"][1:]]
    for case, measured in figures.items():
        speeds, cpu = zip(*measured[1:])
        ratio = statistics.median(speed / of for speed, of in zip(speeds, base, strict=True))
        print(f"| {case} | {statistics.median(speeds):,.0f} | {ratio:.2f} | {statistics.median(cpu):.3f} |")
