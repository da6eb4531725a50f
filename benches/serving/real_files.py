"""Two real GGUF files, SmolLM2-135M in Q4_1 and Gemma 3 270M in Q4_K_M, served by Attune and by llama.cpp side by side: tokens
per second of one request at a time and of many at once, CPU seconds, and memory beside the file and the cache.

    .venv-bench/bin/python benches/serving --only real
"""

import json
import os
import random
import re
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
from peers import NEW_TOKENS, PROMPT_LENGTHS, ROOT, Attune, LlamaCpp, attunelib

sys.path.insert(0, str(ROOT / "tools"))
import real_models  # noqa: E402

TEXT = ROOT / "tests" / "fixtures" / "real_files" / "text.txt"


def prompts(vocabulary, seed, lengths):
    """Real tokens in an order that no cache has met."""
    draw = random.Random(seed)
    texts = [draw.choices(vocabulary, k=length) for length in lengths]
    draw.shuffle(texts)
    return texts


def ask(server, texts):
    """Tokens of the answers a second, with their prompts, and a CPU second."""
    start, cpu = time.perf_counter(), cpu_seconds(server)
    with ThreadPoolExecutor(len(texts)) as pool:
        tokens = sum(pool.map(lambda text: server.complete(text, NEW_TOKENS), texts))
    return tokens / (time.perf_counter() - start), tokens / (cpu_seconds(server) - cpu)


def one_at_a_time(server, vocabulary, seed):
    rounds = [ask(server, [text]) for text in prompts(vocabulary, seed, (16, 16, 16))]
    return tuple(statistics.median(values) for values in zip(*rounds))


def at_once(server, vocabulary, seed):
    return ask(server, prompts(vocabulary, seed, PROMPT_LENGTHS))


def process(server):
    """The process of a server."""
    return server.server.process.pid if isinstance(server, Attune) else server.process.pid


def cpu_seconds(server):
    fields = Path(f"/proc/{process(server)}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(server):
    """Resident bytes, the mapped pages of files included."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process(server)}/status").read_text())[1])


def cache_bytes(server, path):
    """Bytes of the blocks of Attune's cache that have been written: 16 tokens' keys and values in f32 for each layer."""
    reader = gguf.GGUFReader(path)

    def of(name):
        field = reader.fields.get(f"{reader.fields['general.architecture'].contents()}.{name}")
        return field and field.contents()

    width = of("attention.key_length") or of("embedding_length") // of("attention.head_count")
    block = 2 * 4 * 16 * of("block_count") * of("attention.head_count_kv") * width
    with urllib.request.urlopen(f"{server.server.url}/metrics") as answer:
        written = re.findall(r"^attune_kv_blocks_(?:used|cached)\S* (\S+)", answer.read().decode(), re.MULTILINE)
    return block * sum(int(float(count)) for count in written)


def vocabulary_of(client):
    """The tokens of a text, to draw prompts from."""
    body = {"model": "bench", "prompt": TEXT.read_text(), "add_special_tokens": False}
    return client.post("/v1/tokenize", body)["tokens"]


def run(binary, work, rounds, program):
    """Measures both files, prints a table, and returns 0."""
    rows = []
    for model in real_models.ALL:
        path = model.fetch()
        ours = Attune(binary, path, f"attune {model.name}", work).start()
        theirs = LlamaCpp(path, f"llama.cpp {model.name}", program).start()
        try:
            vocabulary, seed = vocabulary_of(attunelib.Client(ours.server.url)), 0
            figures = {}
            for _ in range(rounds + 1):
                for measure in (one_at_a_time, at_once):
                    for server in (ours, theirs):
                        seed += 1
                        figures.setdefault((measure.__name__, server.name), []).append(measure(server, vocabulary, seed))
            for name in ("one_at_a_time", "at_once"):
                # The first time pays for what is made on demand.
                medians = [
                    tuple(statistics.median(values) for values in zip(*figures[name, server.name][1:]))
                    for server in (ours, theirs)
                ]
                rows.append((model.name, name.replace("_", " "), *medians))
            rows.append((model.name, "resident MiB", (resident(ours) / 2**20,), (resident(theirs) / 2**20,)))
            size, cache = path.stat().st_size, cache_bytes(ours, path)
            rows.append((model.name, "resident of Attune, of file and cache MiB", (resident(ours) / 2**20,), ((size + cache) / 2**20,)))
        finally:
            ours.stop()
            theirs.stop()
    print(f"\n{os.cpu_count()} cores, medians of {rounds}: tokens a second (and a CPU second)\n")
    print("| file | what | Attune | llama.cpp | ratio |\n|---|---|---|---|---|")
    for file, what, our, their in rows:
        shown = [f"{values[0]:,.1f}" + (f" ({values[1]:,.1f})" if len(values) > 1 else "") for values in (our, their)]
        print(f"| {file} | {what} | {' | '.join(shown)} | {our[0] / their[0]:.2f} |")
    return 0
