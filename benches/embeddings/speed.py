"""Tokens a second, CPU time and the wait for one short query, of all who embed. Called by `__main__.py`."""

import itertools
import statistics

import embedders
import export
import numpy as np
import texts

# Short queries of each round, one after the other.
QUERIES = 20
# Two f32 computations of one vector, and one with weights of 8 bits.
AGREE, AGREE_Q8 = 1e-4, 5e-2


class Figures:
    """What one embedder took in each round."""

    def __init__(self):
        self.speed, self.cpu, self.singly, self.waits = [], [], [], []

    def measure(self, embedder, made, seeds):
        """One round. A text that was embedded before could be found in a cache, so each round has new ones."""
        mixed = made.mixed(next(seeds))
        tokens = sum(map(made.tokens, mixed))
        before = embedder.cpu_seconds()
        self.speed.append(tokens / embedder.embed(mixed))
        self.cpu.append(1000 * (embedder.cpu_seconds() - before) / tokens)
        if isinstance(embedder, embedders.OverHttp):
            mixed = made.mixed(next(seeds))
            self.singly.append(sum(map(made.tokens, mixed)) / embedder.embed_singly(mixed))
        queries = made.queries(QUERIES, next(seeds))
        self.waits.append(1000 * statistics.median(embedder.embed([query]) for query in queries))


def all_of(binary, model, work):
    """Everyone, Attune first, not started yet."""
    onnx = export.write(model, work / "model.onnx")
    ours = [] if binary is None else [
        embedders.Attune(binary, model, "Attune f32", work, dtype="f32"),
        embedders.Attune(binary, model, "Attune q8_0", work, quantize="q8_0"),
    ]  # fmt: skip
    kinds = ("sentence-transformers", "onnx-sorted", "onnx-fifo")
    theirs = [embedders.InProcess(kind, model, "" if kind == "sentence-transformers" else onnx) for kind in kinds]
    if embedders.INFINITY.exists():
        theirs.append(embedders.Infinity(model))
    return [*ours, *theirs]


def agree(everyone, made):
    """Checks that all compute the same vectors: who is wrong may be as fast as they like."""
    mixed = made.mixed(0)[:64]  # ONNX Runtime chooses its settings by these
    found = {embedder.name: np.array(embedder.vectors(mixed)) for embedder in everyone}
    for name, vectors in found.items():
        difference = np.abs(vectors - found["sentence-transformers"]).max()
        print(f"{name}: at most {difference:.1e} from sentence-transformers' vectors", flush=True)
        if difference > (AGREE_Q8 if "q8_0" in name else AGREE):
            raise RuntimeError(f"{name} computes other vectors")


def shown(figures, others):
    """A row's figures, and the ratio of `figures` to `others` in the same rounds."""
    ratio = statistics.median(one / other for one, other in zip(figures.speed, others.speed, strict=True))
    singly = f"{statistics.median(figures.singly):,.0f}" if figures.singly else ""
    return [f"{statistics.median(figures.speed):,.0f}", f"{ratio:.2f}", singly,
            f"{statistics.median(figures.cpu):.3f}", f"{statistics.median(figures.waits):.1f}"]  # fmt: skip


def run(binary, model, work, rounds):
    """Measures everyone and prints the table."""
    made, seeds, started = texts.Texts(model), itertools.count(1), []
    try:
        for embedder in all_of(binary, model, work):
            started.append(embedder)
            embedder.start()
        agree(started, made)
        figures = {embedder.name: Figures() for embedder in started}
        for embedder in started:
            # The first time pays for what is made on demand.
            Figures().measure(embedder, made, seeds)
        for _ in range(rounds):
            for embedder in started:
                figures[embedder.name].measure(embedder, made, seeds)
    finally:
        for embedder in started:
            embedder.stop()
    found = [made.tokens(text) for text in made.mixed(0)]
    print(f"\n{len(found)} texts of {statistics.mean(found):.1f} tokens on average, at most {max(found)}; ratios are to the first row\n")
    print("| who | tokens/s | ratio | tokens/s, one text a request | CPU s for 1,000 tokens | one short query, ms |\n"
          "|---|---|---|---|---|---|")  # fmt: skip
    first = figures[started[0].name]
    for embedder in started:
        who = embedder.name + (f" ({embedder.settings})" if embedder.settings else "")
        print(f"| {who} | {' | '.join(shown(figures[embedder.name], first))} |", flush=True)
