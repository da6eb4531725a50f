"""How long a request may wait for its turn and may take in all: what it gets where that is over, streamed or not, and that
nothing of it is left behind."""

import json
import re

import adapterlib
import httpx
import openai
import pytest
from conftest import jsonl, sdk, wait_for

# Far more than a second's work, for a model that answers one at a time and computes one row in each step.
ANSWERS = {"n": 60, "max_tokens": 900}
SLOW = {"MAX_SEQUENCES": "1", "MAX_STEP_TOKENS": "1"}
MODEL = "with-adapter"


def start(start_server, request, **limits):
    """A server with these limits, whose model `MODEL` has an adapter, if its engine gives any."""
    settings = {f"ATTUNE_LIMITS__{name}": value for name, value in {**SLOW, **limits}.items()}
    if request.config.getoption("--engine") == "mistralrs":
        return start_server(settings={**settings, "ATTUNE_ALIASES": f'{{{MODEL}="demo"}}'})
    server = start_server(settings=settings)
    path = adapterlib.put(server.data_dir / "made" / "one", 1)
    loaded = httpx.post(server.url + "/v1/load_lora_adapter", json={"lora_name": MODEL, "lora_path": path})
    assert loaded.status_code == 200, loaded.text
    return server


@pytest.fixture(scope="module")
def hurried(start_server, request):
    """A server whose requests may take a second."""
    server = start(start_server, request, MAX_REQUEST_SECONDS="1")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def crowded(start_server, request, endless):
    """A server whose requests may wait for a second, and the stream of one that keeps all others waiting."""
    server = start(start_server, request, MAX_QUEUE_SECONDS="1")
    with sdk(server) as client:
        # Most of the 1024 places in the queue: it answers for as long as there are tests.
        asked = {"prompt": ["On Friday"] * 7, "n": 128, "max_tokens": 900, "logit_bias": endless}
        stream = client.completions.create(model=MODEL, temperature=0.8, stream=True, **asked)
        next(stream)
        yield server, stream
        stream.close()
    assert_nothing_is_left(server)
    server.stop()


def requests(endless):
    """Requests of every kind that take longer than they may."""
    prompt, messages = "On Friday", [{"role": "user", "content": "Hello"}]
    completion = {"prompt": prompt, "logit_bias": endless, **ANSWERS}
    return {
        "completion": ("/v1/completions", completion),
        "best_of": ("/v1/completions", {**completion, "n": 2, "best_of": 20}),
        "many prompts": ("/v1/completions", {**completion, "n": 1, "prompt": [prompt] * 60}),
        "chat": ("/v1/chat/completions", {"messages": messages, "logit_bias": endless, **ANSWERS}),
        "embeddings": ("/v1/embeddings", {"input": ["On Friday " * 100] * 500}),
        "scores": ("/v1/score", {"text_1": "Where?", "text_2": ["On Friday " * 100] * 500}),
    }


KINDS = ["completion", "best_of", "many prompts", "chat", "embeddings", "scores"]
STREAMED = ["completion", "many prompts", "chat"]


def ask(server, kind, endless, **settings):
    path, body = requests(endless)[kind]
    return httpx.post(server.url + path, json={"model": MODEL, **body, **settings}, timeout=60)


