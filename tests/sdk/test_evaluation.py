"""What a job measures on its validation file, the answers that it ends with, and the settings that shape its adapter."""

import csv
import io
import json
import tarfile

import openai
import pytest
from conftest import QUICK, create_job, events, upload, wait_for_end

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def finished(client, tickets, heldout):
    settings = {**QUICK, "n_epochs": 3, "keep_best": True, "early_stopping_patience": 20, "lr_scheduler": "cosine"}
    training, validation = upload(client, tickets[:40]), upload(client, heldout[:20])
    job = wait_for_end(client, create_job(client, training, settings, validation_file=validation).id)
    assert job.status == "succeeded", job.error
    return job


def test_settings_are_shown_as_they_are_used(http, finished):
    settings = http.get(f"/v1/fine_tuning/jobs/{finished.id}").json()["hyperparameters"]
    assert settings["lr_scheduler"] == "cosine"
    assert (settings["keep_best"], settings["early_stopping_patience"]) == (True, 20)
    assert len(settings["target_modules"]) == 7
    assert settings["warmup_ratio"] == pytest.approx(0.1)
    assert (settings["weight_decay"], settings["max_grad_norm"], settings["lora_dropout"]) == (0, 1, 0)
    assert settings["use_rslora"] is False
    assert settings["max_seq_length"] == 1024


def test_the_whole_validation_file_is_measured_at_the_ends_of_epochs(client, finished):
    metrics = [event.data for event in events(client, finished.id) if event.type == "metrics"]
    measured = [data["step"] for data in metrics if data["valid_loss"] is not None]
    full = [data["step"] for data in metrics if data["full_valid_loss"] is not None]
    assert full == [10, 20, 30]
    assert set(full) < set(measured)


def test_the_result_file_has_both(client, finished):
    table = list(csv.DictReader(io.StringIO(client.files.content(finished.result_files[0]).text)))
    assert [row["step"] for row in table if row["full_valid_loss"]] == ["10", "20", "30"]
    assert all(row["valid_loss"] for row in table if row["full_valid_loss"])


def test_the_job_ends_with_the_answers_of_both_models(client, finished, heldout):
    (answers,) = [
        event.data["answers"] for event in events(client, finished.id) if event.message.startswith("Answers to ")
    ]
    assert len(answers) == 3
    for answer, ticket in zip(answers, heldout):
        assert ticket["messages"][0]["content"] in answer["prompt"]
        assert answer["expected"] == ticket["messages"][1]["content"]
        assert answer["base"] != answer["fine_tuned"]


def problems(tickets):
    """Letters with what is wrong, in one word."""

    def chat(ticket):
        word = json.loads(ticket["messages"][1]["content"])["problem"]
        return {"messages": [ticket["messages"][0], {"role": "assistant", "content": word}]}

    return [chat(ticket) for ticket in tickets]


def right(client, model, lines):
    """The lines whose answer the model gives exactly, at temperature 0."""

    def asked(line):
        answer = client.chat.completions.create(
            model=model, messages=line["messages"][:1], temperature=0, max_tokens=60
        ).choices[0]
        expected = line["messages"][1]["content"]
        return answer.finish_reason == "stop" and answer.message.content.strip() == expected.strip()

    return [line for line in lines if asked(line)]


@pytest.fixture(scope="module")
def counted(client, tickets, heldout):
    """A job on one-word answers, and its validation lines: some are what the base model says, with other blanks."""
    lines = problems(heldout[:30])
    for ticket, frame in zip(heldout[30:36], ("{}", " {}", "{}\n", "\n{} ", "{}!", "{}")):
        own = client.chat.completions.create(
            model="demo", messages=ticket["messages"][:1], temperature=0, max_tokens=60
        ).choices[0].message.content
        answer = {"role": "assistant", "content": frame.format(own.strip())}
        lines.append({"messages": [ticket["messages"][0], answer]})
    settings = {**QUICK, "n_epochs": 3, "learning_rate": 3e-3}
    training, validation = upload(client, problems(tickets[:120])), upload(client, lines)
    job = wait_for_end(client, create_job(client, training, settings, validation_file=validation).id, within=200)
    assert job.status == "succeeded", job.error
    return job, lines


def test_right_answers_are_counted_as_requests_give_them(client, counted):
    job, lines = counted
    told = events(client, job.id)
    before = len(right(client, "demo", lines))
    after = len(right(client, job.fine_tuned_model, lines))
    assert 0 < before < after
    (first,) = [event for event in told if event.message.startswith("Before training: ")]
    assert f"{before} of 36 validation answers right" in first.message
    words = f"{after} of 36 validation answers right (before: {before})"
    assert any(event.message.startswith(words) and event.message.endswith("after step 90") for event in told)
    last = [event.data for event in told if event.type == "metrics"][-1]
    assert (last["valid_right_answers"], last["valid_counted_answers"]) == (after, 36)
    assert last["valid_right_answers_before"] == before


