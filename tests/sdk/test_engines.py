"""Engines: the first form of the API, with the model in the path."""

import json
from urllib.parse import quote

import httpx
import pytest

NAME = "old/My model:v1"


@pytest.fixture(scope="module")
def server(start_server):
    server = start_server(settings={"ATTUNE_ALIASES": f'{{"{NAME}"="demo"}}'})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def test_engines_are_the_models_under_another_name(http):
    engines = http.get("/v1/engines").json()
    assert engines["object"] == "list"
    models = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert [engine["id"] for engine in engines["data"]] == models
    demo = http.get("/v1/engines/demo").json()
    assert demo == {"id": "demo", "object": "engine", "owner": "attune", "ready": True}


@pytest.mark.parametrize("name", [NAME, quote(NAME, safe=""), quote(NAME)])
def test_a_name_may_be_written_raw_or_encoded(http, name):
    assert http.get(f"/v1/engines/{name}").json()["id"] == NAME
    answer = http.post(f"/v1/engines/{name}/completions", json={"prompt": "On Friday", "max_tokens": 2}).json()
    assert answer["model"] == NAME
    assert answer["choices"][0]["text"]


def test_an_engine_answers_as_the_model_does(http):
    body = {"prompt": "On Friday", "temperature": 0, "max_tokens": 6}
    by_engine = http.post("/v1/engines/demo/completions", json=body).json()
    by_model = http.post("/v1/completions", json={**body, "model": "demo"}).json()
    assert by_engine["choices"] == by_model["choices"]
    assert http.post("/engines/demo/completions", json={**body, "model": "nobody"}).json()["model"] == "demo"

    by_engine = http.post("/v1/engines/demo/embeddings", json={"input": "Hello!"}).json()
    assert by_engine["model"] == "demo"
    assert by_engine["data"] == http.post("/v1/embeddings", json={"model": "demo", "input": "Hello!"}).json()["data"]

    body = {"text_1": "Hello!", "text_2": ["Hello!", "On Friday"]}
    by_engine = http.post("/v1/engines/demo/score", json=body).json()
    assert by_engine["data"] == http.post("/v1/score", json={**body, "model": "demo"}).json()["data"]
    body = {"query": "Hello!", "documents": ["Hello!", "On Friday"]}
    by_engine = http.post("/v1/engines/demo/rerank", json=body).json()
    assert by_engine["results"] == http.post("/v1/rerank", json={**body, "model": "demo"}).json()["results"]
    assert "no classification head" in http.post("/v1/engines/demo/classify", json={"input": "a"}).text

    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
    assert http.post("/v1/engines/demo/chat/completions", json=body).json()["object"] == "chat.completion"


def test_an_engine_streams(http):
    body = {"prompt": "On Friday", "max_tokens": 4, "stream": True}
    answer = http.post("/v1/engines/demo/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["model"] == "demo"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/engines/nobody/completions", b'{"prompt": "a"}', 404, None),
        ("/v1/engines/demo/search", b"{}", 404, None),
        ("/v1/engines/demo/completions", b'{"prompt": 3}', 400, "prompt"),
        ("/v1/engines/demo/completions", b"not json", 400, None),
        ("/v1/engines/demo/embeddings", b"[]", 400, "body"),
        ("/v1/engines/demo/embeddings", b"{}", 400, "input"),
    ],
)
def test_a_wrong_request_to_an_engine_is_told_as_without_it(http, path, body, status, param):
    answer = http.post(path, content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_an_unknown_engine_is_not_found(http):
    answer = http.get("/v1/engines/nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
