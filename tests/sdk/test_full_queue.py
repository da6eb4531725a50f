"""A queue that is full refuses whoever makes vectors and scores, too, and is free again when its clients have gone."""

import json
import re
import select
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import wait_for

# A hundred thousand tokens, one in each step: no such request ends while the test runs.
LARGE = ["On Friday " * 100] * 500
SETTINGS = {"MAX_SEQUENCES": "1", "MAX_STEP_TOKENS": "1", "MAX_WAITING": "1"}


@pytest.fixture(scope="module")
def server(start_server):
    server = start_server(settings={f"ATTUNE_LIMITS__{name}": value for name, value in SETTINGS.items()})
    yield server
    server.stop()


def send(server, path, body):
    """A connection that has sent the request and waits for its answer."""
    url = urlsplit(server.url)
    content = json.dumps({"model": "demo", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    connection.sendall(f"{head}\r\n\r\n".encode() + content)
    return connection


def held(server):
    """What the requests of the server still hold."""
    text = httpx.get(server.url + "/metrics").text
    names = "attune_running_sequences|attune_queue_waiting|attune_kv_blocks_used"
    return {name: value for name, value in re.findall(rf"^({names})(?:{{.*}})? (.*)$", text, re.MULTILINE) if value != "0"}


def test_a_full_queue_refuses_vectors_and_scores_until_its_clients_go(server):
    kinds = [("/v1/embeddings", {"input": LARGE}), ("/v1/score", {"text_1": "Where?", "text_2": LARGE})] * 2
    connections = [send(server, path, body) for path, body in kinds]
    try:
        (first, *_), _, _ = select.select(connections, [], [], 60)
        assert first.recv(12) == b"HTTP/1.1 429", "the first answer can only be a refusal"
        for path, body in [("/v1/embeddings", {"input": "x"}), ("/v1/score", {"text_1": "x", "text_2": "y"})]:
            answer = httpx.post(server.url + path, json={"model": "demo", **body}, timeout=60)
            assert answer.status_code == 429, answer.text
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) >= 1
        assert held(server)
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: not held(server), "the end of what the requests held")
    answer = httpx.post(server.url + "/v1/embeddings", json={"model": "demo", "input": "x"}, timeout=60)
    assert answer.status_code == 200, answer.text
