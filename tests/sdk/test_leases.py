"""However a request ends, it gives back the adapter that it held: unloading then completes."""

import contextlib
import json
import socket
import threading
from urllib.parse import urlsplit

import adapterlib
import httpx
import openai
import pytest
from conftest import sdk, wait_for

LONG = {"prompt": "On Friday", "max_tokens": 900}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(start_server):
    limits = {"MAX_SEQUENCES": "2", "MAX_WAITING": "4", "MAX_INPUTS": "10"}
    server = start_server(settings={f"ATTUNE_LIMITS__{name}": value for name, value in limits.items()})
    adapterlib.put(server.data_dir / "made" / "one", 1)
    yield server
    server.stop()


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture
def leased(http):
    """The adapter of that name, loaded; what a failed test leaves of it is unloaded."""
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "leased", "lora_path": "made/one"})
    assert loaded.status_code == 200, loaded.text
    yield
    http.post("/v1/unload_lora_adapter", json={"lora_name": "leased"})


def post(server, path, body):
    return httpx.post(server.url + path, json={"model": "leased", **body}, timeout=60)


def succeeds(path, **body):
    def run(server, endless):
        answer = post(server, path, body)
        assert answer.status_code == 200, answer.text

    return run


def is_refused(status, path, **body):
    def run(server, endless):
        answer = post(server, path, body)
        assert answer.status_code == status, answer.text

    return run


def stream_is_read_to_its_end(server, endless):
    with sdk(server) as client:
        assert list(client.completions.create(model="leased", prompt="On", n=3, max_tokens=5, stream=True))


def stream_is_closed_early(server, endless):
    with sdk(server) as client:
        stream = client.completions.create(model="leased", n=4, logit_bias=endless, stream=True, **LONG)
        next(stream)
        stream.close()


def send(server, path, body):
    """A connection whose request was sent and whose answer nobody has read."""
    content = json.dumps({"model": "leased", **body}).encode()
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def client_hangs_up(path, **body):
    def run(server, endless):
        bias = {} if path.endswith("embeddings") else {"logit_bias": endless}
        with contextlib.closing(send(server, path, {**body, **bias})):
            wait_for(lambda: leases(server) or None, "a lease", every=0.005)

    return run


def client_gives_up(server, endless):
    with sdk(server) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model="leased", n=4, logit_bias=endless, timeout=0.2, **LONG)


def queue_is_full(server, endless):
    """Two run, four wait, more keep coming: one request too many is refused, and so is one of many answers, whole."""
    enough = threading.Event()

    def keep_asking():
        while not enough.is_set():
            post(server, "/v1/completions", {**LONG, "n": 2, "logit_bias": endless})

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for n in (1, 4):
            body = {"prompt": "x", "max_tokens": 1, "n": n}
            wait_for(lambda body=body: post(server, "/v1/completions", body).status_code == 429, "a full queue", every=0.005)
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def many_at_once(server, endless):
    ends = [succeeds("/v1/completions", prompt="x", max_tokens=20), stream_is_closed_early, client_gives_up]
    threads = [threading.Thread(target=attempt, args=(ends[number % 3], server, endless)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attempt(end, server, endless):
    """Some meet a full queue."""
    with contextlib.suppress(AssertionError, openai.RateLimitError, pytest.fail.Exception):
        end(server, endless)


SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
ENDS = {
    "a completion": succeeds("/v1/completions", prompt="x", max_tokens=3),
    "no token at all": succeeds("/v1/completions", prompt="x", max_tokens=0),
    "an echo": succeeds("/v1/completions", prompt="x y", max_tokens=0, echo=True, logprobs=1),
    "many answers": succeeds("/v1/completions", prompt="x", max_tokens=3, n=4),
    "many prompts": succeeds("/v1/completions", prompt=["x", "y"], max_tokens=3, n=2),
    "the best of many": succeeds("/v1/completions", prompt="x", max_tokens=3, best_of=4),
    "a chat": succeeds("/v1/chat/completions", messages=HELLO, max_tokens=3, n=2),
    "structured output": succeeds(
        "/v1/chat/completions",
        messages=HELLO,
        max_tokens=30,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    ),
    "vectors": succeeds("/v1/embeddings", input=["x", "y", "z"]),
    "a stream read to its end": stream_is_read_to_its_end,
    "a stream closed early": stream_is_closed_early,
    "a client that hangs up": client_hangs_up("/v1/completions", n=4, **LONG),
    "a client that hangs up on a chat": client_hangs_up("/v1/chat/completions", messages=HELLO, max_tokens=900, n=4),
    "a client that gives up": client_gives_up,
    "too long a prompt": is_refused(400, "/v1/completions", prompt="x " * 3000),
    "too many tokens": is_refused(400, "/v1/completions", prompt="x", max_tokens=100_000),
    "too many answers": is_refused(400, "/v1/completions", prompt="x", n=5),
    "a field out of range": is_refused(400, "/v1/completions", prompt="x", temperature=9),
    "a token that is none": is_refused(400, "/v1/completions", prompt=[10**9]),
    "a bad bias": is_refused(400, "/v1/completions", prompt="x", logit_bias={"nobody": 1}),
    "a bad grammar": is_refused(
        400,
        "/v1/chat/completions",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wish"}}},
    ),
    "too many inputs": is_refused(400, "/v1/embeddings", input=["x"] * 11),
    "an empty input": is_refused(400, "/v1/embeddings", input=["x", ""]),
    "a full queue": queue_is_full,
    "many at once": many_at_once,
}


def listed(server):
    return httpx.get(server.url + "/v1/lora_adapters").json()


def leases(server):
    return listed(server)["active_leases"]


def gauge(server, name):
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


@pytest.mark.usefixtures("leased")
@pytest.mark.parametrize("end", ENDS)
def test_a_request_gives_its_adapter_back_and_unloading_completes(server, http, endless, end):
    ENDS[end](server, endless)
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "leased"}).status_code == 200
    wait_for(lambda: not listed(server)["data"], f"the end of the adapter after {end}")
    now = listed(server)
    assert (now["active_leases"], now["retired_generations"], now["device"]["bytes"], now["host"]["bytes"]) == (0, 0, 0, 0)
    for name in ("attune_running_sequences", "attune_queue_waiting", "attune_kv_blocks_used"):
        wait_for(lambda: gauge(server, name) == 0, f"{name} to be 0 after {end}")
