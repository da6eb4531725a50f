"""What lies under every call: uploads in chunks, empty bodies, odd paths and queries, browsers, raw server-sent events,
and clients that hang up."""

import json
import re
import socket
import urllib.parse

import httpx
import openai
import pytest
from conftest import QUICK, create_job, jsonl, sdk, upload, wait_for, wait_for_end

HELLO = [{"role": "user", "content": "Hello"}]


def chunked(parts, size=700):
    """A multipart body in small pieces, which httpx sends with `Transfer-Encoding: chunked`."""
    body = b""
    for name, value in parts:
        head = f'Content-Disposition: form-data; name="{name}"'
        if name == "file":
            head += '; filename="train.jsonl"\r\nContent-Type: application/octet-stream'
        body += b"--edge\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"
    body += b"--edge--\r\n"
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("order", ["purpose file", "file purpose", "extra file model purpose"])
def test_an_upload_may_come_in_chunks_and_in_any_order(client, http, tickets, order):
    content = jsonl(tickets[:12])
    values = {"file": content, "purpose": b"fine-tune", "extra": b"x", "model": b"ada"}
    answer = http.post(
        "/v1/files",
        content=chunked([(name, values[name]) for name in order.split()]),
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["filename"], file["purpose"], file["bytes"]) == ("train.jsonl", "fine-tune", len(content))
    assert client.files.content(file["id"]).content == content
    client.files.delete(file["id"])