def test_each_checkpoint_has_its_right_answers_and_the_best_can_be_used(client, counted):
    job, lines = counted
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    metrics = {checkpoint.step_number: checkpoint.metrics for checkpoint in checkpoints}
    for checkpoint in checkpoints[:2]:
        answers = right(client, checkpoint.fine_tuned_model_checkpoint, lines)
        assert checkpoint.metrics.valid_right_answers == len(answers)
    (best,) = [event for event in events(client, job.id) if event.message.startswith("Best by full validation loss: ")]
    by_loss, by_answers = best.data["best_by_full_valid_loss"], best.data["most_right_answers"]
    assert by_loss["full_valid_loss"] == min(figures.full_valid_loss for figures in metrics.values())
    assert by_answers["right"] == max(figures.valid_right_answers for figures in metrics.values())
    assert len(right(client, by_answers["model"], lines)) == by_answers["right"]
    assert by_loss["model"] in best.message and by_answers["model"] in best.message


def test_the_result_file_has_the_right_answers_of_each_epoch(client, counted):
    job, _ = counted
    table = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    rows = [row for row in table if row["valid_right_answers"]]
    assert [row["step"] for row in rows] == ["30", "60", "90"]
    assert all(row["valid_counted_answers"] == "36" and row["full_valid_loss"] for row in rows)


def test_few_answers_are_counted_each_for_itself(client, tickets, heldout):
    lines = problems(heldout[:30])
    training, validation = upload(client, problems(tickets[:60])), upload(client, lines)
    job = wait_for_end(client, create_job(client, training, validation_file=validation).id)
    assert job.status == "succeeded", job.error
    (best,) = [event for event in events(client, job.id) if event.message.startswith("Best by full validation loss: ")]
    given = [line["messages"][1]["content"] for line in right(client, job.fine_tuned_model, lines)]
    words = {line["messages"][1]["content"] for line in lines}
    assert {row["answer"] for row in best.data["by_answer"]} == words
    for row in best.data["by_answer"]:
        assert row["of"] == sum(line["messages"][1]["content"] == row["answer"] for line in lines)
        assert (row["right"], row["before"]) == (given.count(row["answer"]), 0)
        assert f'"{row["answer"]}" {row["right"]} of {row["of"]} (before: 0)' in best.message


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"target_modules": ["lm_head"]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"warmup_ratio": 2}, "warmup_ratio"),
        ({"lora_dropout": 1}, "lora_dropout"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"max_seq_length": 5000}, "max_seq_length"),
        ({"keep_best": True}, "keep_best"),
        ({"early_stopping_patience": 1}, "early_stopping_patience"),
    ],
)
def test_a_wrong_setting_is_named(client, tickets, settings, param):
    with pytest.raises(openai.BadRequestError) as fault:
        create_job(client, upload(client, tickets[:10]), settings)
    assert fault.value.param == param


def test_an_example_may_not_be_longer_than_the_model_reads(client, tickets):
    file = upload(client, tickets[:10])
    with pytest.raises(openai.BadRequestError) as fault:
        create_job(client, file, {**QUICK, "max_seq_length": 1025})
    assert (fault.value.param, fault.value.code) == ("max_seq_length", "invalid_value")
    assert "1024 tokens" in fault.value.message
    job = create_job(client, file, {**QUICK, "max_seq_length": 1024})
    client.fine_tuning.jobs.cancel(job.id)


def test_a_word_that_is_no_scheduler_is_refused(client, tickets):
    with pytest.raises(openai.BadRequestError) as fault:
        create_job(client, upload(client, tickets[:10]), {"lr_scheduler": "wsd"})
    assert "linear" in fault.value.message
    assert "lr_scheduler" in fault.value.param


def test_an_adapter_of_few_layers_answers_in_its_own_way(client, http, tickets, heldout):
    settings = {
        **QUICK,
        "target_modules": ["v_proj", "down_proj"],
        "lora_dropout": 0.05,
        "use_rslora": True,
        "rank": 16,
        "weight_decay": 0.01,
        "warmup_ratio": 0.2,
        "max_grad_norm": 0.5,
        "max_seq_length": 256,
    }
    job = wait_for_end(client, create_job(client, upload(client, tickets[:60]), settings).id)
    assert job.status == "succeeded", job.error
    shown = http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["hyperparameters"]
    assert shown == {**shown, **settings}

    def answer(model):
        return client.chat.completions.create(
            model=model, messages=heldout[0]["messages"][:1], temperature=0, max_tokens=60
        ).choices[0].message.content

    assert answer(job.fine_tuned_model) != answer("demo")
    archive = http.get(f"/v1/models/{job.fine_tuned_model}/adapter").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as folder:
        config = next(name for name in folder.getnames() if name.endswith("adapter_config.json"))
        config = json.load(folder.extractfile(config))
    assert config["target_modules"] == ["v_proj", "down_proj"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (16, 16 * 4, False)
