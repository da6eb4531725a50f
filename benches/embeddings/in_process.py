"""Another library's embeddings, in a process of its own: `in_process.py KIND MODEL FILE`, where FILE is the model as ONNX, or an
adapter's folder or nothing for sentence-transformers.

Each line on standard input is a list of texts, and the answer a line of JSON with the seconds that their vectors took, from
text to vector. `{"vectors": true, "texts": […]}` asks for the vectors, too.

  sentence-transformers  `encode` in batches of 32, with its own sorting
  onnx-fifo              ONNX Runtime in batches of 8 in the order of their coming, padded to the longest
  onnx-sorted            ONNX Runtime, sorted by length, at the best of several batch sizes, with all threads in one session or
                         with a session for each
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

THREADS = os.cpu_count()
BATCH = 32
FIFO = 8
# Among these `onnx-sorted` chooses.
SIZES = (1, 4, 8, 16, 32)
TRIALS = 2


class SentenceTransformers:
    """The model's own library."""

    def __init__(self, model, adapter):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(THREADS)
        self.model = SentenceTransformer(model, device="cpu")
        if adapter:
            self.model.load_adapter(adapter)
        self.settings = f"batches of {BATCH}"

    def embed(self, texts):
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)


class Onnx:
    """ONNX Runtime, with mean pooling in numpy: `sessions` at once, which share the threads."""

    def __init__(self, model, onnx, sessions, size, is_sorted):
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(json.loads(Path(model, "sentence_bert_config.json").read_text())["max_seq_length"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS // sessions, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        providers = ["CPUExecutionProvider"]
        self.sessions = [onnxruntime.InferenceSession(onnx, options, providers=providers) for _ in range(sessions)]
        self.pool = ThreadPoolExecutor(sessions)
        self.free = list(self.sessions)
        self.size, self.is_sorted = size, is_sorted
        self.settings = f"batches of {size}, {sessions} × {THREADS // sessions} threads"

    def embed(self, texts):
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = list(range(len(ids)))
        if self.is_sorted:
            # The longest first: what remains for the end is small.
            order.sort(key=lambda number: -len(ids[number]))
        batches = [order[at:at + self.size] for at in range(0, len(order), self.size)]
        vectors = np.empty((len(texts), self.width()), np.float32)
        for batch, found in zip(batches, self.pool.map(lambda batch: self.run([ids[number] for number in batch]), batches)):
            vectors[batch] = found
        return vectors

    def width(self):
        return self.sessions[0].get_outputs()[0].shape[-1]

    def run(self, ids):
        """The vectors of one batch, padded to its longest text."""
        longest = max(map(len, ids))
        mask = np.array([[1] * len(one) + [0] * (longest - len(one)) for one in ids], np.int64)
        padded = np.array([one + [0] * (longest - len(one)) for one in ids], np.int64)
        session = self.free.pop()
        try:
            (hidden,) = session.run(None, {"input_ids": padded, "attention_mask": mask})
        finally:
            self.free.append(session)
        weights = mask[:, :, None].astype(np.float32)
        means = (hidden * weights).sum(1) / weights.sum(1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


class Best:
    """ONNX Runtime with the settings that are fastest on the first texts."""

    def __init__(self, model, onnx):
        self.candidates = [Onnx(model, onnx, sessions, 1, True) for sessions in sorted({1, THREADS})]
        self.chosen, self.settings = None, None

    def embed(self, texts):
        if self.chosen is None:
            self.choose(texts)
        return self.chosen.embed(texts)

    def choose(self, texts):
        best = None
        for candidate in self.candidates:
            for size in SIZES:
                candidate.size = size
                seconds = min(timed(candidate, texts)[0] for _ in range(TRIALS))
                if best is None or seconds < best[0]:
                    best = seconds, candidate, size
        _, self.chosen, self.chosen.size = best
        sessions = len(self.chosen.sessions)
        self.settings = f"sorted, batches of {best[2]}, {sessions} × {THREADS // sessions} threads"


KINDS = {
    "sentence-transformers": SentenceTransformers,
    "onnx-fifo": lambda model, onnx: Onnx(model, onnx, 1, FIFO, False),
    "onnx-sorted": Best,
}


def timed(embedder, texts):
    start = time.perf_counter()
    vectors = embedder.embed(texts)
    return time.perf_counter() - start, vectors


def main():
    kind, model, file = sys.argv[1:]
    embedder = KINDS[kind](model, file)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts, wants = (asked["texts"], True) if isinstance(asked, dict) else (asked, False)
        seconds, vectors = timed(embedder, texts)
        answer = {"seconds": seconds, "settings": embedder.settings}
        print(json.dumps({**answer, "vectors": vectors.tolist()} if wants else answer), flush=True)


if __name__ == "__main__":
    main()
