"""Evals by OpenAI's client: criteria, runs in the background, what came of each item, and a server that dies meanwhile."""

import json

import openai
import pytest
from conftest import jsonl, sdk, wait_for
from evallib import HAS_KEY, finished, items

pytestmark = pytest.mark.timeout(240)

SCHEMA = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
WORDS = {
    "type": "text_similarity",
    "name": "words",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
GIVEN = [
    {"item": {"question": "a", "key": "x", "answer": "x y"}, "sample": {"output_text": "x y"}},
    {"item": {"question": "b", "key": "x", "answer": "x y"}, "sample": {"output_text": "x"}},
    {"item": {"question": "c", "key": "x", "answer": "x y"}, "sample": {"output_text": "nothing"}},
    {"item": {"question": "d"}, "sample": {"output_text": "nothing to compare with"}},
    {"item": {"question": "e", "key": "x", "answer": "x y"}},
]


def create(client, criteria=(HAS_KEY, WORDS), **fields):
    return client.evals.create(
        name=fields.pop("name", "questions"), data_source_config=CONFIG, testing_criteria=list(criteria), **fields
    )


def given(lines=GIVEN):
    return {"type": "jsonl", "source": {"type": "file_content", "content": lines}}


def asked(questions, **fields):
    lines = [{"item": {"question": q["messages"][0]["content"], "messages": q["messages"], **q}} for q in questions]
    return {
        "type": "completions",
        "model": "demo",
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 40},
        "source": {"type": "file_content", "content": lines},
        **fields,
    }


def start(client, eval_id, data_source, **fields):
    return client.evals.runs.create(eval_id, data_source=data_source, **fields)


def test_an_eval_is_created_listed_changed_and_deleted(client, http):
    body = {"name": "a", "data_source_config": CONFIG, "testing_criteria": [HAS_KEY], "metadata": {"team": "x"}}
    assert http.post("/v1/evals", json=body).status_code == 201
    first, second = create(client, name="first", metadata={"team": "y"}), create(client, name="second")
    assert first.object == "eval" and first.id.startswith("eval_")
    assert first.data_source_config.type == "custom"
    assert first.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert first.testing_criteria[0].model_extra["id"].startswith("has the key-")
    assert client.evals.retrieve(first.id).to_dict() == first.to_dict()
    ids = [entry.id for entry in client.evals.list(limit=1)]
    assert ids.index(first.id) + 1 == ids.index(second.id)
    newest = client.evals.list(order="desc", limit=2)
    assert [entry.id for entry in newest.data] == [second.id, first.id] and newest.has_more
    changed = client.evals.update(first.id, name="other", metadata={})
    assert (changed.name, changed.metadata) == ("other", {})
    assert client.evals.list(order="desc", order_by="updated_at", limit=1).data[0].id == first.id
    gone = client.evals.delete(first.id)
    assert (gone.object, gone.deleted, gone.eval_id) == ("eval.deleted", True, first.id)
    with pytest.raises(openai.NotFoundError):
        client.evals.retrieve(first.id)


def test_given_answers_are_judged_by_every_criterion(client):
    made = create(client)
    run = start(client, made.id, given(), name="given", metadata={"a": "b"})
    assert (run.object, run.status, run.model) == ("eval.run", "queued", None)
    assert run.per_model_usage is None and run.per_testing_criteria_results is None
    run = finished(client, run)
    assert run.status == "completed" and run.error is None
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (5, 2, 1, 2)
    first, second = run.per_testing_criteria_results
    assert [first.testing_criteria, second.testing_criteria] == [c.model_extra["id"] for c in made.testing_criteria]
    assert (first.passed, first.failed, second.passed, second.failed) == (2, 1, 2, 1)
    rate = run.model_extra["pass_rate"]
    assert rate["value"] == pytest.approx(2 / 3)
    assert (rate["low"], rate["high"]) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    shown = items(client, run, limit=2)
    assert [item.datasource_item_id for item in shown] == [0, 1, 2, 3, 4]
    assert [item.status for item in shown] == ["pass", "pass", "fail", "error", "error"]
    assert shown[1].datasource_item == GIVEN[1]["item"]
    check, words = shown[1].results
    assert (check.type, check.score, check.passed) == ("string-check-grader", 1, True)
    assert words.score == pytest.approx(2 / 3)
    assert shown[1].sample.output[0].content == "x"
    assert "item.key" in shown[3].results[0].model_extra["error"]
    assert "sample.output_text" in shown[4].results[0].model_extra["error"]
    assert [item.id for item in items(client, run, status="fail")] == [shown[2].id]
    assert [item.id for item in items(client, run, order="desc")] == [item.id for item in shown][::-1]
    read = client.evals.runs.output_items.retrieve(shown[0].id, eval_id=made.id, run_id=run.id)
    assert read.to_dict() == shown[0].to_dict()


