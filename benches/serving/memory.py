"""Resident memory of Attune that serves a real GGUF file, once it has started and after the load of `real_files.py`, beside
the size of the file with the written blocks of the cache. `python benches/serving --only memory` runs it alone.
"""

import time

import real_files
from peers import Attune, attunelib

# Memory that steps took is given back once no request has come for a second.
PAUSE = 3
MIB = 2**20


def run(binary, work, rounds):
    """Measures both files, prints a table, and returns 0."""
    print("| file | resident at start, MiB | after the load | file | written cache | load / (file + cache) | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for model in real_files.real_models.ALL:
        path = model.fetch()
        server = Attune(binary, path, f"memory {model.name}", work).start()
        try:
            vocabulary = real_files.vocabulary_of(attunelib.Client(server.server.url))
            time.sleep(PAUSE)
            start = real_files.resident(server)
            speeds = []
            for seed in range(rounds + 1):
                real_files.one_at_a_time(server, vocabulary, 2 * seed)
                speeds.append(real_files.at_once(server, vocabulary, 2 * seed + 1)[0])
            time.sleep(PAUSE)
            loaded, size = real_files.resident(server), path.stat().st_size
            cache = real_files.cache_bytes(server, path)
            shown = " | ".join(f"{value / MIB:.0f}" for value in (start, loaded, size, cache))
            print(f"| {model.name} | {shown} | {loaded / (size + cache):.2f} | {max(speeds):.0f} |", flush=True)
        finally:
            server.stop()
    return 0
