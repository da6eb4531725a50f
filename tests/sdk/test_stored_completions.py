"""Chats that are stored: kept with their messages, found by model and notes, and turned into training files."""

import json
import time

import httpx
import openai
import pytest
from conftest import QUICK, create_job, sdk, wait_for, wait_for_end
from test_outages import Database, bring_back, is_ready, sql, take_away

pytestmark = pytest.mark.timeout(240)
QUESTION = [{"role": "user", "content": "Hello"}]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

# Makes one call and nothing else.
CALL = {"tools": [CLOCK], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}


def chat(client, messages=QUESTION, **settings):
    settings = {"model": "demo", "max_tokens": 6, "temperature": 0, "store": True, **settings}
    return client.chat.completions.create(messages=messages, **settings)


def streamed(client, **settings):
    """The id of a streamed answer, its text and its calls."""
    chunks = [chunk for chunk in chat(client, stream=True, **settings) if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    calls = {}
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                calls[call.index] = [call.id, call.function.name, ""]
            calls[call.index][2] += call.function.arguments
    return chunks[0].id, text, [tuple(calls[index]) for index in sorted(calls)]


def ids(page):
    return [completion.id for completion in page]


def test_a_stored_answer_is_read_with_what_was_asked(client):
    made = chat(client, metadata={"team": "a"}, seed=5, top_p=0.5, user="u1", n=2)
    stored = client.chat.completions.retrieve(made.id)
    assert stored.choices == made.choices and stored.usage == made.usage
    assert (stored.id, stored.created, stored.model, stored.object) == (made.id, made.created, "demo", "chat.completion")
    assert (stored.metadata, stored.seed, stored.top_p, stored.temperature) == ({"team": "a"}, 5, 0.5, 0)
    assert (stored.input_user, stored.presence_penalty, stored.tools, stored.response_format) == ("u1", None, None, None)
    assert stored.request_id == made._request_id and stored.request_id.startswith("req_")


def test_only_what_asks_for_it_is_stored(client):
    for store in (False, None, openai.NOT_GIVEN):
        made = chat(client, store=store, metadata={"team": "a"})
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(made.id)


def test_a_streamed_answer_is_stored_as_it_was_sent(client):
    id, text, _ = streamed(client, logprobs=True, top_logprobs=1, max_tokens=12)
    (choice,) = client.chat.completions.retrieve(id).choices
    assert text and choice.message.content == text and choice.message.role == "assistant"
    assert "".join(bytes(token.bytes or b"").decode() for token in choice.logprobs.content) == text
    whole = chat(client, max_tokens=12)
    assert whole.choices[0].message == choice.message and whole.choices[0].finish_reason == choice.finish_reason


def test_streamed_calls_are_stored_with_the_ids_that_were_sent(client):
    id, _, calls = streamed(client, **CALL)
    stored = client.chat.completions.retrieve(id)
    message = stored.choices[0].message
    assert calls and [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls] == calls
    assert (message.content, stored.choices[0].finish_reason, stored.tool_choice) == (None, "tool_calls", "required")
    assert [tool.to_dict() if hasattr(tool, "to_dict") else tool for tool in stored.tools] == [CLOCK]


def test_answers_are_listed_by_model_and_notes_in_pages(client):
    run = f"run-{time.time_ns()}"
    made = [chat(client, metadata={"run": run, "number": str(number)}).id for number in range(5)]
    page = client.chat.completions.list(metadata={"run": run}, limit=2)
    assert (ids(page.data), page.has_more) == (made[:2], True)
    assert (page.first_id, page.last_id, page.object) == (made[0], made[1], "list")
    assert ids(page) == made, "the client reads page after page"
    assert ids(client.chat.completions.list(metadata={"run": run}, order="desc", limit=3).data) == made[:1:-1]
    assert ids(client.chat.completions.list(metadata={"run": run, "number": "3"})) == [made[3]]
    assert ids(client.chat.completions.list(metadata={"run": run}, model="demo")) == made
    assert ids(client.chat.completions.list(metadata={"run": run}, model="other")) == []
    assert ids(client.chat.completions.list(metadata={"run": run}, after="chatcmpl-none")) == []
    assert len(client.chat.completions.list(limit=3).data) == 3
    for path in ["/chat/completions", "/fine_tuning/jobs"]:
        for query in [{"metadata": "x"}, {"metadata[run": "x"}]:
            with pytest.raises(openai.BadRequestError) as refused:
                client.get(path, cast_to=object, options={"params": query})
            assert refused.value.param == "metadata", "such a filter would choose all"


def test_notes_are_replaced_and_an_answer_is_deleted(client, http):
    made = chat(client, metadata={"a": "1", "b": "2"})
    changed = client.chat.completions.update(made.id, metadata={"b": "3"})
    assert changed.metadata == {"b": "3"} and changed.choices == made.choices
    assert client.chat.completions.retrieve(made.id).metadata == {"b": "3"}
    assert http.delete(f"/v1/chat/completions/{made.id}").json() == {
        "object": "chat.completion.deleted", "id": made.id, "deleted": True,
    }
    for call in (
        client.chat.completions.retrieve, client.chat.completions.delete, client.chat.completions.messages.list,
        lambda id: client.chat.completions.update(id, metadata={}),
    ):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert made.id not in ids(client.chat.completions.list(order="desc", limit=20))


def test_the_messages_of_a_request_come_with_ids(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "The time?"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    made = chat(client, messages, tools=[CLOCK], tool_choice="none")
    found = client.chat.completions.messages.list(made.id)
    listed = [message.to_dict() for message in found.data]
    assert [message["id"] for message in listed] == [f"{made.id}-{number}" for number in range(4)]
    assert [message["role"] for message in listed] == ["system", "user", "assistant", "tool"]
    assert (listed[0]["content"], listed[0]["content_parts"]) == ("Be brief.", None)
    assert (listed[1]["content"], listed[1]["content_parts"]) == (None, [{"type": "text", "text": "The time?"}])
    assert listed[1]["name"] == "Ann" and listed[2]["tool_calls"] == [call] and listed[3]["tool_call_id"] == "call_1"
    page = client.chat.completions.messages.list(made.id, limit=3)
    assert page.has_more and [message.id for message in page] == [message["id"] for message in listed]
    newest = client.chat.completions.messages.list(made.id, order="desc", limit=1)
    assert [message.id for message in newest.data] == [f"{made.id}-3"]


@pytest.mark.parametrize(
    "metadata",
    [{"a": 1}, {"a": "x" * 513}, {"n" * 65: "x"}, {str(number): "x" for number in range(17)}, ["a"], {"a": "\0"}],
)
def test_notes_that_cannot_be_kept_refuse_the_chat(client, metadata):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body={"metadata": metadata})
    assert refused.value.param == "metadata"
    assert chat(client, store=False, extra_body={"metadata": metadata}).choices, "notes that nobody keeps are ignored"


def test_another_organisation_finds_nothing(tenants):
    acme, rival = tenants.client("acme"), tenants.client("rival")
    made = chat(acme, metadata={"note": "secret"})
    assert acme.chat.completions.retrieve(made.id).id == made.id
    assert ids(rival.chat.completions.list()) == [] and ids(rival.chat.completions.list(after=made.id)) == []
    for call in (
        rival.chat.completions.retrieve, rival.chat.completions.delete, rival.chat.completions.messages.list,
        lambda id: rival.chat.completions.update(id, metadata={}),
    ):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    answer = tenants.http("rival").post("/v1/files/from_stored_completions", json={})
    assert answer.status_code == 400 and "No stored completion matches" in answer.text


def test_an_answer_comes_although_the_database_is_away_and_is_stored_later(start_server):
    database = Database(start_server)
    server = start_server("--no-worker", settings={"ATTUNE_DATABASE_URL": database.url})
    try:
        with sdk(server) as client:
            before = chat(client)
            take_away(database, server)
            during = [chat(client, metadata={"when": "during"}), chat(client, metadata={"when": "during"})]
            with pytest.raises(openai.InternalServerError) as away:
                client.chat.completions.retrieve(before.id)
            assert away.value.status_code == 503
            bring_back(database, server)
            assert is_ready(server)
            assert ids(client.chat.completions.list(metadata={"when": "during"})) == [made.id for made in during]
            metrics = httpx.get(server.url + "/metrics").text
            assert 'attune_stored_completions_total{outcome="written"} 3' in metrics and '"lost"' not in metrics
    finally:
        database.thaw()
        server.stop()


def test_an_answer_just_before_the_end_of_the_server_is_stored(start_server):
    server = start_server("--no-worker")
    with sdk(server) as client:
        made = chat(client)
    server.stop()
    server.start()
    with sdk(server) as client:
        assert client.chat.completions.retrieve(made.id).id == made.id
        # What is old goes.
        sql(server.data_dir, "update stored_completions set created_at = now() - interval '31 days'")
    server.stop()
    server.start()
    with sdk(server) as client:
        wait_for(lambda: not client.chat.completions.list().data, "the removal of what is old")


def test_stored_answers_become_a_training_file_that_trains(client, http, questions):
    run = f"run-{time.time_ns()}"
    for question in questions[:14]:
        chat(client, question["messages"], max_tokens=60, metadata={"run": run})
    chat(client, max_tokens=1, metadata={"run": run})
    answer = http.post("/v1/files/from_stored_completions", json={"metadata": {"run": run}, "filename": "mine.jsonl"})
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["object"], file["purpose"], file["filename"]) == ("file", "fine-tune", "mine.jsonl")
    assert file["completions"] == 15 and file["lines"] + file["skipped"] == 15 and file["skipped"] >= 1
    lines = [json.loads(line) for line in client.files.content(file["id"]).text.splitlines()]
    assert len(lines) == file["lines"] >= 10
    stored = {
        completion.choices[0].message.content for completion in client.chat.completions.list(metadata={"run": run}, limit=100)
    }
    for line in lines:
        question, said = line["messages"]
        assert question["role"] == "user" and set(said) == {"role", "content"} and said["content"] in stored
    job = wait_for_end(client, create_job(client, file["id"], {**QUICK, "n_epochs": 1}).id)
    assert job.status == "succeeded", job.error


