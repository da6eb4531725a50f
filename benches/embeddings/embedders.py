"""What embeds, each behind the same few calls: `start`, `embed` (texts to the seconds that they took), `vectors`, `cpu_seconds`,
`stop`. Each is a process of its own, whose CPU time is looked at from outside."""

import concurrent.futures
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "serving"), str(HERE.parent / "training")]
import peers  # noqa: E402
from watch import cpu_seconds  # noqa: E402

INFINITY = peers.ROOT / ".venv-bench-infinity" / "bin" / "infinity_emb"
# Requests at once, of one text each, where texts come one by one.
CALLERS = 16
# How long infinity may take to load and warm up.
PATIENCE = 300


class OverHttp:
    """A server that speaks OpenAI's API."""

    model = "bench"

    def ask(self, texts, model=None):
        """The vectors of one request."""
        body = {"model": model or self.model, "input": texts}
        return [item["embedding"] for item in json.loads(self.http.post("/v1/embeddings", body))["data"]]

    vectors = ask

    def embed(self, texts):
        """All in one request."""
        return timed(lambda: self.ask(texts))

    def embed_singly(self, texts, models=None):
        """A request for each text, several at once."""
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            asked = models or [None] * len(texts)
            return timed(lambda: list(pool.map(lambda text, model: self.ask([text], model), texts, asked)))


class Attune(OverHttp, peers.Attune):
    """`attune serve`, with `dtype` or `quantize` of the model's entry."""

    settings = ""

    def cpu_seconds(self):
        return cpu_seconds(self.server.process.pid)


class Infinity(OverHttp):
    """The server `infinity` with torch, whose defaults are batches of 32 that are sorted by length."""

    name, settings = "infinity", "torch, its defaults"

    def __init__(self, model):
        self.folder = model

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [INFINITY, "v2", "--model-id", self.folder, "--served-model-name", self.model, "--engine", "torch",
                   "--device", "cpu", "--url-prefix", "/v1", "--port", str(port), "--no-bettertransformer"]  # fmt: skip
        # Nothing is downloaded, and nothing told to anyone.
        surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        self.process = subprocess.Popen(
            [str(part) for part in command], env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.http = peers.Http(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + PATIENCE
        while not answers(port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{INFINITY} did not start")
            time.sleep(0.5)
        return self

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class InProcess:
    """A library, in a process that has nothing else to do."""

    def __init__(self, kind, model, file):
        self.name, self.settings = kind, ""
        self.command = [sys.executable, HERE / "in_process.py", kind, model, file]

    def start(self):
        self.process = subprocess.Popen(
            [str(part) for part in self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} did not start: {self.command}")
        return self

    def send(self, asked):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        answer = json.loads(line)
        self.settings = answer["settings"]
        return answer

    def embed(self, texts):
        return self.send(texts)["seconds"]

    def vectors(self, texts):
        return self.send({"texts": texts})["vectors"]

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)


def timed(work):
    """The seconds that it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def answers(port):
    """Whether a server is ready at the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
