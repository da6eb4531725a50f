"""The servers that are measured, each behind the same few calls: `start`, `complete` (a prompt to a number of new tokens),
`stop`. A prompt is a list of tokens, or an ASCII text for the model that has one token for each character."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import attunelib  # noqa: E402

THREADS = os.cpu_count()
SLOTS = 16
# Of each answer.
NEW_TOKENS = 64
# As many prompts as there are slots, 1,704 tokens in all.
PROMPT_LENGTHS = (16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128, 144, 192, 512)


class Http:
    """A connection for each request: llama.cpp's server closes kept ones while others are measured."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc

    def send(self, path, body):
        connection = http.client.HTTPConnection(self.address, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.read()[:500]!r}")
        return response

    def post(self, path, body):
        return self.send(path, body).read()

    def stream(self, path, body):
        """The times at which pieces of the answer arrive."""
        response = self.send(path, {**body, "stream": True})
        times = []
        for line in response:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
        return times


class Attune:
    """`attune serve`, with `dtype` or `quantize` of the model's entry."""

    def __init__(self, binary, folder, name, work, settings=None, **entry):
        self.name = name
        model = {"id": "bench", "path": str(folder), **entry}
        self.data = work / f"data-{name.replace(' ', '-')}"
        self.data.mkdir(parents=True, exist_ok=True)
        for folder in (self.data, *self.data.parents):
            if str(folder).startswith(str(work)):
                folder.chmod(0o711)
        # TOML is the form of lists in the environment.
        fields = ",".join(f"{key}={json.dumps(value)}" for key, value in model.items())
        settings = {"ATTUNE_MODELS": f"[{{{fields}}}]", **(settings or {})}
        self.server = attunelib.Server(binary, self.data, "--no-worker", settings=settings)

    def start(self):
        self.server.start(within=300)
        self.http = Http(self.server.url)
        return self

    def body(self, prompt, tokens, model="bench"):
        return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}

    def complete(self, prompt, tokens, model="bench"):
        usage = json.loads(self.http.post("/v1/completions", self.body(prompt, tokens, model)))["usage"]
        assert usage["prompt_tokens"] == len(prompt), usage
        return usage["completion_tokens"]

    def stream(self, prompt, tokens, model="bench"):
        return self.http.stream("/v1/completions", self.body(prompt, tokens, model))

    def load_adapter(self, name, folder, replace=False):
        self.http.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), "load_inplace": replace})

    def stop(self):
        self.server.stop()


class LlamaCpp:
    """llama.cpp's server with a slot for each request, all of the machine's threads, and no cache across requests."""

    def __init__(self, gguf, name, program):
        self.name, self.gguf, self.program = name, gguf, program

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [self.program, "-m", self.gguf, "--port", str(port), "-np", str(SLOTS), "-c", str(SLOTS * 1024),
             "-t", str(THREADS), "-tb", str(THREADS), "-b", "2048", "-ub", "512", "--no-webui", "--cache-ram", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.http = Http(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.program} ended with {self.process.returncode}")
            time.sleep(0.2)
        raise RuntimeError(f"{self.program} did not start")

    def complete(self, prompt, tokens):
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = json.loads(self.http.post("/completion", body))
        assert answer["tokens_evaluated"] == len(prompt), answer["tokens_evaluated"]
        return answer["tokens_predicted"]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class MistralRs:
    """The `mistralrs` package in this process: its engine runs on threads of its own, its runner takes one call at a time."""

    def __init__(self, folder, name):
        self.name, self.folder, self.turn = name, folder, threading.Lock()

    def start(self):
        import mistralrs

        self.mistralrs = mistralrs
        which = mistralrs.Which.Plain(model_id=str(self.folder), arch=mistralrs.Architecture.Llama)
        self.runner = mistralrs.Runner(which=which, max_seqs=SLOTS, no_paged_attn=True, prefix_cache_n=0)
        return self

    def complete(self, prompt, tokens):
        request = self.mistralrs.CompletionRequest(model="bench", prompt=prompt, max_tokens=tokens, temperature=0.0)
        with self.turn:
            return self.runner.send_completion_request(request).usage.completion_tokens

    def stop(self):
        del self.runner