def test_a_training_file_is_made_of_what_the_filters_leave(client, http):
    run = f"run-{time.time_ns()}"
    made = [chat(client, max_tokens=60, metadata={"run": run, "number": str(n)}) for n in range(3)]
    called = chat(client, metadata={"run": run}, **CALL)

    def make(**filters):
        return http.post("/v1/files/from_stored_completions", json={"metadata": {"run": run}, **filters})

    def lines(**filters):
        file = make(**filters).json()
        return [json.loads(line) for line in client.files.content(file["id"]).text.splitlines()]

    assert made[0].choices[0].finish_reason == "stop"
    assert len(lines()) == 4 and len(lines(model="demo", created_before=called.created)) == 4
    assert len(lines(metadata={"run": run, "number": "1"})) == 1
    (newest,) = lines(limit=1)
    assert newest["tools"] == [CLOCK]
    assert newest["messages"][-1]["tool_calls"][0]["function"]["name"] == "clock"
    for filters in ({"model": "other"}, {"created_after": called.created + 1000}, {"created_before": 1}):
        assert make(**filters).status_code == 400
    for wrong, param in (({"limit": 0}, "limit"), ({"modle": "demo"}, "modle"), ({"created_after": 10**18}, "created_after"), ({"metadata": {"a": 1}}, "metadata")):
        answer = make(**wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_without_stored_answers_the_lists_are_empty_and_not_an_unknown_method(start_server):
    server = start_server("--no-worker")
    answer = httpx.get(server.url + "/v1/chat/completions")
    assert answer.status_code == 200
    assert answer.json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
