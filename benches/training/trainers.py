"""Runs a training, Attune's or another one's, and tells what it took. Used by this benchmark and by `benches/quality`."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools"))
import attunelib  # noqa: E402
from watch import Watch  # noqa: E402

# The base model's id in Attune.
BASE = "bench"


@dataclass
class Trained:
    """What a training took from its first step to its last."""

    # Tokens of the chats, padding not counted.
    tokens: int
    seconds: float
    # CPU time of the process, of all its threads.
    cpu_seconds: float
    # The most bytes that the process had resident.
    peak: int

    def in_words(self):
        return (
            f"{self.tokens / self.seconds:,.1f} tokens/s, {self.tokens / self.cpu_seconds:,.1f} tokens a CPU second, "
            f"{self.peak / 2**20:,.0f} MiB"
        )


def server_of(binary, model, home):
    """A server of the model in a folder, not started yet."""
    entry = f"[{{id={json.dumps(BASE)},path={json.dumps(str(model))}}}]"
    return attunelib.Server(binary, home, settings={"ATTUNE_MODELS": entry, "ATTUNE_DEVICE": "cpu"})


def run_job(server, chats, settings=None, seed=1, **more):
    """Trains on a server that runs, through its API. `settings` are the hyperparameters, by default those that the server
    chooses, `more` is for the body of the request. Returns the finished job, its events and what it took."""
    client = attunelib.Client(server.url)
    body = {"model": BASE, "training_file": client.upload("chats.jsonl", Path(chats).read_bytes())["id"], "seed": seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": settings or {}}}, **more}  # fmt: skip
    job = attunelib.Job(client, client.post("/v1/fine_tuning/jobs", body))
    events, watch, ended = [], None, False
    while not job.refresh() or not job.is_over:
        fresh = job.new_events()
        events += fresh
        # What comes before the first step, such as measuring the machine, is not training, nor what comes after the last.
        if watch is None and any(event["message"].startswith("Expected: ") for event in fresh):
            watch = Watch(server.process.pid).begin()
        if watch and not ended and any(event["message"].startswith("Took ") for event in fresh):
            watch.end()
            ended = True
        time.sleep(0.1)
    events += job.new_events()
    if job.state["status"] != "succeeded":
        raise RuntimeError(f"the job ended so: {job.state['error']}\n{server.tail()}")
    if watch is None:
        raise RuntimeError("the job was over before it could be watched: give it more steps")
    if not ended:
        watch.end()
    took = next(event["data"] for event in events if event["message"].startswith("Took "))["actual"]
    return job, events, Trained(job.state["trained_tokens"], took["duration_seconds"], watch.cpu, watch.peak)


def with_attune(binary, model, chats, settings):
    """Trains on a server of its own."""
    home = attunelib.data_folder()
    try:
        with server_of(binary, model, home) as server:
            return run_job(server, chats, settings)[2]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def in_process(script, log, *arguments, **surroundings):
    """Trains with another program, in a process of its own that prints `begin`, `end` and a line of JSON."""
    command = [sys.executable, HERE / script, *map(str, arguments)]
    with open(log, "w+", encoding="utf-8") as messages:
        environment = {**os.environ, **surroundings}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True, env=environment)
        watch, last = Watch(process.pid), ""
        for line in process.stdout:
            last = line
            if line == "begin\n":
                watch.begin()
            elif line == "end\n":
                watch.end()
        if process.wait() != 0:
            messages.seek(0)
            raise RuntimeError(f"{script}: {messages.read()[-3000:]}")
    told = json.loads(last)
    return Trained(told["tokens"], told["seconds"], watch.cpu, watch.peak)
