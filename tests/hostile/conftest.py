"""Real servers under requests that were made to hurt them, and what these cost: memory, and the time of others.

    python -m pytest tests/hostile --binary target/debug/attune
"""

import importlib.util
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

# Its servers, keys and helpers are those of the tests from the outside.
SDK = Path(__file__).resolve().parents[1] / "sdk"
sys.path.insert(0, str(SDK))
sys.path.insert(0, str(SDK.parents[1] / "tools"))
import attunelib  # noqa: E402, F401

_spec = importlib.util.spec_from_file_location("sdk_conftest", SDK / "conftest.py")
sdk = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sdk)

pytest_addoption = sdk.pytest_addoption
binary = sdk.binary
start_server = sdk.start_server

# A token of somebody else may take this many times what it takes on an idle server, or this many seconds: the machine may
# be busy with other things.
TIMES, FLOOR = 15, 2.0

MIB = 1 << 20
# What one request, and a hundred at once, may add to the memory of a server.
ONE, HUNDRED = 256 * MIB, 1024 * MIB


class Memory:
    """The main memory of a process: now, and the most since it was watched."""

    def __init__(self, pid):
        self.status = Path(f"/proc/{pid}/status")
        self.reset = Path(f"/proc/{pid}/clear_refs")
        self.watch()

    def _read(self, name):
        line = next(line for line in self.status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    def watch(self):
        # 5 sets the peak to what is resident now.
        self.reset.write_text("5")
        self.before = self._read("VmRSS:")

    def now(self):
        return self._read("VmRSS:")

    def grown(self):
        """The most that was added since `watch`."""
        return self._read("VmHWM:") - self.before


class Tenant:
    """One organisation's key."""

    def __init__(self, server, key):
        self.server, self.key = server, key

    def client(self, timeout=120):
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=timeout)

    def post(self, body, path="/v1/chat/completions", timeout=120):
        with self.client(timeout) as client:
            content = json.dumps(body).encode()
            return client.post(path, content=content, headers={"Content-Type": "application/json"})

    def hang_up(self, body, after=0.5):
        """Sends a request and leaves before its answer; returns the answer if that was faster."""
        try:
            return self.post(body, timeout=after)
        except httpx.TimeoutException:
            return None


@pytest.fixture(scope="session")
def server(start_server):
    return start_server()


def _tenant(binary, server, name):
    return Tenant(server, sdk.create_key(binary, server.data_dir, name)[0])


@pytest.fixture(scope="session")
def attacker(binary, server):
    return _tenant(binary, server, "attacker")


@pytest.fixture(scope="session")
def bystander(binary, server, attacker):
    """Another organisation, which wants only its own small answers."""
    tenant = _tenant(binary, server, "bystander")
    # The first grammar of a model builds tables that stay.
    warm = chat(response_format={"type": "json_object"}, max_tokens=2)
    sdk.wait_for(lambda: tenant.post(warm).status_code == 200, "the key of the other organisation")
    sdk.wait_for(lambda: attacker.post(warm).status_code == 200, "the key of the attacker")
    return tenant


@pytest.fixture
def memory(server, bystander):
    return Memory(server.process.pid)


def chat(**fields):
    """A body of a chat request with one short message."""
    return {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, **fields}


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def under(schema, **fields):
    """A body of a chat request whose answer follows `schema`."""
    return chat(response_format=schema_format(schema), **fields)


def descriptors(server):
    """Number of file descriptors that the server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def timed(call):
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


def token(tenant, path="/v1/completions"):
    """A small request of another organisation; returns the seconds that it took."""
    body = {"model": "demo", "prompt": "The", "max_tokens": 1}
    if path.endswith("embeddings"):
        body = {"model": "demo", "input": "The"}
    answer, seconds = timed(lambda: tenant.post(body, path))
    assert answer.status_code == 200, answer.text
    return seconds


@pytest.fixture(scope="session")
def patience(bystander):
    """The seconds that such a request may take beside others."""
    return max(FLOOR, TIMES * max(token(bystander) for _ in range(5)))


@contextmanager
def asking(tenant):
    """Asks for one token after the other, and once more after the block; gives the list of the seconds of each."""
    done, seconds, failures = threading.Event(), [], []

    def ask():
        try:
            while not done.is_set():
                seconds.append(token(tenant))
            seconds.append(token(tenant))
        except Exception as failure:  # noqa: BLE001
            failures.append(failure)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield seconds
    finally:
        done.set()
        asker.join(120)
    for failure in failures:
        raise failure


def assert_refused(answer, field, *words):
    """Checks that `answer` is a 400 that names `field` and its limit."""
    assert answer.status_code == 400, f"{answer.status_code} {answer.text[:300]}"
    error = answer.json()["error"]
    assert error["param"] == field, error
    for word in words:
        assert word in error["message"], error
