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
