"""Measures training side by side with transformers, PEFT and TRL, on random weights of SmolLM2-135M's shape, and prints a
table: f32, LoRA of rank 16 on all linear layers, chats of mixed length. All take turns, each in a new process, so that what
disturbs the machine disturbs all of them; each figure is a median. `make bench-training` runs it.

Tokens are those of the chats, padding not counted: the same number for all, which is checked. Memory is the most that the
training process has resident while it trains, looked at from outside, in the same way for all.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "serving"))
sys.path.insert(0, str(HERE.parents[1] / "tools"))
import attunelib  # noqa: E402
import checkpoint  # noqa: E402
import data  # noqa: E402

RANK, ALPHA, BATCH, LOOK_EVERY = 16, 32, 4, 0.02


class MemoryWatch:
    """The most memory that a process has resident between `begin` and `end`, in bytes."""

    def __init__(self, pid):
        self.pid, self.peak, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.over.is_set():
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            resident = [line for line in status.splitlines() if line.startswith("VmRSS:")]
            self.peak = max([self.peak, *(int(line.split()[1]) << 10 for line in resident)])
            self.over.wait(LOOK_EVERY)

    def begin(self):
        self.thread.start()
        return self

    def end(self):
        self.over.set()
        self.thread.join()
        return self.peak


def write_model(folder):
    """The checkpoint, with the benchmark's chat template."""
    if not (folder / "complete").exists():
        checkpoint.write_folder(folder, checkpoint.tensors())
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": data.TEMPLATE}))
        (folder / "complete").touch()
    return folder


def with_attune(binary, model, chats, work):
    """Trains through the API; tokens, seconds and bytes."""
    home = attunelib.data_folder()
    try:
        entry = f'[{{id="bench",path={json.dumps(str(model))}}}]'
        with attunelib.Server(binary, home, settings={"ATTUNE_MODELS": entry, "ATTUNE_DEVICE": "cpu"}) as server:
            client = attunelib.Client(server.url)
            file = client.upload("chats.jsonl", chats.read_bytes())
            settings = {"n_epochs": 1, "batch_size": BATCH, "rank": RANK, "alpha": ALPHA, "learning_rate": 2e-4}
            body = {"model": "bench", "training_file": file["id"], "seed": 1,
                    "method": {"type": "supervised", "supervised": {"hyperparameters": settings}}}  # fmt: skip
            job = attunelib.Job(client, client.post("/v1/fine_tuning/jobs", body))
            events, watch = [], None
            while not job.refresh() or not job.is_over:
                events += job.new_events()
                # What begins before the first step, such as measuring the machine, is not training.
                if watch is None and any(event["message"].startswith("Expected: ") for event in events):
                    watch = MemoryWatch(server.process.pid).begin()
                time.sleep(0.1)
            events += job.new_events()
            peak = watch.end() if watch else 0
            if job.state["status"] != "succeeded":
                raise RuntimeError(f"the job ended so: {job.state['error']}\n{server.tail()}")
            took = next(event["data"] for event in events if event["message"].startswith("Took "))["actual"]
            # Where the job ended between two looks, the server's own figure stands in.
            return job.state["trained_tokens"], took["duration_seconds"], peak or took["peak_resident_bytes"]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def with_trl(mode, model, chats, work):
    """Trains with TRL in a process of its own; tokens, seconds and bytes."""
    surroundings = {**os.environ, "PEER_OUT": str(work / f"out-{mode}")}
    command = [sys.executable, HERE / "peer.py", model, chats, mode]
    log = (work / f"{mode}.log").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=surroundings)
    watch, last = MemoryWatch(process.pid), ""
    for line in process.stdout:
        last = line
        if line == "begin\n":
            watch.begin()
        elif line == "end\n":
            watch.end()
    if process.wait() != 0:
        log.seek(0)
        raise RuntimeError(f"{mode}: {log.read()[-3000:]}")
    told = json.loads(last)
    return told["tokens"], told["seconds"], watch.peak


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, help="measure this attune instead of building one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (default 3)")
    parser.add_argument("--steps", type=int, default=30, help=f"steps of {BATCH} chats (default 30)")
    parser.add_argument("--only", choices=("attune", "trl"), help="one side")
    parser.add_argument("--work", type=Path, help="keep the made checkpoint here")
    arguments = parser.parse_args()
    work = arguments.work or attunelib.data_folder()
    work.mkdir(parents=True, exist_ok=True)
    try:
        model = write_model(work / "model")
        made = data.chats(BATCH * arguments.steps)
        tokens = sum(map(data.tokens, made))
        chats = data.write(work / "chats.jsonl", made)
        trainers = {}
        if arguments.only != "trl":
            binary = arguments.binary or attunelib.build()
            trainers["Attune"] = lambda: with_attune(binary, model, chats, work)
        if arguments.only != "attune":
            trainers[f"transformers + PEFT + TRL, its defaults (batch {BATCH}, padded)"] = lambda: with_trl(
                "padded", model, chats, work
            )
            trainers["transformers + PEFT + TRL, packed at 1,024"] = lambda: with_trl("packed", model, chats, work)
        speeds, peaks = ({name: [] for name in trainers} for _ in range(2))
        for turn in range(arguments.rounds):
            for name, train in trainers.items():
                trained, seconds, peak = train()
                if trained != tokens:
                    raise RuntimeError(f"{name} trained on {trained} tokens, the chats have {tokens}")
                speeds[name].append(trained / seconds)
                peaks[name].append(peak)
                print(f"round {turn + 1}: {name}: {trained / seconds:,.1f} tokens/s, {peak / 2**20:,.0f} MiB", flush=True)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    report(tokens, len(made), arguments.rounds, speeds, peaks)
    return 0


def report(tokens, chats, rounds, speeds, peaks):
    """The table: medians, and each trainer's beside the first one's."""
    print(
        f"\nSmolLM2-135M's shape, f32, LoRA of rank {RANK} on all linear layers, {chats} chats with {tokens:,} tokens (mean "
        f"{tokens / chats:.0f}), {os.cpu_count()} cores, {platform.machine()}, medians of {rounds}\n"
    )
    print("| trainer | tokens/s | the first is faster by | peak resident MiB | times the first's |")
    print("|---|---|---|---|---|")
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    first = next(iter(speed))
    for name, value in speed.items():
        print(
            f"| {name} | {value:,.1f} | {speed[first] / value:.2f} | {peak[name] / 2**20:,.0f} | "
            f"{peak[name] / max(peak[first], 1):.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
