"""Conversations that the server keeps, and responses that go on from them; and conversations made short."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from conftest import ask_database, sdk, wait_for
from test_background_responses import ended, first_events, sdk_http
from test_responses import TOOLS, ask, refusal, stream, text_of

NAME = {"role": "user", "content": "My name is Ada."}


def create(http, **fields):
    answer = http.post("/v1/conversations", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def add(http, conversation, *items):
    answer = http.post(f"/v1/conversations/{conversation}/items", json={"items": list(items)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def items_of(http, conversation, **query):
    answer = http.get(f"/v1/conversations/{conversation}/items", params={"order": "asc", "limit": 100, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def texts(items):
    return [part["text"] for item in items for part in item["content"]]


def fault(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_conversation_is_made_changed_and_deleted(client):
    made = client.conversations.create(metadata={"team": "a"})
    assert made.id.startswith("conv_")
    assert (made.object, made.metadata) == ("conversation", {"team": "a"})
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"team": "b"})
    assert (changed.id, changed.created_at, changed.metadata) == (made.id, made.created_at, {"team": "b"})
    assert client.conversations.update(made.id, metadata=None).metadata == {"team": "b"}
    gone = client.conversations.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    for again in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.update(made.id, metadata={}),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.items.create(made.id, items=[NAME]),
        lambda: client.responses.create(model="demo", input="x", conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            again()
        assert error.value.code == "conversation_not_found"
        assert made.id in error.value.message


def test_items_are_kept_in_their_order(client):
    call = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    conversation = client.conversations.create(items=[NAME]).id
    added = client.conversations.items.create(
        conversation, items=[{"role": "assistant", "content": "Hello, Ada."}, call, output]
    )
    assert [item.type for item in added.data] == ["message", "function_call", "function_call_output"]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[2].id, False)
    all_items = list(client.conversations.items.list(conversation, order="asc", limit=2))
    assert [item.type for item in all_items] == ["message", "message", "function_call", "function_call_output"]
    assert (all_items[0].role, all_items[0].content[0].type) == ("user", "input_text")
    assert (all_items[1].role, all_items[1].content[0].type) == ("assistant", "output_text")
    assert len({item.id for item in all_items}) == 4
    newest_first = client.conversations.items.list(conversation, limit=3)
    assert [item.id for item in newest_first.data] == [item.id for item in all_items[:0:-1]]
    assert newest_first.has_more
    one = client.conversations.items.retrieve(all_items[1].id, conversation_id=conversation)
    assert one == all_items[1]
    left = client.conversations.items.delete(all_items[3].id, conversation_id=conversation)
    assert (left.id, left.object) == (conversation, "conversation")
    assert [item.id for item in client.conversations.items.list(conversation, order="asc")] == [
        item.id for item in all_items[:3]
    ]
    for again in (client.conversations.items.retrieve, client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError) as error:
            again(all_items[3].id, conversation_id=conversation)
        assert error.value.code == "item_not_found"


def test_an_item_is_there_once_and_can_be_read(http):
    conversation = create(http, items=[{**NAME, "id": "msg_1"}])["id"]
    path = f"/v1/conversations/{conversation}/items"
    for items, param in [
        ([NAME, {**NAME, "id": "msg_1"}], "items[1].id"),
        ([{**NAME, "id": "msg_2"}, {**NAME, "id": "msg_2"}], "items[1].id"),
        ([{"role": "king", "content": "x"}], "items[0].role"),
        ([{"type": "poem"}], "items[0].type"),
        ([{"type": "compaction", "encrypted_content": "gAAAAAB"}], "items[0].encrypted_content"),
    ]:
        assert fault(http.post(path, json={"items": items}))["param"] == param
    assert fault(http.post(path, json={}))["param"] == "items"
    assert fault(http.post("/v1/conversations", json={"metadata": {"a": 1}}))["param"] == "metadata"
    assert fault(http.post("/v1/conversations", json={"items": [NAME] * 10_001}))["param"] == "items"
    assert fault(http.post(path, json={"items": [{"id": "msg_nobody"}]}), 404)["code"] == "item_not_found"
    assert texts(items_of(http, conversation)) == ["My name is Ada."], "of what was refused nothing is there"


def test_of_those_who_add_the_same_item_at_the_same_time_one_has_done_so(http, server):
    conversation = create(http)["id"]

    def add(number):
        items = [{"role": "user", "content": str(number), "id": "msg_1"}]
        return httpx.post(f"{server.url}/v1/conversations/{conversation}/items", json={"items": items}, timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(add, range(8)))
    (kept,) = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert {fault(answer)["param"] for number, answer in enumerate(answers) if number != kept} == {"items[0].id"}
    assert texts(items_of(http, conversation)) == [str(kept)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_response_goes_on_from_a_conversation_and_adds_to_it(http, streamed):
    def respond(conversation, **settings):
        if streamed:
            return stream(http, conversation=conversation, **settings)[-1]["response"]
        return ask(http, conversation=conversation, **settings)

    conversation = create(http, items=[NAME, {"role": "assistant", "content": "Hello, Ada."}])["id"]
    first = respond(conversation, input="What is my name?")
    assert first["conversation"] == {"id": conversation}
    second = respond({"id": conversation}, input="Why?", instructions="Be brief.")
    spelled = [
        NAME,
        {"role": "assistant", "content": "Hello, Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert text_of(first) == text_of(ask(http, input=spelled))
    spelled += [{"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "Why?"}]
    assert text_of(second) == text_of(ask(http, input=spelled, instructions="Be brief."))
    items = items_of(http, conversation)
    assert texts(items) == [
        "My name is Ada.", "Hello, Ada.", "What is my name?", text_of(first), "Why?", text_of(second),
    ]  # fmt: skip
    # What the model wrote has one id everywhere.
    assert items[3] == first["output"][0] == http.get(f"/v1/responses/{first['id']}").json()["output"][0]
    kept = http.get(f"/v1/responses/{second['id']}").json()
    assert kept["conversation"] == {"id": conversation}
    asked = http.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
    assert [item["id"] for item in asked] == [items[4]["id"]]


def test_a_conversation_may_hold_the_question_already(http):
    conversation = create(http, items=[NAME, {"role": "user", "content": "Who am I?"}])["id"]
    counted = http.post("/v1/responses/input_tokens", json={"model": "demo", "conversation": conversation}).json()
    response = http.post("/v1/responses", json={"model": "demo", "conversation": conversation, "max_output_tokens": 20})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["input_tokens"] == counted["input_tokens"]
    assert len(items_of(http, conversation)) == 3


def test_tools_are_called_in_a_conversation(http):
    conversation = create(http)["id"]
    settings = {"conversation": conversation, "tools": TOOLS, "max_output_tokens": 300}
    first = ask(http, input="How late is it?", tool_choice={"type": "function", "name": "clock"}, **settings)
    (call,) = first["output"]
    assert refusal(http, conversation=conversation, input="Well?")["param"] == "input", "the call has no result yet"
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"}
    second = ask(http, input=[output], tool_choice="none", **settings)
    assert [item["type"] for item in items_of(http, conversation)] == [
        "message", "function_call", "function_call_output", "message",
    ]  # fmt: skip
    assert text_of(second)


def test_what_is_not_kept_adds_to_its_conversation_all_the_same(http):
    conversation = create(http)["id"]
    response = ask(http, conversation=conversation, store=False)
    assert http.get(f"/v1/responses/{response['id']}").status_code == 404
    assert texts(items_of(http, conversation)) == ["Hello!", text_of(response)]


def test_a_response_that_fails_or_is_left_adds_nothing(http, endless):
    conversation = create(http, items=[NAME])["id"]
    assert refusal(http, conversation=conversation, temperature=3)["param"] == "temperature"
    body = {"model": "demo", "input": "x", "conversation": conversation, "stream": True, "max_output_tokens": 800,
            "logit_bias": endless}  # fmt: skip
    with http.stream("POST", "/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        id = first.split('"id":"')[1].split('"')[0]
        next(line for line in lines if "output_text.delta" in line)
    wait_for(lambda: http.get(f"/v1/responses/{id}").status_code == 200, "the response that was left")
    assert http.get(f"/v1/responses/{id}").json()["status"] == "cancelled"
    assert texts(items_of(http, conversation)) == ["My name is Ada."]


def test_a_response_in_the_background_adds_to_its_conversation(http):
    conversation = create(http, items=[NAME])["id"]
    queued = ask(http, input="Who am I?", background=True, conversation=conversation)
    assert queued["conversation"] == {"id": conversation}
    response = ended(http, queued["id"])
    assert response["conversation"] == {"id": conversation}
    waited = ask(http, input=[NAME, {"role": "user", "content": "Who am I?"}])
    assert text_of(response) == text_of(waited)
    items = items_of(http, conversation)
    assert texts(items) == ["My name is Ada.", "Who am I?", text_of(response)]
    assert items[2] == response["output"][0]
    asked = http.get(f"/v1/responses/{queued['id']}/input_items").json()["data"]
    assert [item["id"] for item in asked] == [items[1]["id"]]
    # One that is cancelled leaves it as it is.
    busy = [ask(http, input="x", background=True)["id"] for _ in range(20)]
    cancelled = ask(http, input="And now?", background=True, conversation=conversation)["id"]
    if http.post(f"/v1/responses/{cancelled}/cancel").status_code == 200:
        assert len(items_of(http, conversation)) == 3
    for id in busy:
        http.delete(f"/v1/responses/{id}")


def test_a_response_can_go_on_from_one_of_a_conversation(http):
    conversation = create(http, items=[NAME])["id"]
    first = ask(http, input="Who am I?", conversation=conversation)
    # What comes later is not what it goes on from.
    add(http, conversation, {"role": "user", "content": "Something else."})
    spelled = [NAME, {"role": "user", "content": "Who am I?"}, *first["output"], {"role": "user", "content": "Why?"}]
    assert text_of(ask(http, input="Why?", previous_response_id=first["id"])) == text_of(ask(http, input=spelled))
    assert len(items_of(http, conversation)) == 4, "such a response is no part of the conversation"
    http.delete(f"/v1/conversations/{conversation}")
    assert http.get(f"/v1/responses/{first['id']}").status_code == 200
    error = refusal(http, input="Why?", previous_response_id=first["id"])
    assert error["code"] == "previous_response_not_found"


def test_items_of_a_conversation_can_be_referred_to(http):
    conversation = create(http, items=[NAME])["id"]
    (item,) = items_of(http, conversation)
    question = {"role": "user", "content": "Who am I?"}
    referred = ask(http, input=[{"type": "item_reference", "id": item["id"]}, question])
    assert text_of(referred) == text_of(ask(http, input=[NAME, question]))
    # In its own conversation it stands already.
    error = refusal(http, input=[{"id": item["id"]}, question], conversation=conversation)
    assert error["param"] == "input[0].id"


def test_what_to_go_on_from_is_said_once(http):
    conversation, response = create(http)["id"], ask(http)["id"]
    error = refusal(http, conversation=conversation, previous_response_id=response)
    assert (error["param"], error["code"]) == ("previous_response_id", "mutually_exclusive_parameters")
    assert refusal(http, conversation=3)["param"] == "conversation"
    assert ask(http, conversation="", previous_response_id=response)["previous_response_id"] == response


def test_responses_at_the_same_time_add_their_turns_whole(http, server):
    from concurrent.futures import ThreadPoolExecutor

    conversation = create(http)["id"]

    def turn(number):
        with sdk(server) as client:
            said = f"Number {number}"
            client.responses.create(model="demo", input=said, conversation=conversation, max_output_tokens=10)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(turn, range(16)))
    items = items_of(http, conversation)
    assert len(items) == 32
    assert [item["role"] for item in items] == ["user", "assistant"] * 16
    assert sorted(texts(items[::2])) == sorted(f"Number {number}" for number in range(16))


def test_another_organisation_sees_no_conversation(tenants):
    with tenants.http("acme") as acme, tenants.http("rival") as rival:
        conversation = create(acme, items=[{**NAME, "id": "msg_acme_1"}])["id"]
        for answer in (
            rival.get(f"/v1/conversations/{conversation}"),
            rival.get(f"/v1/conversations/{conversation}/items"),
            rival.post(f"/v1/conversations/{conversation}/items", json={"items": [NAME]}),
            rival.post("/v1/responses", json={"model": "demo", "input": "x", "conversation": conversation}),
            rival.delete(f"/v1/conversations/{conversation}"),
        ):
            assert fault(answer, 404)["code"] == "conversation_not_found"
        own = create(rival)["id"]
        assert rival.get(f"/v1/conversations/{own}/items/msg_acme_1").status_code == 404
        answer = rival.post("/v1/responses", json={"model": "demo", "input": [{"id": "msg_acme_1"}]})
        assert fault(answer, 404)["code"] == "item_not_found"
        assert texts(items_of(acme, conversation)) == ["My name is Ada."]


@pytest.mark.timeout(240)
def test_turns_are_whole_after_a_server_was_killed(start_server, endless):
    """Each response that was kept has its turn in the conversation, and each turn its response."""
    server = start_server()
    with sdk_http(server) as http:
        conversation = create(http)["id"]
        # A turn may find all others before it, more than the context holds.
        settings = {
            "conversation": conversation, "max_output_tokens": 300, "logit_bias": endless, "truncation": "auto",
        }  # fmt: skip
        queued = [ask(http, input=f"Number {number}", background=True, **settings)["id"] for number in range(24)]
        wait_for(lambda: len(items_of(http, conversation)) >= 4, "the first turns")
        server.kill()
    server = start_server(data_dir=server.data_dir)
    with sdk_http(server) as http:
        responses = [ended(http, id, within=120) for id in queued]
        items = items_of(http, conversation)
        answers = {item["id"] for item in items if item["role"] == "assistant"}
        assert [response["status"] for response in responses] == ["incomplete"] * 24
        assert answers == {response["output"][0]["id"] for response in responses}
        assert [item["role"] for item in items] == ["user", "assistant"] * 24
    server.stop()


def test_conversations_that_nobody_uses_are_removed(start_server):
    server = start_server()
    with sdk_http(server) as http:
        old, young = create(http, items=[NAME])["id"], create(http, items=[NAME])["id"]
        ask_database(server, f"update conversations set used_at = now() - interval '31 days' where id = '{old}'")
    # Every start looks for what is too old.
    server.stop()
    server.start()
    with sdk_http(server) as http:
        wait_for(lambda: http.get(f"/v1/conversations/{old}").status_code == 404, "the end of the conversation")
        assert len(items_of(http, young)) == 1
    assert ask_database(server, f"select count(*) from conversation_items where conversation = '{old}'") == "0"
    server.stop()


# --- Made short ---------------------------------------------------------------------------------------------------

TALK = [
    {"role": "developer", "content": "Speak of the harbour."},
    NAME,
    {"role": "assistant", "content": "Hello, Ada. What would you like to know?"},
    {"role": "user", "content": "Who lives by the harbour?"},
    {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"where": "harbour"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "A baker."},
    {"role": "assistant", "content": "A baker lives there."},
]


def compact(http, **fields):
    answer = http.post("/v1/responses/compact", json={"model": "demo", "max_output_tokens": 60, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_conversation_is_made_short_and_goes_on(http, client):
    short = compact(http, input=TALK)
    assert set(short) == {"id", "object", "created_at", "output", "usage"}
    assert (short["id"][:5], short["object"]) == ("resp_", "response.compaction")
    *said, compaction = short["output"]
    assert [(item["role"], item["content"][0]["text"]) for item in said] == [
        ("developer", "Speak of the harbour."), ("user", "My name is Ada."), ("user", "Who lives by the harbour?"),
    ]  # fmt: skip
    assert set(compaction) == {"id", "type", "encrypted_content"}
    assert (compaction["id"][:4], compaction["type"]) == ("cmp_", "compaction")
    usage = short["usage"]
    assert 0 < usage["output_tokens"] <= 60
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    # What it holds is the summary, which the model is shown as its own turn.
    content = compaction["encrypted_content"].removeprefix("attune1.")
    summary = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))[8:].decode()
    assert summary
    question = {"role": "user", "content": "Why?"}
    spelled = [
        TALK[0],
        {"role": "user", "content": "My name is Ada.\n\nWho lives by the harbour?"},
        {"role": "assistant", "content": "Summary of the conversation so far:\n\n" + summary},
        question,
    ]
    assert text_of(ask(http, input=[*short["output"], question])) == text_of(ask(http, input=spelled))
    # The same by OpenAI's client, which reads it, too.
    by_client = client.responses.compact(model="demo", input=TALK, extra_body={"max_output_tokens": 60})
    assert by_client.output[-1].encrypted_content == compaction["encrypted_content"], "it is drawn without chance"
    again = client.responses.create(
        model="demo",
        input=[*(item.model_dump(exclude_unset=True, warnings=False) for item in by_client.output), question],
        max_output_tokens=60,
        temperature=0,
    )
    assert again.output_text == text_of(ask(http, input=spelled))


def test_what_is_kept_can_be_made_short(http):
    first = ask(http, input="My name is Ada.")
    second = ask(http, input="Who am I?", previous_response_id=first["id"])
    of_response = compact(http, previous_response_id=second["id"])
    conversation = create(http, items=[NAME, *first["output"], {"role": "user", "content": "Who am I?"}])["id"]
    add(http, conversation, *second["output"])
    of_conversation = compact(http, conversation=conversation)
    assert of_response["output"][-1]["encrypted_content"] == of_conversation["output"][-1]["encrypted_content"]
    assert texts(of_response["output"][:-1]) == ["My name is Ada.", "Who am I?"]
    # A conversation that begins with what stands for another one.
    shorter = create(http, items=of_response["output"])["id"]
    assert ask(http, input="Well?", conversation=shorter)["status"] in ("completed", "incomplete")
    again = compact(http, conversation=shorter)
    assert [item["type"] for item in again["output"]] == ["message"] * 3 + ["compaction"]


def test_a_conversation_longer_than_the_context_is_made_short_in_pieces(http):
    turns = [[{"role": "user", "content": f"{i} " * 60}, {"role": "assistant", "content": f"Yes {i}."}] for i in range(30)]
    talk = sum(turns, [])
    assert refusal(http, input=talk)["code"] == "context_length_exceeded"
    short = compact(http, input=talk)
    assert len(short["output"]) == 31
    assert 60 < short["usage"]["output_tokens"] or short["usage"]["input_tokens"] > 1024, "it was read in pieces"
    # One message alone that does not fit cannot be split.
    answer = http.post("/v1/responses/compact", json={"model": "demo", "input": "x " * 3000})
    assert (fault(answer)["code"], fault(answer)["param"]) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": "x", "model": "nobody"}, 404, "model"),
        ({"input": "x", "max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 100_000}, 400, "input"),
        ({"input": "x", "previous_response_id": "resp_nobody"}, 400, "previous_response_id"),
        ({"input": "x", "conversation": "conv_nobody"}, 404, "conversation"),
        ({"input": "x", "conversation": "conv_nobody", "previous_response_id": "resp_x"}, 400, "previous_response_id"),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAAABp"}]}, 400, "input[0].encrypted_content"),
        ({"input": [TALK[4]]}, 400, "input"),
    ],
)
def test_what_cannot_be_made_short_is_refused_by_its_field(http, fields, status, param):
    error = fault(http.post("/v1/responses/compact", json={"model": "demo", **fields}), status)
    assert error["param"] == param
    assert error["code"]


def test_a_damaged_compaction_is_refused(http):
    compaction = compact(http, input=TALK)["output"][-1]
    content = compaction["encrypted_content"]
    for wrong in (content[:-2], content.replace("attune1", "attune2"), "gAAAAABpM0Yj_QAAAA"):
        error = refusal(http, input=[{**compaction, "encrypted_content": wrong}, NAME])
        assert error["param"] == "input[0].encrypted_content"
        assert "compact" in error["message"]
    assert httpx.codes.OK == http.post(
        "/v1/responses", json={"model": "demo", "input": [compaction, NAME], "max_output_tokens": 2}
    ).status_code


# --- Made short on the way ------------------------------------------------------------------------------------------

LONG = "The harbour has a baker, a mill and a ferry that goes to the other side. " * 6
TURNS = [NAME, {"role": "assistant", "content": LONG}, {"role": "user", "content": "Go on."},
         {"role": "assistant", "content": LONG}]  # fmt: skip
WHO = {"role": "user", "content": "Who am I?"}


def when_longer_than(tokens):
    return [{"type": "compaction", "compact_threshold": tokens}]


def length_of(http, items):
    answer = http.post("/v1/responses/input_tokens", json={"model": "demo", "input": items})
    return answer.json()["input_tokens"]


def test_a_request_that_is_too_long_is_made_short_and_answered(http, client):
    items = [*TURNS, WHO]
    tokens = length_of(http, items)
    same = ask(http, input=items, context_management=when_longer_than(tokens))
    assert "compaction" not in [item["type"] for item in same["output"]], "it has just as many tokens as it may have"
    assert text_of(same) == text_of(ask(http, input=items, context_management=[]))
    short = ask(http, input=items, context_management=when_longer_than(tokens - 1))
    compaction, message = short["output"]
    assert (compaction["type"], compaction["id"][:4], message["type"]) == ("compaction", "cmp_", "message")
    assert set(compaction) == {"id", "type", "encrypted_content"}
    # As the route for it does, with what is to be answered behind the summary.
    alone = http.post("/v1/responses/compact", json={"model": "demo", "input": items}).json()
    assert alone["output"][-1]["encrypted_content"] == compaction["encrypted_content"]
    content = compaction["encrypted_content"].removeprefix("attune1.")
    summary = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))[8:].decode()
    spelled = [
        {"role": "user", "content": "My name is Ada.\n\nGo on."},
        {"role": "assistant", "content": "Summary of the conversation so far:\n\n" + summary},
        WHO,
    ]
    plain = ask(http, input=spelled)
    assert text_of(short) == text_of(plain)
    for kind in ("input_tokens", "output_tokens", "total_tokens"):
        assert short["usage"][kind] == plain["usage"][kind] + alone["usage"][kind], kind
    by_client = client.responses.create(
        model="demo", input=items, temperature=0, context_management=when_longer_than(tokens - 1), max_output_tokens=60
    )
    assert [item.type for item in by_client.output] == ["compaction", "message"]
    # The items go on as they are, also without those before the compaction.
    for further in ([*items, *short["output"]], short["output"]):
        assert ask(http, input=[*further, {"role": "user", "content": "Why?"}])["status"] in ("completed", "incomplete")


def test_the_item_comes_first_in_a_stream(http):
    body = {"model": "demo", "input": [*TURNS, WHO], "stream": True, "temperature": 0, "max_output_tokens": 20}
    body["context_management"] = when_longer_than(100)
    with http.stream("POST", "/v1/responses", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events[:5]]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.output_item.done",
        "response.output_item.added",
    ]  # fmt: skip
    assert events[2]["item"] == events[3]["item"] and events[2]["item"]["type"] == "compaction"
    assert [events[place]["output_index"] for place in (2, 3, 4)] == [0, 0, 1]
    assert events[0]["response"]["output"] == []
    whole = events[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["compaction", "message"] and whole["output"][0] == events[2]["item"]


def test_what_goes_on_from_a_response_or_in_a_conversation_stays_short(http):
    for kept in ("previous_response_id", "conversation"):
        if kept == "conversation":
            place = {"conversation": create(http, items=TURNS)["id"]}
        else:
            place = {"previous_response_id": ask(http, input=TURNS)["id"]}
        short = ask(http, input=[WHO], context_management=when_longer_than(200), **place)
        assert short["output"][0]["type"] == "compaction", kept
        if kept == "previous_response_id":
            place = {"previous_response_id": short["id"]}
        further = ask(http, input=[{"role": "user", "content": "Why?"}], context_management=when_longer_than(400), **place)
        assert [item["type"] for item in further["output"]] == ["message"], "it was short already"
        assert further["usage"]["input_tokens"] < length_of(http, [*TURNS, WHO])
        found = http.get(f"/v1/responses/{short['id']}").json()
        assert [item["type"] for item in found["output"]] == ["compaction", "message"]


def test_what_does_not_fit_the_context_is_made_short_and_calls_keep_their_results(http):
    call = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "A baker."}
    items = [NAME, *[{"role": "assistant", "content": f"{i} {LONG}"} for i in range(12)], WHO, call, result]
    assert refusal(http, input=items)["code"] == "context_length_exceeded"
    short = ask(http, input=items, context_management=when_longer_than(100_000))
    assert [item["type"] for item in short["output"]][:1] == ["compaction"]
    # What nothing can be done about is refused as without it.
    for alone in ([WHO, {"role": "user", "content": "x " * 3000}], "x " * 3000):
        error = refusal(http, input=alone, context_management=when_longer_than(100))
        assert error["code"] == "context_length_exceeded"
    assert [item["type"] for item in ask(http, input=[NAME, WHO], context_management=when_longer_than(1))["output"]] == ["message"]


def test_a_response_in_the_background_is_made_short_when_it_is_written(http):
    items = [NAME, *[{"role": "assistant", "content": f"{i} {LONG}"} for i in range(12)], WHO]
    queued = ask(http, input=items, background=True, context_management=when_longer_than(200))
    assert (queued["status"], queued["output"]) == ("queued", [])
    while (found := http.get(f"/v1/responses/{queued['id']}").json())["status"] in ("queued", "in_progress"):
        time.sleep(0.05)
    assert found["status"] in ("completed", "incomplete"), found
    assert [item["type"] for item in found["output"]] == ["compaction", "message"]


def test_a_compaction_wants_no_management_of_its_context(http):
    answer = http.post("/v1/responses/compact", json={"model": "demo", "input": TALK, "context_management": when_longer_than(10)})
    assert fault(answer)["param"] == "context_management"
