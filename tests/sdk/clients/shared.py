"""What the checks of every Python client need: the server's address and a little data. The keys and addresses that the
clients read for themselves stand in the environment; `test_clients.py` sets it."""

import json
import os
import time
from pathlib import Path

URL = os.environ["ATTUNE_URL"]
BASE_URL = URL + "/v1"
KEY = os.environ["OPENAI_API_KEY"]
DEMO = Path(os.environ["ATTUNE_DEMO"])
WIDTH = 256  # of the demo model's vectors
# A tiny encoder, and the width of its vectors.
ENCODER, ENCODER_WIDTH = "text-embedding-3-large", 32


def tickets(count):
    """Training lines in chat form."""
    lines = (DEMO / "tickets" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def prompts(count):
    """The same in the older form of prompt and completion."""
    return [
        {"prompt": line["messages"][0]["content"] + "\n\n###\n\n", "completion": " " + line["messages"][1]["content"]}
        for line in tickets(count)
    ]


def jsonl(lines):
    """The bytes of a JSONL file."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def wait_for(condition, what, within=120):
    """Asks until the condition holds, and returns its answer."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.2)
    return answer
