"""Responses that nobody waits for: they are read later, streamed, cancelled, and outlive the server that writes them."""

import json

import httpx
import openai
import pytest
from conftest import create_key, keys_command, sdk, wait_for
from test_responses import ask, events_of, refusal, text_of

UNFINISHED = ("queued", "in_progress")
QUESTION = "Who lives by the harbour?"


def start(http, **settings):
    """Starts a response; returns its id."""
    response = ask(http, input=QUESTION, background=True, **settings)
    assert (response["status"], response["output"], response["usage"]) == ("queued", [], None)
    assert response["background"] is True
    return response["id"]


def read(http, id):
    answer = http.get(f"/v1/responses/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(http, id, within=60):
    """The response once it has ended."""

    def look():
        response = read(http, id)
        return response["status"] not in UNFINISHED and response

    return wait_for(look, f"the end of {id}", within)


def first_events(http, count, **settings):
    """Begins to stream a response; returns its first events and leaves."""
    body = {"model": "demo", "input": QUESTION, "background": True, "stream": True, "temperature": 0, **settings}
    events = []
    with http.stream("POST", "/v1/responses", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line.removeprefix("data: ")))
            if len(events) == count:
                return events
    raise AssertionError(f"only {len(events)} events")


def test_a_response_is_written_while_nobody_waits(http):
    response = ended(http, start(http, metadata={"a": "b"}))
    waited = ask(http, input=QUESTION, metadata={"a": "b"})
    assert response["background"] is True
    assert text_of(response) == text_of(waited)
    for changing in ("id", "created_at", "completed_at", "background", "usage"):
        response.pop(changing)
        waited.pop(changing)
    response["output"][0]["id"] = waited["output"][0]["id"]
    assert response == waited


def test_it_can_go_on_from_others_and_others_from_it(http):
    first = ask(http, input="My name is Ada.")
    second = ended(http, start(http, previous_response_id=first["id"]))
    waited = ask(http, input=QUESTION, previous_response_id=first["id"])
    assert (text_of(second), second["previous_response_id"]) == (text_of(waited), first["id"])
    third = ask(http, input="Why?", previous_response_id=second["id"])
    assert text_of(third) == text_of(ask(http, input="Why?", previous_response_id=waited["id"]))
    items = http.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
    assert [item["content"][0]["text"] for item in items] == [QUESTION]


def test_what_is_wrong_with_a_request_is_told_at_once(http):
    assert refusal(http, background=True, temperature=3)["param"] == "temperature"
    assert refusal(http, background=True, input="x " * 3000)["code"] == "context_length_exceeded"


