"""Evals that are attached to fine-tune jobs: run on the new model and another one, told as an event, and followed by the
move of an alias, whatever happens to the server in between."""

import json

import httpx
import pytest
from conftest import QUICK, ask_database, create_job, events, sdk, upload, wait_for, wait_for_end
from evallib import finished, items

pytestmark = pytest.mark.timeout(300)

CONFIG = {"type": "custom", "item_schema": {"type": "object", "required": ["question", "answer"]}}
# What the fine-tune teaches: the form of the answer.
LIKE_THE_FILE = {
    "type": "text_similarity",
    "name": "like the file",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
NEVER = {"type": "string_check", "name": "never", "input": "a", "reference": "b", "operation": "eq"}
ALWAYS = {"type": "string_check", "name": "always", "input": "a", "reference": "a", "operation": "eq"}


def data_source(lines, **fields):
    content = [{"item": {"question": line["messages"][0]["content"], "answer": line["messages"][1]["content"]}} for line in lines]
    return {
        "type": "completions",
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 60},
        "source": {"type": "file_content", "content": content},
        **fields,
    }


def create_eval(client, *criteria):
    return client.evals.create(name="tickets", data_source_config=CONFIG, testing_criteria=list(criteria))


def attach(client, file, eval, settings=None):
    return create_job(client, file, settings or {**QUICK, "n_epochs": 3}, extra_body={"eval": eval})


def told(client, job_id):
    """The event with the result of the job's eval."""

    def found():
        return [event for event in events(client, job_id) if event.data and "eval_id" in event.data]

    (event,) = wait_for(found, "the result of the eval", 120)
    return event


def alias(http, name):
    answer = http.get(f"/v1/aliases/{name}")
    return answer.json()["model"] if answer.status_code == 200 else None


def test_a_better_model_takes_the_alias_and_a_worse_one_does_not(client, http, tickets, heldout):
    made = create_eval(client, LIKE_THE_FILE)
    file = upload(client, tickets[:200])
    eval = {
        "id": made.id,
        "data_source": data_source(heldout[:16]),
        "promote_if": {"alias": "tickets", "min_pass_rate": 0.5, "min_gain": 0.1, "max_p_value": 0.05},
    }
    job = attach(client, file, eval)
    assert job.model_extra["eval_id"] == made.id
    shown = job.model_extra["eval"]
    assert shown["promote_if"] == {
        "alias": "tickets", "criterion": "all", "better_than": "current", "min_pass_rate": 0.5, "min_gain": 0.1,
        "max_p_value": 0.05,
    }  # fmt: skip
    job = wait_for_end(client, job.id, within=150)
    assert job.status == "succeeded", job.error
    event = told(client, job.id)
    data = event.data
    assert (event.level, data["promoted"], data["alias"], data["criterion"]) == ("info", True, "tickets", "all"), event
    assert (data["reference"]["model"], data["result"]["model"]) == ("demo", job.fine_tuned_model)
    assert data["result"]["passed"] >= 8 > data["reference"]["passed"]
    assert data["comparison"]["items"] == 16 and data["comparison"]["p_value"] <= 0.05
    assert f"stands for {job.fine_tuned_model} now" in event.message
    assert alias(http, "tickets") == job.fine_tuned_model
    # The figures are those of the run, which its owner finds under the eval.
    (run,) = client.evals.runs.list(made.id)
    assert (run.id, run.name, run.metadata) == (data["eval_run_id"], job.id, {"fine_tuning_job": job.id})
    first, second = run.model_extra["per_model_results"]
    assert second["pass_rate"] == data["result"]["pass_rate"] and second["comparison"] == data["comparison"]
    # An untrained adapter is compared with what the alias stands for now, and is worse.
    weak = {**QUICK, "n_epochs": 1, "learning_rate": 1e-9}
    other = attach(client, file, {"id": made.id, "promote_if": {"alias": "tickets"}}, weak)
    assert other.model_extra["eval"]["data_source"] == eval["data_source"], "that of the newest run"
    other = wait_for_end(client, other.id, within=150)
    event = told(client, other.id)
    assert event.data["reference"]["model"] == job.fine_tuned_model
    assert event.data["promoted"] is False and "the gain" in event.data["reason"]
    assert "stays as it is" in event.message
    assert alias(http, "tickets") == job.fine_tuned_model
    # Beside the base it is no worse, and an alias of its own is made.
    third = attach(client, file, {**eval, "promote_if": {"alias": "mine", "better_than": "base"}}, weak)
    third = wait_for_end(client, third.id, within=150)
    assert told(client, third.id).data["reference"]["model"] == "demo"
    assert alias(http, "mine") == third.fine_tuned_model
    for name in ("tickets", "mine"):
        assert http.delete(f"/v1/aliases/{name}").status_code == 200


