"""Evals over answers that are stored, as they were given then or asked anew, and several models in one run."""

import json

import httpx
import openai
import pytest
from conftest import ask_database, sdk, wait_for
from evallib import HAS_KEY, asked, finished, items

pytestmark = pytest.mark.timeout(240)

ITEM_INPUT = {"type": "item_reference", "item_reference": "item.input"}
NAMES_TOOL = {
    "type": "string_check",
    "name": "calls the tool",
    "input": "{{sample.output_tools[0].function.name}}",
    "reference": "look_up",
    "operation": "eq",
}
LOOK_UP = {
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"word": {"enum": ["a", "b"]}}, "required": ["word"]},
}


def about(text, operation="like"):
    return {
        "type": "string_check",
        "name": "says it",
        "input": "{{sample.output_text}}",
        "reference": text,
        "operation": operation,
    }


def chat(client, question, **fields):
    fields = {"temperature": 0, "max_completion_tokens": 40, **fields}
    said = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="demo", messages=said, store=True, **fields)


def over(source, **fields):
    kind = "responses" if source["type"] == "responses" else "completions"
    return {"type": kind, "source": source, **fields}


@pytest.fixture(scope="module")
def stored(client, questions):
    """Three stored chats with the note `topic: towns`, and one without it."""
    towns = [q for q in questions if q["key"]][:3]
    answers = [chat(client, q["messages"][0]["content"], metadata={"topic": "towns"}) for q in towns]
    chat(client, "Hello.", metadata={"topic": "greeting"})
    return [(q["messages"], answer) for q, answer in zip(towns, answers)]


def logs(client, criteria, kind="stored_completions", **metadata):
    config = {"type": kind, "metadata": metadata}
    return client.evals.create(name="logs", data_source_config=config, testing_criteria=criteria)


def test_stored_chats_are_judged_as_they_were_answered(client, stored):
    word = stored[0][1].choices[0].message.content
    made = logs(client, [about(word, "eq")], topic="towns")
    assert made.data_source_config.type == "stored_completions"
    assert made.data_source_config.metadata == {"topic": "towns"}
    assert made.data_source_config.schema_["properties"]["item"]["required"] == ["input"]
    run = client.evals.runs.create(made.id, data_source=over({"type": "stored_completions"}))
    assert run.model is None
    run = finished(client, run)
    assert run.status == "completed" and run.per_model_usage == [], run
    shown = items(client, run)
    assert [item.datasource_item["input"] for item in shown] == [messages for messages, _ in stored]
    for item, (_, answer) in zip(shown, stored):
        assert item.datasource_item["id"] == answer.id and item.datasource_item["metadata"] == {"topic": "towns"}
        assert item.sample.output[0].content == answer.choices[0].message.content
        assert (item.sample.model, item.sample.finish_reason) == ("demo", answer.choices[0].finish_reason)
        assert item.sample.usage.total_tokens == answer.usage.total_tokens
    assert shown[0].status == "pass"
    expected = [answer.choices[0].message.content == word for _, answer in stored]
    assert [item.status == "pass" for item in shown] == expected


def test_filters_choose_the_newest_and_a_custom_form_is_held_to_them(client, stored):
    schema = {"type": "object", "required": ["input"]}
    config = {"type": "custom", "item_schema": schema}
    made = client.evals.create(name="c", data_source_config=config, testing_criteria=[about("")])
    last = stored[-1][1]
    source = {"type": "stored_completions", "model": "demo", "metadata": {"topic": "towns"}, "limit": 1}
    run = finished(client, client.evals.runs.create(made.id, data_source=over({**source, "created_after": last.created})))
    assert [item.datasource_item["id"] for item in items(client, run)] == [last.id]
    # What does not follow the form of the eval is no item of it.
    config["item_schema"] = {"type": "object", "required": ["question"]}
    made = client.evals.create(name="c", data_source_config=config, testing_criteria=[about("")])
    run = finished(client, client.evals.runs.create(made.id, data_source=over(source)))
    (item,) = items(client, run)
    assert item.status == "error" and "item.question" in item.sample.error.message


def test_stored_chats_are_asked_anew(client, stored):
    made = logs(client, [about(stored[0][1].choices[0].message.content, "eq")], topic="towns")
    params = {"temperature": 0, "max_completion_tokens": 40}
    for fields in ({"input_messages": ITEM_INPUT}, {}):
        source = over({"type": "stored_completions"}, model="demo", sampling_params=params, **fields)
        run = finished(client, client.evals.runs.create(made.id, data_source=source))
        assert (run.model, run.per_model_usage[0].invocation_count) == ("demo", 3)
        for item, (messages, answer) in zip(items(client, run), stored):
            assert [message.content for message in item.sample.input] == [m["content"] for m in messages]
            assert item.sample.output[0].content == answer.choices[0].message.content, "the same model, the same words"