def test_a_form_that_breaks_off_is_refused(http, tickets):
    body = b"".join(chunked([("purpose", b"fine-tune"), ("file", jsonl(tickets[:12]))]))
    answer = http.post(
        "/v1/files", content=body[: len(body) // 2], headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def waiting(client, tickets):
    """A job that ends only when it is cancelled."""
    job = create_job(client, upload(client, tickets[:60]), {**QUICK, "n_epochs": 50}, metadata={"team": "a b&c=ü"})
    yield job.id
    client.fine_tuning.jobs.cancel(job.id)
    wait_for_end(client, job.id)


@pytest.mark.parametrize("body", [b"", b"{}", b"null"])
def test_a_post_without_content_may_say_that_it_is_json(http, waiting, body):
    for action in ("pause", "resume"):
        answer = http.post(
            f"/v1/fine_tuning/jobs/{waiting}/{action}", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == waiting


def test_get_and_delete_may_say_that_they_are_json(http):
    headers = {"Content-Type": "application/json"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    assert http.delete("/v1/files/file-nobody", headers=headers).status_code == 404


def test_metadata_is_found_however_the_query_is_written(http, client, waiting):
    for query in (
        "metadata%5Bteam%5D=a+b%26c%3D%C3%BC",
        "metadata[team]=a%20b%26c%3D%C3%BC",
    ):
        assert waiting in [job["id"] for job in http.get(f"/v1/fine_tuning/jobs?{query}").json()["data"]], query
    assert http.get("/v1/fine_tuning/jobs?metadata%5Bteam%5D=a").json()["data"] == []
    assert waiting not in [job["id"] for job in http.get("/v1/fine_tuning/jobs?metadata=null").json()["data"]]
    assert waiting in [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a b&c=ü"})]


@pytest.mark.parametrize("name", ["meta-llama/Llama-3 8B", "ft:demo:org::x", "a/b/c", "naïve", "100%", "a?b#c"])
def test_a_models_name_may_be_encoded_in_every_way(http, name):
    """Nobody has these models; the message shows what was understood."""
    spellings = {urllib.parse.quote(name, safe=""), urllib.parse.quote(name, safe="/:")}
    for path in spellings:
        for method in ("GET", "DELETE"):
            answer = http.request(method, f"/v1/models/{path}")
            assert answer.status_code == 404
            error = answer.json()["error"]
            assert error["code"] == "model_not_found", path
            assert f"`{name}`" in error["message"]


def test_a_fine_tuned_name_is_found_in_either_spelling(http, client):
    for path in ("/v1/models/demo", "/models/demo", "/v1/models/%64emo"):
        assert http.get(path).json()["id"] == "demo"


@pytest.mark.parametrize("bad", ["%ff%fe", "%00", "%zz"])
def test_a_path_that_is_no_text_is_a_clients_fault(server, bad):
    """Sent raw, because clients mend such paths."""
    status, body = raw(server, f"GET /v1/models/{bad} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert 400 <= status < 500
    assert json.loads(body)["error"]["message"]


def raw(server, request):
    """The status and the body of one answer, read from the socket until the server closes it."""
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, body = answer.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), body


def test_a_browser_may_ask_first(http):
    answer = http.options(
        "/v1/chat/completions",
        headers={
            "Origin": "http://localhost:3000",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", "http://localhost:3000")
    assert "POST" in answer.headers["access-control-allow-methods"]
    for name in ("authorization", "content-type", "x-stainless-os"):
        assert name in answer.headers["access-control-allow-headers"].lower()
    answer = http.get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/html", "application/binary", "text/event-stream"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_says_to_accept_changes_nothing(http, accept, stream):
    body = {"model": "demo", "prompt": "On", "max_tokens": 2, "stream": stream}
    answer = http.post("/v1/completions", json=body, headers={"Accept": accept})
    assert answer.status_code == 200
    wanted = "text/event-stream" if stream else "application/json"
    assert answer.headers["content-type"].startswith(wanted)


CALLS = {
    "completion": ("/v1/completions", {"prompt": "On Friday"}, "text_completion"),
    "chat": ("/v1/chat/completions", {"messages": HELLO}, "chat.completion.chunk"),
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("with_usage", [False, True])
def test_the_frames_of_a_stream_are_as_every_client_reads_them(http, kind, with_usage):
    path, body, kind_of_object = CALLS[kind]
    body = {**body, "model": "demo", "max_tokens": 12, "temperature": 0, "stream": True}
    if with_usage:
        body["stream_options"] = {"include_usage": True}
    answer = http.post(path, json=body)
    assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
    assert "no-cache" in answer.headers["cache-control"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert "content-encoding" not in answer.headers

    text = answer.content.decode()
    assert text.endswith("data: [DONE]\n\n")
    frames = text.removesuffix("\n\n").split("\n\n")
    frames = [frame for frame in frames if not frame.startswith(":")]
    # One line each: no `event:`, no `id:`, no JSON over several lines.
    assert all(re.fullmatch(r"data: [^\n]+", frame) for frame in frames)
    assert frames.pop() == "data: [DONE]"
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]

    assert {chunk["object"] for chunk in chunks} == {kind_of_object}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all("error" not in chunk for chunk in chunks)
    if with_usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert all({"index", "finish_reason", "logprobs"} <= set(choice) for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) <= {None}
    if kind == "chat":
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[-1]["delta"] == {}


def test_a_fault_before_the_first_token_is_no_stream(http):
    answer = http.post("/v1/completions", json={"model": "nobody", "prompt": "x", "stream": True})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["error"]["code"] == "model_not_found"


def test_the_stream_of_a_fine_tunes_events_has_the_same_frames(http, client, tickets):
    body = {"model": "demo", "training_file": upload(client, tickets[:12]), "n_epochs": 50}
    job = http.post("/v1/fine_tunes", json=body).json()
    http.post(f"/v1/fine_tunes/{job['id']}/cancel")
    text = http.get(f"/v1/fine_tunes/{job['id']}/events?stream=true").content.decode()
    frames = [frame for frame in text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    assert frames.pop() == "data: [DONE]"
    assert all(re.fullmatch(r"data: \{[^\n]+", frame) for frame in frames)
    assert all("error" not in json.loads(frame.removeprefix("data: ")) for frame in frames)


def gauge(http, name):
    """The sum of a metric over its labels."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


def sequences(http):
    """The sequences that run, and all that the engine has: the second engine may run one after the other."""
    running = gauge(http, "attune_running_sequences")
    return running, running + gauge(http, "attune_queue_waiting")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(http, server, endless, stream):
    wait_for(lambda: sequences(http) == (0, 0), "an idle server")
    body = {"model": "demo", "prompt": "On", "max_tokens": 1000, "n": 8, "logit_bias": endless, "stream": stream}
    before = gauge(http, "attune_tokens_total")
    content = json.dumps(body).encode()
    address = urllib.parse.urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    wait_for(lambda: (now := sequences(http))[0] > 0 and now[1] == 8, "the sequences to run", every=0.005)
    connection.close()
    wait_for(lambda: sequences(http) == (0, 0), "the places to be free", within=20)
    wait_for(lambda: gauge(http, "attune_kv_blocks_used") == 0, "the blocks to be free", within=20)
    assert gauge(http, "attune_tokens_total") - before < 8 * 1000, "the answers were computed to their ends"


@pytest.mark.parametrize("field", ["user", "service_tier", "prompt_cache_key", "verbosity", "safety_identifier", "made_up"])
def test_a_field_that_nobody_knows_is_ignored(http, field):
    body = {"model": "demo", "messages": HELLO, "max_tokens": 2, field: "x"}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_null_is_as_if_absent(http):
    optional = (
        "n", "stream", "stop", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "logit_bias",
        "presence_penalty", "frequency_penalty", "stream_options", "logprobs", "top_logprobs", "tools", "tool_choice",
        "response_format", "user", "metadata",
    )  # fmt: skip
    body = {"model": "demo", "messages": HELLO, **dict.fromkeys(optional)}
    # With no limit of its own the answer is as long as the model likes.
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_the_newest_client_gives_up_on_a_stream_cleanly(server):
    with sdk(server) as client:
        stream = client.completions.create(model="demo", prompt="On", max_tokens=500, stream=True)
        next(iter(stream))
        stream.close()
        assert client.completions.create(model="demo", prompt="On", max_tokens=1).choices
    with sdk(server) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model="demo", prompt="On", max_tokens=900, n=8, timeout=httpx.Timeout(0.001))
