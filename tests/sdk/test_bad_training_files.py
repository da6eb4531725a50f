"""Training files that parse but cannot be trained on: the job fails, says where, and leaves nothing behind."""

import pytest
from conftest import as_prompts, create_job, model_ids, upload, wait_for_end


def missing_keys(tickets):
    return [*tickets[:6], {"letter": "Hello"}, *tickets[7:12]]


def no_answer(tickets):
    return [*tickets[:3], {"messages": tickets[3]["messages"][:1]}, *tickets[4:12]]


def unknown_role(tickets):
    wizard = {"messages": [{"role": "wizard", "content": "Hello"}, *tickets[8]["messages"]]}
    return [*tickets[:8], wizard, *tickets[9:12]]


def empty_completion(tickets):
    lines = as_prompts(tickets[:12])
    lines[4]["completion"] = ""
    return lines


def both_forms(tickets):
    return [*tickets[:11], *as_prompts(tickets[11:12])]


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (missing_keys, "line 7"),
        (no_answer, "line 4"),
        (unknown_role, "line 9"),
        (empty_completion, "line 5"),
        (both_forms, "line 12"),
    ],
)
def test_the_job_fails_and_names_the_line(client, tickets, make, place):
    before = model_ids(client)
    job = wait_for_end(client, create_job(client, upload(client, make(tickets))).id)
    assert job.status == "failed"
    assert job.error.code
    assert job.error.param == "training_file"
    assert place in job.error.message.lower()
    assert job.fine_tuned_model is None
    assert model_ids(client) == before


def test_too_few_examples_are_counted(client, tickets):
    before = model_ids(client)
    job = wait_for_end(client, create_job(client, upload(client, tickets[:3])).id)
    assert job.status == "failed"
    assert job.error.code == "invalid_n_examples"
    assert "3" in job.error.message
    assert "10" in job.error.message
    assert model_ids(client) == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a", "response": "b"}, "rename `response` to `completion`"),
        ({"instruction": "a", "input": "b", "output": "c"}, "rename `output` to `completion`"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "`from` to `role`"),
        ({"question": "a", "answer": "b"}, "rename `question` to `prompt` and rename `answer` to `completion`"),
        ({"text": "a", "label": "b"}, "rename `text` to `prompt` and rename `label` to `completion`"),
        ({"text": "a"}, "has only `text`"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}, "use `assistant`"),
    ],
)
def test_the_names_of_other_programs_are_translated_once_for_all_lines(client, http, line, told):
    file = upload(client, [line] * 12)
    answer = http.post("/v1/fine_tuning/jobs/estimate", json={"model": "demo", "training_file": file})
    message = answer.json()["error"]["message"]
    told = told if not told.startswith("has ") else "have" + told[3:]
    assert message.startswith("Training file has faults on 12 lines. Lines 1, 2, "), message
    assert message.count(told) == 1, message
    assert "remove it" not in message


def test_a_validation_file_of_another_format_is_refused(client, tickets):
    files = upload(client, tickets[:12]), upload(client, as_prompts(tickets[12:16]))
    job = wait_for_end(client, create_job(client, files[0], validation_file=files[1]).id)
    assert (job.status, job.error.param) == ("failed", "validation_file")
    assert "give the same format in both" in job.error.message