def test_asked_anew_a_model_has_the_tools_and_the_form_of_the_request(client):
    tools = [{"type": "function", "function": LOOK_UP}]
    named = {"type": "function", "function": {"name": "look_up"}}
    chat(client, "Look a word up.", tools=tools, tool_choice=named, metadata={"topic": "tools"})
    schema = {"name": "n", "schema": {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}}
    chat(client, "Seven?", response_format={"type": "json_schema", "json_schema": schema}, metadata={"topic": "form"})
    for topic, criterion in (("tools", NAMES_TOOL), ("form", {**about("7", "eq"), "input": "{{sample.output_json.a}}"})):
        made = logs(client, [criterion], topic=topic)
        for asked_anew in ({}, {"model": "demo"}):
            source = over({"type": "stored_completions"}, **asked_anew)
            run = finished(client, client.evals.runs.create(made.id, data_source=source))
            assert run.result_counts.passed == 1, items(client, run)[0]


def test_a_run_that_begins_again_has_the_same_items_though_answers_come_and_go(client, server):
    answers = [chat(client, f"Hello {number}.", metadata={"topic": "again"}) for number in range(2)]
    made = logs(client, [about("")], topic="again")
    run = finished(client, client.evals.runs.create(made.id, data_source=over({"type": "stored_completions"})))
    assert run.result_counts.passed == 2
    client.chat.completions.delete(answers[0].id)
    chat(client, "Too late.", metadata={"topic": "again"})
    # As if the server had been killed before the first item.
    ask_database(server, f"delete from eval_output_items where run = '{run.id}'")
    ask_database(server, f"update eval_runs set status = 'queued', leased_until = null where id = '{run.id}'")
    run = wait_for(lambda: (r := finished(client, run)).result_counts.total == 2 and r, "the end of the second attempt")
    gone, there = items(client, run)
    assert (gone.status, there.status) == ("error", "pass")
    assert gone.datasource_item == {"id": answers[0].id} and "not there" in gone.sample.error.message
    assert there.datasource_item["id"] == answers[1].id


def test_kept_responses_are_judged_and_asked_anew_with_all_that_was_said(client):
    first = client.responses.create(
        model="demo", instructions="Be brief.", input="Where is Kessing?", temperature=0, max_output_tokens=40,
        metadata={"topic": "talk"},
    )  # fmt: skip
    second = client.responses.create(
        model="demo", input="And Brasmere?", previous_response_id=first.id, temperature=0, max_output_tokens=40,
        metadata={"topic": "talk"},
    )  # fmt: skip
    tools = [{"type": "function", **LOOK_UP}]
    third = client.responses.create(
        model="demo", input="Look it up.", tools=tools, tool_choice={"type": "function", "name": "look_up"},
        temperature=0, metadata={"topic": "call"},
    )  # fmt: skip
    made = logs(client, [about(second.output_text, "eq")], kind="logs", topic="talk")
    run = finished(client, client.evals.runs.create(made.id, data_source=over({"type": "responses"})))
    # The two may be of the same second.
    by_id = {item.datasource_item["id"]: item for item in items(client, run)}
    assert set(by_id) == {first.id, second.id}
    one, two = by_id[first.id], by_id[second.id]
    said = [(message["role"], message["content"]) for message in two.datasource_item["input"]]
    assert said == [("user", "Where is Kessing?"), ("assistant", first.output_text), ("user", "And Brasmere?")]
    assert one.datasource_item["input"][0] == {"role": "system", "content": "Be brief."}
    assert two.status == "pass" and two.sample.output[0].content == second.output_text
    assert two.sample.usage.total_tokens == second.usage.total_tokens
    source = over(
        {"type": "responses", "instructions_search": "BRIEF", "temperature": 0}, model="demo",
        input_messages=ITEM_INPUT, sampling_params={"temperature": 0, "max_completion_tokens": 40},
    )  # fmt: skip
    run = finished(client, client.evals.runs.create(made.id, data_source=source))
    (again,) = items(client, run)
    assert again.datasource_item["id"] == first.id
    assert again.sample.output[0].content == first.output_text
    calls = logs(client, [NAMES_TOOL], kind="logs", topic="call")
    for fields in ({}, {"model": "demo"}):
        source = over({"type": "responses", "tools": ["look_up"]}, **fields)
        run = finished(client, client.evals.runs.create(calls.id, data_source=source))
        assert [item.datasource_item["id"] for item in items(client, run)] == [third.id]
        assert run.result_counts.passed == 1, items(client, run)[0]