def test_its_events_are_streamed_and_can_be_read_again(http, client):
    waited = ask(http, input=QUESTION)
    body = {"model": "demo", "input": QUESTION, "background": True, "stream": True, "temperature": 0}
    events = events_of(http.post("/v1/responses", json={**body, "max_output_tokens": 60}))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert kinds[-1] == "completed"
    last = events[-1]["response"]
    assert text_of(last) == text_of(waited)
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    assert read(http, last["id"]) == last
    path = f"/v1/responses/{last['id']}?stream=true"
    assert events_of(http.get(path)) == events
    answer = http.get(path + "&starting_after=4")
    assert [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")] == events[5:]
    with client.responses.stream(response_id=last["id"], starting_after=4) as stream:
        assert stream.get_final_response().output_text == text_of(waited)


def test_one_that_was_not_streamed_has_no_events(http):
    for response in (ask(http)["id"], start(http)):
        answer = http.get(f"/v1/responses/{response}?stream=true")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_a_reader_that_left_finds_the_rest(http, endless):
    events = first_events(http, 8, max_output_tokens=300, logit_bias=endless)
    id = events[0]["response"]["id"]
    answer = http.get(f"/v1/responses/{id}?stream=true&starting_after=7")
    rest = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [event["sequence_number"] for event in rest] == list(range(8, 8 + len(rest)))
    assert rest[-1]["type"] == "response.incomplete"
    deltas = [event["delta"] for event in [*events, *rest] if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == text_of(rest[-1]["response"])


def test_it_can_be_cancelled_again_and_again(http, endless):
    settings = {"max_output_tokens": 900, "logit_bias": endless}
    # They keep the server busy, so that the last one waits.
    others = [start(http, **settings) for _ in range(20)]
    events = first_events(http, 2, **settings)
    assert [event["type"] for event in events] == ["response.created", "response.queued"]
    id = events[0]["response"]["id"]
    first = http.post(f"/v1/responses/{id}/cancel")
    assert first.json()["status"] == "cancelled", first.text
    # One that is being written, or waits.
    assert http.post(f"/v1/responses/{others[-1]}/cancel").json()["status"] == "cancelled"
    for other in others:
        assert http.delete(f"/v1/responses/{other}").status_code == 200
    assert http.post(f"/v1/responses/{id}/cancel").json() == first.json() == read(http, id)
    # Its stream ends: with the response as it is.
    last = events_of(http.get(f"/v1/responses/{id}?stream=true"))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    assert refusal(http, previous_response_id=id)["param"] == "previous_response_id"


def test_only_what_is_unfinished_and_in_the_background_can_be_cancelled(http):
    for id in (ask(http)["id"], ended(http, start(http))["id"]):
        answer = http.post(f"/v1/responses/{id}/cancel")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_id")


def test_one_that_is_deleted_is_gone(http, endless):
    id = start(http, max_output_tokens=900, logit_bias=endless)
    assert http.delete(f"/v1/responses/{id}").status_code == 200
    assert http.get(f"/v1/responses/{id}").status_code == 404


@pytest.mark.timeout(240)
def test_responses_outlive_a_server_that_is_killed(start_server, endless):
    server = start_server()
    with sdk_http(server) as http:
        ids = [start(http, max_output_tokens=900, logit_bias=endless) for _ in range(30)]
        wait_for(lambda: any(read(http, id)["status"] == "in_progress" for id in ids), "a response that is written")
        before = {id: read(http, id)["status"] for id in ids}
    server.kill()
    assert any(status in UNFINISHED for status in before.values()), "all had ended before the server was killed"
    server = start_server(data_dir=server.data_dir)
    with sdk_http(server) as http:
        for id in ids:
            response = ended(http, id, within=120)
            assert (response["status"], response["error"]) == ("incomplete", None)
            assert response["usage"]["output_tokens"] == 900
    server.stop()


@pytest.mark.timeout(240)
def test_a_stream_that_was_seen_ends_with_an_error_after_its_server_was_killed(start_server, endless):
    server = start_server()
    with sdk_http(server) as http:
        # Many, so that one of them is in the middle when the server dies.
        begun = [first_events(http, 6, max_output_tokens=900, logit_bias=endless) for _ in range(8)]
        ids = [events[0]["response"]["id"] for events in begun]
        unfinished = [id for id in ids if read(http, id)["status"] in UNFINISHED]
    server.kill()
    server = start_server(data_dir=server.data_dir)
    with sdk_http(server) as http:
        responses = [ended(http, id) for id in unfinished]
        # What ended while the server was asked was not disturbed.
        disturbed = [response for response in responses if response["status"] != "incomplete"]
        assert disturbed, "all had ended before the server was killed"
        for response in disturbed:
            assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
            events = events_of(http.get(f"/v1/responses/{response['id']}?stream=true"))
            assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
            assert events[-1]["response"] == response
    server.stop()


def test_a_key_that_was_revoked_writes_nothing_more(binary, start_server, endless):
    server = start_server()
    admin, _ = create_key(binary, server.data_dir, "acme")
    text, key = create_key(binary, server.data_dir, "acme")
    with sdk_http(server, text) as http, sdk_http(server, admin) as other:
        ids = [start(http, max_output_tokens=900, logit_bias=endless) for _ in range(20)]
        assert keys_command(binary, server.data_dir, "revoke", key).returncode == 0
        responses = [ended(other, id, within=120) for id in ids]
    failed = [response for response in responses if response["status"] == "failed"]
    assert failed, "all had ended before the key was revoked"
    assert all("revoked" in response["error"]["message"] for response in failed)
    server.stop()


def sdk_http(server, key="any"):
    return httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {key}"})


def test_openais_client_polls(server):
    with sdk(server) as client:
        response = client.responses.create(
            model="demo", input=QUESTION, background=True, max_output_tokens=40, temperature=0
        )
        assert response.status == "queued"

        def look():
            return (response := client.responses.retrieve(response_id)).status == "completed" and response

        response_id = response.id
        done = wait_for(look, "the end of the response")
        assert done.output_text
        with pytest.raises(openai.BadRequestError):
            client.responses.cancel(response_id)