def test_one_criterion_decides_and_without_a_promotion_the_figures_are_told(client, http, tickets, heldout):
    made = create_eval(client, ALWAYS, NEVER)
    file, source = upload(client, tickets[:12]), data_source(heldout[:2])
    quick = {**QUICK, "n_epochs": 1}
    moves = attach(client, file, {"id": made.id, "data_source": source, "promote_if": {"alias": "one", "criterion": "always", "min_pass_rate": 1}}, quick)
    stays = attach(client, file, {"id": made.id, "data_source": source, "promote_if": {"alias": "two", "criterion": "never", "min_pass_rate": 0.1}}, quick)
    plain = attach(client, file, {"id": made.id, "data_source": source}, quick)
    for job in (moves, stays, plain):
        assert wait_for_end(client, job.id, within=120).status == "succeeded"
    event = told(client, moves.id)
    assert event.data["promoted"] and event.data["result"]["passed"] == 2 and event.data["criterion"] == "always"
    assert alias(http, "one") == event.data["result"]["model"]
    event = told(client, stays.id)
    assert not event.data["promoted"] and "0.000 of all items" in event.data["reason"]
    assert alias(http, "two") is None
    event = told(client, plain.id)
    assert event.data["promoted"] is False and "alias" not in event.data and "alias" not in event.message
    http.delete("/v1/aliases/one")


def test_an_eval_that_cannot_be_run_is_told_and_moves_nothing(client, http, tickets, heldout):
    made = create_eval(client, ALWAYS)
    lines = data_source(heldout[:2])["source"]["content"]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    kept = client.files.create(file=("items.jsonl", content), purpose="evals")
    source = data_source([], source={"type": "file_id", "id": kept.id})
    promote = {"alias": "three"}
    file = upload(client, tickets[:12])
    job = attach(client, file, {"id": made.id, "data_source": source, "promote_if": promote}, {**QUICK, "n_epochs": 20})
    refused = http.delete(f"/v1/files/{kept.id}")
    assert refused.status_code == 400 and job.id in refused.text
    client.evals.delete(made.id)
    assert wait_for_end(client, job.id, within=120).status == "succeeded"
    event = told(client, job.id)
    assert event.level == "warn" and "No such eval" in event.message and "'three' stays as it is" in event.message
    assert alias(http, "three") is None
    assert http.delete(f"/v1/files/{kept.id}").status_code == 200


@pytest.mark.parametrize(
    "change, param",
    [
        ({"id": "eval_nothing"}, "eval.id"),
        ({"data_source": None}, "eval.data_source"),
        ({"data_source": {"type": "other"}}, "eval.data_source.type"),
        ({"data_source": data_source([], model="demo")}, "eval.data_source.model"),
        ({"data_source": {"type": "completions", "source": {"type": "file_id", "id": "file-none"}}}, "eval.data_source.input_messages"),
        ({"items": []}, "eval.items"),
        ({"promote_if": {}}, "eval.promote_if.alias"),
        ({"promote_if": {"alias": "demo"}}, "eval.promote_if.alias"),
        ({"promote_if": {"alias": "a", "criterion": "other"}}, "eval.promote_if.criterion"),
        ({"promote_if": {"alias": "a", "better_than": "best"}}, "eval.promote_if.better_than"),
        ({"promote_if": {"alias": "a", "min_pass_rate": 2}}, "eval.promote_if.min_pass_rate"),
        ({"promote_if": {"alias": "a", "if": "x"}}, "eval.promote_if.if"),
    ],
)
def test_what_could_not_be_done_is_refused_when_the_job_is_created(client, http, tickets, heldout, change, param):
    made = create_eval(client, ALWAYS)
    eval = {"id": made.id, "data_source": data_source(heldout[:1]), **change}
    body = {"model": "demo", "training_file": upload(client, tickets[:12]), "eval": eval}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize("when", ["before the run is made", "while the run goes on", "before the result is told"])
def test_a_killed_server_moves_the_alias_once(start_server, tickets, heldout, when):
    server = start_server()
    with sdk(server) as client:
        made = create_eval(client, ALWAYS)
        # Long enough to be met while it goes on.
        source = data_source(heldout[:40] * 3)
        promote = {"alias": "support", "better_than": "current"}
        file = upload(client, tickets[:12])
        eval = {"id": made.id, "data_source": source, "promote_if": promote}
        if when == "before the run is made":
            hold(server, "alter table job_evals add constraint held check (run is null)")
        elif when == "before the result is told":
            hold(server, "alter table job_evals add constraint held check (told_at is null)")
        job = attach(client, file, eval, {**QUICK, "n_epochs": 1})
        assert wait_for_end(client, job.id, within=120).status == "succeeded"
        if when == "before the run is made":
            assert list(client.evals.runs.list(made.id)) == []
        else:
            (run,) = wait_for(lambda: list(client.evals.runs.list(made.id)), "the run")
            if when == "while the run goes on":
                wait_for(lambda: len(items(client, run)) > 0, "the first item", every=0.01)
            else:
                assert finished(client, run).status == "completed"
        assert httpx.get(server.url + "/v1/aliases/support").status_code == 404
    server.kill()
    again = start_server(data_dir=server.data_dir)
    if when != "while the run goes on":
        ask_database(again, "alter table job_evals drop constraint held")
    with sdk(again) as client:
        event = told(client, job.id)
        assert event.data["promoted"] is True, event
        (run,) = client.evals.runs.list(made.id)
        assert run.id == event.data["eval_run_id"] and run.result_counts.total == 2 * 120
        moved = httpx.get(again.url + "/v1/aliases/support").json()
        assert moved["model"] == client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        assert moved["created_at"] == moved["updated_at"]
        assert ask_database(again, "select count(*) from job_events where data ? 'eval_id'") == "1"
    again.stop()


def hold(server, sql):
    """Makes the step fail, as a database that is away does, until the constraint is dropped."""
    ask_database(server, sql)