def frames(answer):
    """The documents of a stream that breaks off."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in answer.text, "a stream that broke off must not look complete"
    return [json.loads(data) for data in re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)]


def assert_nothing_is_left(server):
    def left():
        text = httpx.get(server.url + "/metrics").text
        names = "attune_running_sequences|attune_queue_waiting|attune_kv_blocks_used|attune_adapter_leases"
        return {name: value for name, value in re.findall(rf"^({names})(?:{{.*}})? (.*)$", text, re.MULTILINE) if value != "0"}

    wait_for(lambda: not left(), "the end of what the requests held")
    assert "attune_adapter_leases 0" in httpx.get(server.url + "/metrics").text


def is_timeout(error):
    return error["code"] == "request_timeout" and error["type"] == "server_error" and "1 s" in error["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_takes_too_long_is_ended_with_504(hurried, endless, kind):
    answer = ask(hurried, kind, endless)
    assert answer.status_code == 504, answer.text
    assert is_timeout(answer.json()["error"]), answer.text
    assert answer.json()["error"]["param"] is None
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert_nothing_is_left(hurried)
    short = httpx.post(hurried.url + "/v1/completions", json={"model": MODEL, "prompt": "On", "max_tokens": 3})
    assert short.status_code == 200, "the next request has its own second"


@pytest.mark.parametrize("kind", STREAMED)
def test_a_stream_that_takes_too_long_ends_with_the_error_after_what_was_drawn(hurried, endless, kind):
    documents = frames(ask(hurried, kind, endless, stream=True))
    assert is_timeout(documents.pop()["error"])
    pieces = [choice.get("text") or choice.get("delta", {}).get("content") for one in documents for choice in one["choices"]]
    assert any(pieces), "what came until then is shown"
    assert_nothing_is_left(hurried)


def test_a_batch_may_take_any_time(hurried, endless):
    body = {"model": MODEL, "prompt": "On Friday", "max_tokens": 900, "logit_bias": endless}
    lines = [{"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": body} for n in range(6)]
    with sdk(hurried) as client:
        file = client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch").id
        batch = client.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h").id

        def ended():
            now = client.batches.retrieve(batch)
            return now.status not in ("validating", "in_progress", "finalizing") and now

        done = wait_for(ended, "the end of the batch")
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 6, 0), done
        for line in client.files.content(done.output_file_id).text.splitlines():
            assert json.loads(line)["response"]["body"]["usage"]["completion_tokens"] == 900
    assert_nothing_is_left(hurried)


def test_openais_client_raises_the_timeout_and_does_not_try_again(hurried, endless):
    asked = {"model": MODEL, "prompt": "On Friday", "logit_bias": endless, **ANSWERS}
    before = requests_total(hurried)
    with sdk(hurried).with_options(max_retries=3) as client:
        with pytest.raises(openai.InternalServerError) as fault:
            client.completions.create(**asked)
        assert (fault.value.status_code, fault.value.code) == (504, "request_timeout")
        with pytest.raises(openai.APIError) as fault:
            list(client.completions.create(stream=True, **asked))
        assert fault.value.code == "request_timeout"
    assert requests_total(hurried) - before == 2
    assert_nothing_is_left(hurried)


def requests_total(server):
    text = httpx.get(server.url + "/metrics").text
    counts = re.findall(r'^attune_http_requests_total\{.*/completions.*\} (.*)$', text, re.MULTILINE)
    assert counts
    return sum(map(float, counts))


# Embeddings have a queue of their own, whose turn comes after the answer that runs.
@pytest.mark.parametrize("kind", ["completion", "best_of", "many prompts", "chat"])
def test_a_request_that_waits_too_long_is_refused_with_429(crowded, endless, kind):
    server, stream = crowded
    answer = ask(server, kind, endless)
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert "waited too long" in error["message"]
    assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) >= 1
    assert "x-should-retry" not in answer.headers
    # Who has begun goes on, also its choices that have waited for as long.
    assert len([next(stream) for _ in range(20)]) == 20


@pytest.mark.parametrize("kind", STREAMED)
def test_a_stream_that_never_begins_says_so(crowded, endless, kind):
    server, stream = crowded
    documents = frames(ask(server, kind, endless, stream=True))
    error = documents.pop()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "waited too long" in error["message"]
    texts = [choice.get("text") or choice.get("delta", {}).get("content") for one in documents for choice in one["choices"]]
    assert not any(texts), "nothing was drawn for it"
    assert next(stream)


def test_openais_client_raises_the_wait(crowded):
    server, _ = crowded
    with sdk(server) as client:
        with pytest.raises(openai.RateLimitError) as fault:
            client.completions.create(model=MODEL, prompt="On", max_tokens=1)
        assert fault.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.APIError) as fault:
            list(client.completions.create(model=MODEL, prompt="On", max_tokens=1, stream=True))
        assert fault.value.code == "rate_limit_exceeded"


def test_what_waited_in_vain_costs_nothing(crowded):
    server, _ = crowded

    def used():
        (one,) = httpx.get(server.url + "/v1/usage", params={"group_by": ""}).json()["data"] or [{}]
        return one.get("prompt_tokens", 0)

    before = used()
    refused = httpx.post(server.url + "/v1/completions", json={"model": MODEL, "prompt": "On " * 300, "max_tokens": 1}, timeout=60)
    assert refused.status_code == 429
    assert used() - before < 300