def test_another_organisation_s_answers_are_no_items(tenants):
    with tenants.client("acme") as acme, tenants.client("rival") as rival:
        chat(acme, "A secret.", metadata={"whose": "acme"})
        made = logs(rival, [about("")], whose="acme")
        with pytest.raises(openai.BadRequestError) as fault:
            rival.evals.runs.create(made.id, data_source=over({"type": "stored_completions"}))
        assert fault.value.param == "data_source.source"


def test_one_run_asks_several_models_the_same(client, http, questions):
    config = {"type": "custom", "item_schema": {"type": "object"}}
    never = {**about("no such words"), "name": "never"}
    made = client.evals.create(name="m", data_source_config=config, testing_criteria=[HAS_KEY, never])
    other = http.put("/v1/aliases/second", json={"model": "demo"}).json()["id"]
    source = asked(questions[:6], sampling_params={"temperature": 0, "max_completion_tokens": 40})
    run = client.evals.runs.create(made.id, data_source=source, extra_body={"models": ["demo", other]})
    assert run.model is None and run.model_extra["models"] == ["demo", other]
    run = finished(client, run)
    shown = items(client, run)
    assert [item.datasource_item_id for item in shown] == [number for number in range(6) for _ in range(2)]
    assert [item.sample.model for item in shown] == ["demo", other] * 6
    assert run.result_counts.total == 12 and run.result_counts.passed == 0
    raw = http.get(f"/v1/evals/{made.id}/runs/{run.id}").json()
    assert raw["pass_rate"] is None
    first, second = raw["per_model_results"]
    assert [first["model"], second["model"]] == ["demo", other]
    assert first["comparison"] is None and first["per_testing_criteria_results"][0]["comparison"] is None
    # The same model under two names: no item passes with one of them alone.
    has_key, never = second["per_testing_criteria_results"]
    passed = first["per_testing_criteria_results"][0]["passed"]
    assert 3 <= passed == has_key["passed"]
    assert has_key["comparison"] == {
        "items": 6, "both_passed": passed, "only_first_passed": 0, "only_second_passed": 0,
        "neither_passed": 6 - passed, "p_value": 1.0,
    }  # fmt: skip
    assert has_key["pass_rate"]["value"] == pytest.approx(passed / 6)
    assert (never["passed"], never["failed"], second["comparison"]["neither_passed"]) == (0, 6, 6)
    assert raw["per_testing_criteria_results"][0]["passed"] == 2 * passed
    usage = {entry["model_name"]: entry["invocation_count"] for entry in raw["per_model_usage"]}
    assert usage == {"demo": 6, other: 6}
    refused = http.get(f"/v1/evals/{made.id}/comparison", params={"first": run.id, "second": run.id})
    assert refused.status_code == 400 and "per_model_results" in refused.text
    single = finished(client, client.evals.runs.create(made.id, data_source={**source, "model": "demo"}))
    raw = json.loads(http.get(f"/v1/evals/{made.id}/runs/{single.id}").text)
    assert raw["model"] == "demo" and raw["models"] == ["demo"] and "per_model_results" not in raw
    assert http.delete("/v1/aliases/second").status_code == 200


def test_a_killed_server_goes_on_with_all_models(start_server, questions):
    server = start_server()
    lines = questions[:5] * 6
    with sdk(server) as client:
        config = {"type": "custom", "item_schema": {"type": "object"}}
        made = client.evals.create(name="m", data_source_config=config, testing_criteria=[HAS_KEY])
        answer = httpx.put(f"{server.url}/v1/aliases/second", json={"model": "demo"}, timeout=60)
        assert answer.status_code == 200, answer.text
        run = client.evals.runs.create(made.id, data_source=asked(lines), extra_body={"models": ["demo", "second"]})

        def begun():
            read = client.evals.runs.retrieve(run.id, eval_id=made.id)
            return read if read.result_counts.total > 0 else None

        before = wait_for(begun, "the first item", every=0.01)
        kept = {item.id: item for item in items(client, run)}
    server.kill()
    assert before.status == "in_progress" and len(kept) < 2 * len(lines), "it was over before the server was killed"
    again = start_server(data_dir=server.data_dir)
    with sdk(again) as client:
        run = finished(client, run, within=150)
        after = items(client, run)
        assert run.result_counts.total == len(after) == 2 * len(lines)
        assert [(item.datasource_item_id, item.sample.model) for item in after] == [
            (number, model) for number in range(len(lines)) for model in ("demo", "second")
        ]
        assert {item.id: item for item in after if item.id in kept} == kept
    again.stop()

