"""How the processes of the second engine stand: on the pages, in `/ready`, in the metrics."""

import os
import re
import signal

import httpx
import pytest
from conftest import wait_for
from second_engine import complete, process_of

MODEL = "glm4"


def metric(server, name, model):
    found = re.search(rf'^{name}{{model="{model}"}} (\S+)$', httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else None


def page(server, path):
    answer = httpx.get(f"{server.url}{path}", follow_redirects=True)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_process_that_serves_shows_its_memory(second):
    complete(second, MODEL, [5, 9], max_tokens=2)
    assert httpx.get(f"{second.url}/ready").json() == {"status": "ready"}
    assert metric(second, "attune_second_engine_ready", MODEL) == 1
    assert metric(second, "attune_second_engine_memory_bytes", MODEL) > 1 << 20
    assert metric(second, "attune_second_engine_ready", "demo") is None
    assert metric(second, "attune_queue_seconds_count", MODEL) >= 1
    one = page(second, f"/ui/models/{MODEL}")
    assert "ready</span> for" in one and "MiB" in one and "Loaded in" in one
    assert "always ready" in page(second, "/ui/models/demo") and "Loaded in" not in page(second, "/ui/models/demo")
    operations = page(second, "/ui/operations")
    assert f"<bdi>{MODEL}</bdi>" in operations.split("Second engine")[-1]


def test_a_process_that_is_started_again_is_seen_loading(second):
    """The new process is stopped before it has loaded anything, so that everyone sees it loading."""
    before = process_of(second, MODEL)
    os.kill(before, signal.SIGKILL)
    new = wait_for(lambda: process_of(second, MODEL) not in (None, before) and process_of(second, MODEL), "a new process")
    os.kill(new, signal.SIGSTOP)
    try:
        ready = httpx.get(f"{second.url}/ready").json()
        if "loading" not in ready:
            pytest.skip("the process had loaded its model before it was stopped")
        assert ready == {"status": "ready", "loading": [MODEL]}
        assert metric(second, "attune_second_engine_ready", MODEL) == 0
        one = page(second, f"/ui/models/{MODEL}")
        assert "loading</span> for" in one and "of files of" in one and "once" in one
        assert "loading</span> for" in page(second, "/ui/models") and "loading</span> for" in page(second, "/ui/operations")
        answer = httpx.post(f"{second.url}/v1/completions", json={"model": MODEL, "prompt": [5], "max_tokens": 1})
        assert answer.status_code == 503 and "started again" in answer.text
        complete(second, "demo", "Other models go on", max_tokens=2)
    finally:
        os.kill(new, signal.SIGCONT)
    wait_for(lambda: "loading" not in httpx.get(f"{second.url}/ready").json(), "the process is ready")
    complete(second, MODEL, [5, 9], max_tokens=2)
    assert metric(second, "attune_engine_restarts_total", MODEL) >= 1
