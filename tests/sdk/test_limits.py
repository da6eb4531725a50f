"""Limits of a key: what the headers say, and what is refused."""

import re

import httpx
import openai
import pytest
from conftest import create_key, sdk, wait_for

DURATION = re.compile(r"(\d+h)?(\d+m)?\d+(\.\d+)?s|\d+ms")
HEADERS = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]


@pytest.fixture(scope="module")
def server(start_server):
    return start_server(settings={"ATTUNE_LIMITS__CONCURRENT_REQUESTS": "2"})


@pytest.fixture
def key(binary, server):
    """A function that makes keys with limits."""
    return lambda *options: create_key(binary, server.data_dir, "acme", *options)[0]


def completion(server, key, **fields):
    body = {"model": "demo", "prompt": "The ship", "max_tokens": 4, "temperature": 0, **fields}
    return httpx.post(server.url + "/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def test_every_answer_says_what_is_left(server, key):
    key = key("--rpm", 50, "--tpm", 1000)
    answer = completion(server, key)
    assert answer.status_code == 200, answer.text
    headers, used = answer.headers, answer.json()["usage"]["total_tokens"]
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-limit-tokens"]) == ("50", "1000")
    assert int(headers["x-ratelimit-remaining-requests"]) == 49
    # Tokens flow back in while the answer is made.
    assert 1000 - used <= int(headers["x-ratelimit-remaining-tokens"]) <= 1000
    for of in ("requests", "tokens"):
        assert DURATION.fullmatch(headers[f"x-ratelimit-reset-{of}"])
    assert headers["openai-organization"] == "acme"
    for path in ("/v1/models", "/v1/files/none", "/v1/models/none"):
        answer = httpx.get(server.url + path, headers={"Authorization": f"Bearer {key}"})
        assert set(HEADERS) <= set(answer.headers), path


def test_a_stream_says_so_at_its_start(server, key):
    key = key("--tpm", 1000)
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "demo", "prompt": "The ship", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=headers) as answer:
        assert set(HEADERS) <= set(answer.headers)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000
        answer.read()


def test_browsers_may_read_the_headers(server, key):
    headers = {"Authorization": f"Bearer {key()}", "Origin": "https://app.example.com"}
    answer = httpx.get(server.url + "/v1/models", headers=headers)
    exposed = answer.headers["access-control-expose-headers"].lower()
    for name in [*HEADERS, "retry-after", "retry-after-ms", "openai-organization", "x-request-id"]:
        assert name in exposed
    assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example.com")


def test_more_requests_than_the_limit_are_refused(server, key):
    key = key("--rpm", 3)
    client = sdk(server, key)
    for _ in range(3):
        client.models.list()
    with pytest.raises(openai.RateLimitError) as fault:
        client.models.list()
    assert (fault.value.type, fault.value.code, fault.value.param) == ("requests", "rate_limit_exceeded", None)
    assert "in organization acme on requests per min (RPM): Limit 3, Used 3, Requested 1." in fault.value.message
    assert "Please try again in " in fault.value.message
    headers = fault.value.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(headers["retry-after"]) <= 20
    assert 0 < int(headers["retry-after-ms"]) <= 20_000
    assert headers["x-request-id"]


def test_the_clients_own_retries_wait_until_they_are_let_in(server, key):
    key = key("--rpm", 120)
    statuses = []
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) as http:
        while 429 not in statuses:
            statuses.append(http.get("/v1/models").status_code)
            assert len(statuses) < 2000, "never refused"
    assert sdk(server, key).with_options(max_retries=5).models.list().data


def test_more_tokens_than_the_limit_are_refused(server, key, endless):
    key = key("--tpm", 30)
    answer = completion(server, key, prompt="The ship sails in the morning", max_tokens=60, logit_bias=endless)
    assert answer.status_code == 200, "an answer may run into debt, for nobody knows its length before"
    assert answer.json()["usage"]["total_tokens"] > 30
    with pytest.raises(openai.RateLimitError) as fault:
        sdk(server, key).completions.create(model="demo", prompt="The ship", max_tokens=1)
    assert (fault.value.type, fault.value.code) == ("tokens", "rate_limit_exceeded")
    assert "on tokens per min (TPM): Limit 30, Used " in fault.value.message
    assert "retry-after" in fault.value.response.headers
    assert sdk(server, key).models.list().data, "requests are still let in"


def test_a_prompt_larger_than_the_limit_is_refused_for_good(server, key):
    key = key("--tpm", 5)
    answer = completion(server, key, prompt="one two three four five six seven eight nine ten")
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "tokens"
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    vectors = httpx.post(
        server.url + "/v1/embeddings",
        json={"model": "demo", "input": "one two three four five six seven eight nine ten"},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert vectors.status_code == 429


def test_a_refused_request_costs_no_tokens(server, key):
    key = key("--tpm", 100_000)
    before = completion(server, key, max_tokens=0)
    assert before.status_code == 200
    refused = completion(server, key, max_tokens=10_000_000)
    assert refused.status_code == 400
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) >= int(before.headers["x-ratelimit-remaining-tokens"])


def test_only_so_many_requests_run_at_a_time(server, key, endless):
    key = key()
    headers = {"Authorization": f"Bearer {key}"}
    # Long enough to be running still when the others come.
    body = {"model": "demo", "prompt": "The", "max_tokens": 900, "n": 8, "stream": True, "logit_bias": endless}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
        with http.stream("POST", "/v1/completions", json=body) as first:
            with http.stream("POST", "/v1/completions", json=body) as second:
                assert (first.status_code, second.status_code) == (200, 200)
                third = http.get("/v1/models")
                assert third.status_code == 429
                assert "concurrent requests: Limit 2, Used 2" in third.json()["error"]["message"]
            wait_for(lambda: http.get("/v1/models").status_code == 200, "the room of the stream that was given up")
        wait_for(lambda: http.get("/v1/models").status_code == 200, "the room of both")


def test_an_open_server_has_the_limits_of_its_configuration(start_server):
    server = start_server(
        settings={"ATTUNE_LIMITS__REQUESTS_PER_MINUTE": "2", "ATTUNE_LIMITS__TOKENS_PER_MINUTE": "77"}
    )
    answer = httpx.get(server.url + "/v1/models")
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-limit-tokens"] == "77"
    assert httpx.get(server.url + "/v1/models").status_code == 200
    assert httpx.get(server.url + "/v1/models").status_code == 429
    assert httpx.get(server.url + "/health").status_code == 200, "probes have no limit"
    server.stop()
