"""Requests as real clients write them: spellings of queries, names of files, hosts, numbers, and fields of other servers."""

import json
import subprocess
import urllib.parse

import pytest
from conftest import as_prompts, jsonl, upload, wait_for

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "demo", "messages": HELLO, "max_tokens": 2}
COMPLETION = {"model": "demo", "prompt": "On Friday", "max_tokens": 2}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}


def refusal(answer, param, code="unsupported_parameter"):
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    return error["message"]


# --- Queries ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(client, http, tickets):
    """The id of a fine-tune that has ended."""
    file = upload(client, as_prompts(tickets[:12]))
    job = http.post("/v1/fine_tunes", json={"model": "demo", "training_file": file, "suffix": "", "n_epochs": 1.0})
    assert job.status_code == 200, job.text
    job = job.json()["id"]
    http.post(f"/v1/fine_tunes/{job}/cancel")
    ends = ("succeeded", "failed", "cancelled")
    wait_for(lambda: http.get(f"/v1/fine_tunes/{job}").json()["status"] in ends, "the end of the fine-tune")
    return job


@pytest.mark.parametrize(
    ("spelling", "streams"),
    [("true", True), ("True", True), ("TRUE", True), ("1", True), ("False", False), ("0", False), ("", False)],
)
def test_a_boolean_of_the_query_may_be_written_as_any_client_does(http, ended, spelling, streams):
    answer = http.get(f"/v1/fine_tunes/{ended}/events?stream={spelling}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream" if streams else "application/json")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files?purpose=&limit=&order=&after=",
        "/v1/fine_tuning/jobs?limit=&after=&starting_after",
        "/v1/fine_tunes?limit=&after=",
        "/v1/usage?start_date=&end_date=&limit=&page=&organization=",
    ],
)
def test_an_empty_parameter_of_the_query_is_as_if_absent(http, ended, path):
    bare, empty = http.get(path.split("?")[0]), http.get(path)
    assert empty.status_code == 200, empty.text
    assert empty.json()["data"] == bare.json()["data"]


def test_a_wrong_parameter_of_the_query_is_named(http):
    for query, param in (("limit=many", "limit"), ("order=sideways", "order"), ("limit=1&limit=2", "limit")):
        answer = http.get(f"/v1/files?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param, answer.text


# --- Texts ------------------------------------------------------------------------------------------------------------


def test_every_text_says_that_it_is_utf_8(http, ended):
    answers = [http.post(path, json={**body, "stream": True}) for path, body in ROUTES.items()]
    answers += [http.get(f"/v1/fine_tunes/{ended}/events?stream=true"), http.get("/metrics"), http.get("/docs/")]
    for answer in answers:
        assert answer.status_code == 200
        assert "charset=utf-8" in answer.headers["content-type"], answer.url


# --- Names of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("name=file; filename*=utf-8''tr%C3%A4nen.jsonl", "tränen.jsonl"),
        ('name="file"; filename="x"; filename*=UTF-8\'\'tr%c3%a4nen.jsonl', "tränen.jsonl"),
        ('name="file"; filename="=?utf-8?B?dHLDpG5lbi5qc29ubA==?="', "tränen.jsonl"),
        ('name="file"; filename="=?UTF-8?Q?tr=C3=A4nen.jsonl?="', "tränen.jsonl"),
        ('filename="x; name=purpose"; name="file"', "x; name=purpose"),
        ('Name="file"; FileName="tränen.jsonl"', "tränen.jsonl"),
        ('name="file"; filename="say \\"ah\\".jsonl"', 'say "ah".jsonl'),
        ('name="file"; filename="folder\\"', "folder\\"),
        ('filename="folder\\"; name="file"', "folder\\"),
        ('name="file"', "upload"),
    ],
)
def test_the_name_of_a_file_is_read_in_every_form(client, http, tickets, disposition, name):
    content = jsonl(tickets[:12])
    purpose = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    head = f"--edge\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    answer = http.post(
        "/v1/files",
        content=purpose + head + content + b"\r\n--edge--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == name
    assert client.files.content(answer.json()["id"]).content == content


# --- Hosts ------------------------------------------------------------------------------------------------------------


def asked_under(server, host, *options):
    """Status and body of a request by curl under another host."""
    port = urllib.parse.urlsplit(server.url).port
    command = ["curl", "-s", "-w", "\n%{http_code}", *options, f"http://{host}:{port}/v1/models"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    body, _, status = said.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost.", "app.localhost", "192.168.1.5", "[::ffff:127.0.0.1]", "0.0.0.0"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_server_without_keys_answers_under_every_name_of_this_machine(server, host, version):
    to_here = ["--connect-to", f"::127.0.0.1:{urllib.parse.urlsplit(server.url).port}"]
    assert asked_under(server, host, *to_here, version)[0] == 200


@pytest.mark.parametrize("host", ["rebound.example.com", "localhost.example.com", "host.docker.internal"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_server_without_keys_refuses_foreign_names_and_says_what_helps(server, host, version):
    to_here = ["--connect-to", f"::127.0.0.1:{urllib.parse.urlsplit(server.url).port}"]
    status, body = asked_under(server, host, *to_here, version)
    assert status == 403
    message = json.loads(body)["error"]["message"]
    for part in (host, "127.0.0.1", "attune keys create"):
        assert part in message


def test_a_server_with_keys_answers_under_every_name(tenants):
    with tenants.http("acme") as http:
        assert http.get("/v1/models", headers={"Host": "rebound.example.com"}).status_code == 200


# --- Fields of other servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("guided_json", {"type": "object"}, None),
        ("guided_choice", ["a", "b"], None),
        ("guided_regex", "a+", None),
        ("guided_grammar", "root ::= 'a'", None),
        ("structured_outputs", {"choice": ["a"]}, None),
        ("min_tokens", 2, 0),
        ("length_penalty", 2, 1.0),
        ("use_beam_search", True, False),
        ("bad_words", ["a"], []),
        ("logits_processors", ["x"], None),
        ("prompt_logprobs", 1, None),
        ("skip_special_tokens", False, True),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_unless_it_is_neutral(http, path, field, value, neutral):
    refusal(http.post(path, json={**ROUTES[path], field: value}), field)
    for harmless in (None, neutral):
        assert http.post(path, json={**ROUTES[path], field: harmless}).status_code == 200


def test_fields_of_one_route_are_refused_in_another(http):
    for field, value in {"echo": True, "best_of": 2, "documents": [{"text": "x"}], "chat_template": "x"}.items():
        refusal(http.post("/v1/chat/completions", json={**CHAT, field: value}), field)
    for field, value in {"max_completion_tokens": 5, "response_format": {"type": "json_object"}}.items():
        refusal(http.post("/v1/completions", json={**COMPLETION, field: value}), field)
    refusal(http.post("/v1/tokenize", json={"model": "demo", "messages": HELLO, "documents": [{"text": "x"}]}), "documents")


def test_a_schema_beside_json_object_is_followed_and_elsewhere_refused(http):
    schema = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}
    body = {**CHAT, "max_tokens": 60}
    answer = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object", "schema": schema}})
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"a": 7}
    answer = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "text", "schema": schema}})
    refusal(answer, "response_format.schema")