def test_a_model_answers_the_items(client, questions):
    made = create(client, criteria=[HAS_KEY])
    run = finished(client, start(client, made.id, asked(questions[:12])))
    assert (run.status, run.model) == ("completed", "demo")
    assert run.result_counts.total == 12 and run.result_counts.errored == 0
    # The demo model knows its world.
    assert run.result_counts.passed >= 6
    (usage,) = run.per_model_usage
    assert usage.run_model_name == "demo"
    assert usage.invocation_count == 12 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    item = items(client, run)[0]
    question = questions[0]["messages"][0]["content"]
    expected = client.chat.completions.create(
        model="demo", messages=questions[0]["messages"], temperature=0, max_completion_tokens=40, seed=42
    )
    assert item.sample.input[0].content == question
    assert item.sample.output[0].content == expected.choices[0].message.content
    assert item.sample.usage.total_tokens == expected.usage.total_tokens
    assert (item.sample.model, item.sample.temperature, item.sample.seed) == ("demo", 0, 42)


def test_conversations_of_items_and_the_form_of_responses(client, questions):
    made = create(client, criteria=[HAS_KEY])
    reference = {"type": "item_reference", "item_reference": "item.messages"}
    schema = {"type": "object", "properties": {"a": {"enum": ["copper pots"]}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    source = asked(questions[:1], type="responses", input_messages=reference, sampling_params={"text": form})
    run = finished(client, start(client, made.id, source))
    assert run.result_counts.passed == 1, items(client, run)[0]
    assert json.loads(items(client, run)[0].sample.output[0].content) == {"a": "copper pots"}


def test_a_model_grades_the_items(client):
    label = {
        "type": "label_model",
        "name": "label",
        "model": "demo",
        "input": [{"role": "user", "content": "Is {{sample.output_text}} right?"}],
        "labels": ["right"],
        "passing_labels": ["right"],
    }
    run = finished(client, start(client, create(client, criteria=[label]).id, given(GIVEN[:2])))
    assert run.result_counts.passed == 2
    assert run.per_model_usage[0].invocation_count == 2
    result = items(client, run)[0].results[0]
    assert json.loads(result.sample["output"][0]["content"]) == {"result": "right"}


def test_items_come_from_a_file(client):
    lines = "".join(json.dumps(line) + "\n" for line in GIVEN[:3]).encode()
    file = client.files.create(file=("items.jsonl", lines), purpose="evals")
    made = create(client)
    run = finished(client, start(client, made.id, {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}))
    assert (run.result_counts.total, run.result_counts.passed) == (3, 2)
    broken = client.files.create(file=("items.jsonl", lines + b'{"item": {}}\n'), purpose="evals")
    run = finished(client, start(client, made.id, {"type": "jsonl", "source": {"type": "file_id", "id": broken.id}}))
    assert (run.status, run.error.code) == ("failed", "invalid_file")
    assert "Line 4" in run.error.message and "item.question" in run.error.message
    assert run.result_counts.total == 0


def test_an_answer_that_the_model_cannot_give_is_an_error_of_its_item(client, questions):
    lines = [{"item": {"question": "short", "key": "x"}}, {"item": {"question": "long " * 3000, "key": "x"}}]
    source = asked([], source={"type": "file_content", "content": lines})
    run = finished(client, start(client, create(client, criteria=[HAS_KEY]).id, source))
    assert run.status == "completed" and run.result_counts.errored == 1
    (failed,) = [item for item in items(client, run) if item.status == "error"]
    assert failed.datasource_item_id == 1 and "context" in failed.sample.error.message


def test_runs_are_listed_cancelled_and_deleted(client, http, questions):
    made = create(client, criteria=[HAS_KEY])
    long = asked(questions[:1] * 300, sampling_params={"temperature": 1, "max_completion_tokens": 300})
    first, second = start(client, made.id, given(GIVEN[:1])), start(client, made.id, long)
    cancelled = client.evals.runs.cancel(second.id, eval_id=made.id)
    assert cancelled.status == "canceled"
    finished(client, first)
    assert [run.id for run in client.evals.runs.list(made.id, limit=1)] == [first.id, second.id]
    assert [run.id for run in client.evals.runs.list(made.id, status="completed")] == [first.id]
    again = http.post(f"/v1/evals/{made.id}/runs/{second.id}/cancel")
    assert again.status_code == 200 and again.json()["status"] == "canceled"
    assert client.evals.runs.cancel(first.id, eval_id=made.id).status == "completed"
    gone = client.evals.runs.delete(second.id, eval_id=made.id)
    assert (gone.object, gone.deleted, gone.run_id) == ("eval.run.deleted", True, second.id)
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.retrieve(second.id, eval_id=made.id)
    client.evals.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.list(made.id)


def test_two_runs_are_compared_on_the_same_items(client, http):
    made = create(client, criteria=[HAS_KEY])

    def lines(answers):
        return [
            {"item": {"question": str(number), "key": "x"}, "sample": {"output_text": answer}}
            for number, answer in enumerate(answers)
        ]

    first = finished(client, start(client, made.id, given(lines("xxxxxxxxyy"))))
    second = finished(client, start(client, made.id, given(lines("xxyyyyyyxy"))))
    query = {"first": first.id, "second": second.id}
    answer = http.get(f"/v1/evals/{made.id}/comparison", params=query).json()
    counts = [answer[name] for name in ("items", "both_passed", "only_first_passed", "only_second_passed", "neither_passed")]
    assert counts == [10, 2, 6, 1, 1]
    assert answer["p_value"] == pytest.approx(0.125)


@pytest.mark.parametrize(
    "change, param",
    [
        ({"data_source_config": {"type": "logs", "item_schema": {}}}, "data_source_config.item_schema"),
        ({"data_source_config": {"type": "responses"}}, "data_source_config.type"),
        ({"data_source_config": {"type": "custom", "item_schema": {"$ref": "#"}}}, "data_source_config.item_schema"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [{**WORDS, "pass_threshold": None}]}, "testing_criteria[0].pass_threshold"),
        ({"testing_criteria": [HAS_KEY, {"type": "python", "name": "p", "source": "x"}]}, "testing_criteria[1].type"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
    ],
)
def test_an_eval_that_could_not_be_run_is_refused(http, change, param):
    body = {"name": "a", "data_source_config": CONFIG, "testing_criteria": [HAS_KEY], **change}
    answer = http.post("/v1/evals", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_model_that_writes_no_text_is_asked_nothing(aliased, questions):
    with sdk(aliased) as client:
        made = create(client)
        for model in ["encoder", "text-embedding-3-large", "reranker"]:
            with pytest.raises(openai.BadRequestError) as error:
                client.evals.runs.create(made.id, data_source=asked(questions[:1], model=model))
            assert error.value.param == "data_source.model" and model in error.value.message
            grader = {"type": "score_model", "name": "s", "model": model, "input": [{"role": "user", "content": "x"}]}
            with pytest.raises(openai.BadRequestError) as error:
                client.fine_tuning.alpha.graders.validate(grader=grader)
            assert error.value.param == "grader.model"


def test_a_run_says_how_much_its_model_thinks(client, questions):
    made = create(client, criteria=[HAS_KEY])
    source = asked(questions[:1], sampling_params={"reasoning_effort": "none", "max_completion_tokens": 5})
    assert finished(client, start(client, made.id, source)).result_counts.errored == 0


def test_a_run_that_could_not_be_done_is_refused(client, http, questions):
    made = create(client)
    other = client.files.create(file=("items.jsonl", jsonl(given()["source"]["content"])), purpose="user_data").id
    for source, param in [
        (given([{"item": {}}]), "data_source.source.content[0].item"),
        (given([]), "data_source.source.content"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-nothing"}}, "data_source.source.id"),
        (asked(questions[:1], model="nowhere"), "data_source.model"),
        (asked(questions[:1], source={"type": "responses"}), "data_source.source.type"),
        (asked(questions[:1], source={"type": "stored_completions", "users": ["a"]}), "data_source.source.users"),
        (asked(questions[:1], source={"type": "stored_completions", "model": "nobody"}), "data_source.source"),
        (asked(questions[:1], sampling_params={"reasoning_effort": "much"}), "data_source.sampling_params.reasoning_effort"),
        (asked(questions[:1], sampling_params={"response_format": 7}), "data_source.sampling_params.response_format"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": other}}, "data_source.source.id"),
    ]:
        answer = http.post(f"/v1/evals/{made.id}/runs", json={"data_source": source})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    several = asked(questions[:1])
    for models, source, param in [
        (["demo"], given(), "models"),
        (["demo", "demo"], several, "models"),
        ([], several, "models"),
        (["demo", "ada"], several, "data_source.model"),
        (["demo", "nowhere"], {**several, "model": None}, "models[1]"),
    ]:
        answer = http.post(f"/v1/evals/{made.id}/runs", json={"data_source": source, "models": models})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert list(client.evals.runs.list(made.id)) == []


def test_another_organisation_sees_nothing(tenants):
    with tenants.client("acme") as acme, tenants.client("rival") as rival:
        made = create(acme)
        run = finished(acme, start(acme, made.id, given()))
        item = items(acme, run)[0]
        assert made.id not in [entry.id for entry in rival.evals.list()]
        for look in [
            lambda: rival.evals.retrieve(made.id),
            lambda: rival.evals.update(made.id, name="x"),
            lambda: rival.evals.delete(made.id),
            lambda: rival.evals.runs.list(made.id),
            lambda: start(rival, made.id, given()),
            lambda: rival.evals.runs.retrieve(run.id, eval_id=made.id),
            lambda: rival.evals.runs.cancel(run.id, eval_id=made.id),
            lambda: rival.evals.runs.delete(run.id, eval_id=made.id),
            lambda: rival.evals.runs.output_items.list(run.id, eval_id=made.id),
            lambda: rival.evals.runs.output_items.retrieve(item.id, eval_id=made.id, run_id=run.id),
        ]:
            with pytest.raises(openai.NotFoundError):
                look()
        file = acme.files.create(file=("items.jsonl", json.dumps(GIVEN[0]).encode()), purpose="evals")
        with pytest.raises(openai.BadRequestError):
            start(rival, create(rival).id, {"type": "jsonl", "source": {"type": "file_id", "id": file.id}})


def test_a_killed_server_goes_on_with_the_run_and_does_no_item_twice(start_server, questions):
    server = start_server()
    lines = questions[:5] * 12
    with sdk(server) as client:
        made = create(client, criteria=[HAS_KEY])
        run = start(client, made.id, asked(lines))

        def begun():
            read = client.evals.runs.retrieve(run.id, eval_id=made.id)
            return read if read.result_counts.total > 0 else None

        before = wait_for(begun, "the first item", every=0.01)
        kept = {item.datasource_item_id: item for item in items(client, run)}
    server.kill()
    assert before.status == "in_progress" and len(kept) < len(lines), "it was over before the server was killed"
    again = start_server(data_dir=server.data_dir)
    with sdk(again) as client:
        run = finished(client, run, within=150)
        assert run.status == "completed" and run.result_counts.total == len(lines)
        after = items(client, run)
        assert [item.datasource_item_id for item in after] == list(range(len(lines)))
        assert {number: after[number] for number in kept} == kept