# --- How an answer ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["<|im_start|>", ["<|im_start|>"], ["never said this", "<|im_start|>"]])
def test_an_answer_ends_at_a_special_token_whose_name_is_a_stop_text(http, vocabulary, stop):
    bias = {str(vocabulary["<|im_start|>"]): 100}
    for path, body in ROUTES.items():
        body = {**body, "max_tokens": 5, "temperature": 0, "logit_bias": bias}
        endless, ended = http.post(path, json=body).json(), http.post(path, json={**body, "stop": stop}).json()
        assert (endless["choices"][0]["finish_reason"], endless["usage"]["completion_tokens"]) == ("length", 5)
        assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)


def test_a_stop_text_with_a_special_token_in_it_is_refused_for_no_answer_shows_it(http):
    for path, body in ROUTES.items():
        message = refusal(http.post(path, json={**body, "stop": "<|im_start|>user"}), "stop", "invalid_value")
        assert "<|im_start|>" in message
        assert http.post(path, json={**body, "stop": "<|im_end|>\n"}).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_stop_tokens_end_an_answer_and_the_end_token_can_be_ignored(http, vocabulary, path):
    end = vocabulary["<|im_end|>"]
    body = {**ROUTES[path], "max_tokens": 4, "temperature": 0, "logit_bias": {str(end): 100}}

    def outcome(**fields):
        answer = http.post(path, json={**body, **fields}).json()
        return answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]

    assert outcome() == ("stop", 1)
    assert outcome(ignore_eos=True) == ("length", 4)
    assert outcome(ignore_eos=True, stop_token_ids=[end]) == ("stop", 1)
    assert outcome(ignore_eos=True, stop="<|im_end|>") == ("stop", 1)
    other = vocabulary["<|pad|>"]
    assert outcome(logit_bias={str(other): 100}, stop_token_ids=[float(other)]) == ("stop", 1)
    refusal(http.post(path, json={**body, "stop_token_ids": [10**6]}), "stop_token_ids", "invalid_value")


def test_an_answer_with_a_form_cannot_ignore_its_end(http):
    body = {**CHAT, "ignore_eos": True, "response_format": {"type": "json_object"}}
    refusal(http.post("/v1/chat/completions", json=body), "ignore_eos", "invalid_value")


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
def test_whole_numbers_may_have_a_point_and_empty_stop_texts_are_none(http, path):
    body = {**ROUTES[path], "max_tokens": 2.0, "n": 1.0, "seed": 3.0, "top_k": 40.0}
    for stop in ("", [""], [], None):
        answer = http.post(path, json={**body, "stop": stop})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("field", "value", "code", "words"),
    [
        ("max_tokens", -1, "invalid_value", "expected a whole number of at least 0, got -1"),
        ("max_tokens", 5.5, "invalid_type", "expected a whole number of at least 0, got 5.5"),
        ("max_tokens", "many", "invalid_type", 'expected a whole number of at least 0, got "many"'),
        ("temperature", {}, "invalid_type", "expected a number, got an object"),
        ("stream", "yes", "invalid_type", 'expected true or false, got "yes"'),
        ("model", None, "invalid_type", "expected a string, got null"),
        ("stream_options", 3, "invalid_type", "expected an object, got 3"),
    ],
)
def test_a_wrong_value_is_told_in_words_of_json(http, field, value, code, words):
    for path, body in ROUTES.items():
        assert words in refusal(http.post(path, json={**body, field: value}), field, code)


def test_a_field_that_is_given_twice_is_named(http):
    answer = http.post("/v1/chat/completions", content=b'{"model":"demo","model":"demo","messages":[]}')
    assert "more than once" in refusal(answer, "model", "invalid_value")


def test_an_answer_of_no_tokens_is_refused_in_chat(http):
    for field in ("max_completion_tokens", "max_tokens"):
        body = {"model": "demo", "messages": HELLO, field: 0}
        refusal(http.post("/v1/chat/completions", json=body), field, "invalid_value")


def test_who_asks_for_an_unknown_model_is_told_those_that_everyone_may_use(http):
    error = http.post("/v1/completions", json={**COMPLETION, "model": "gpt-5"}).json()["error"]
    assert error["code"] == "model_not_found"
    assert "`gpt-5`" in error["message"] and "`demo`" in error["message"]
