"""Classification metrics of the first fine-tuning API: what is asked, echoed and written to the result file."""

import csv
import io

import pytest
from conftest import upload, wait_for

pytestmark = pytest.mark.timeout(240)
THINGS = {" animal": ["dog", "horse", "bird", "mouse"], " weather": ["rain", "wind", "snow", "sun"]}


def lines(question):
    return [
        {"prompt": f"{question} {kind} {thing} ->", "completion": word}
        for word, things in THINGS.items()
        for thing in things
        for kind in ("a small", "a big")
    ]


def create(http, client, expect=200, validated=True, **settings):
    body = {"model": "demo", "training_file": upload(client, lines("What is")), "n_epochs": 2, "batch_size": 4, **settings}
    if validated:
        body["validation_file"] = upload(client, lines("Tell me about"))
    answer = http.post("/v1/fine_tunes", json=body)
    assert answer.status_code == expect, answer.text
    return answer.json()


def finish(http, job):
    def ended():
        now = http.get(f"/v1/fine_tunes/{job['id']}").json()
        return now if now["status"] in ("succeeded", "failed", "cancelled") else None

    return wait_for(ended, f"the end of {job['id']}", within=120)


def table(client, job):
    (result,) = job["result_files"]
    assert result["filename"] == "compiled_results.csv"
    return list(csv.DictReader(io.StringIO(client.files.content(result["id"]).text)))


def test_two_classes_are_measured_at_the_end_of_each_epoch(client, http):
    asked = {
        "compute_classification_metrics": True,
        "classification_positive_class": " weather",
        "classification_betas": [0.5, 1],
    }
    job = create(http, client, **asked)
    assert {name: job["hyperparams"][name] for name in asked} == asked
    assert "classification_n_classes" not in job["hyperparams"]
    done = finish(http, job)
    assert done["status"] == "succeeded", done["events"][-1]
    rows = table(client, done)
    names = ["accuracy", "precision", "recall", "auroc", "auprc", "f0.5", "f1.0"]
    columns = ["step", "elapsed_tokens", "elapsed_examples"]
    columns += [f"training_{name}" for name in ("loss", "sequence_accuracy", "token_accuracy")]
    columns += [f"validation_{name}" for name in ("loss", "sequence_accuracy", "token_accuracy")]
    columns += [f"classification/{name}" for name in names]
    assert list(rows[0]) == columns
    for number, row in enumerate(rows, 1):
        assert 0 <= float(row["training_sequence_accuracy"]) <= 1
        for column in columns[6:]:
            if number % 4 == 0:
                assert float(row[column]) >= 0, column
            else:
                assert row[column] == "", column
    assert all(0 <= float(rows[-1][f"classification/{name}"]) <= 1 for name in names)
    assert any(event["message"].startswith("Classification: accuracy=") for event in done["events"])
    listed = next(item for item in http.get("/v1/fine_tunes").json()["data"] if item["id"] == job["id"])
    assert listed["hyperparams"]["classification_positive_class"] == " weather"


def test_a_number_of_classes_gives_accuracy_and_weighted_f1(client, http):
    job = create(http, client, compute_classification_metrics=True, classification_n_classes=2)
    rows = table(client, finish(http, job))
    assert [name for name in rows[0] if name.startswith("classification/")] == [
        "classification/accuracy",
        "classification/weighted_f1_score",
    ]


def test_nothing_is_echoed_or_measured_that_was_not_asked_for(client, http):
    job = create(http, client, n_epochs=1)
    assert set(job["hyperparams"]) == {"n_epochs", "batch_size", "learning_rate_multiplier", "prompt_loss_weight"}
    assert not any(name.startswith("classification/") for name in table(client, finish(http, job))[0])


def test_other_classes_than_asked_for_fail_the_job(client, http):
    job = create(http, client, compute_classification_metrics=True, classification_n_classes=3)
    done = finish(http, job)
    assert done["status"] == "failed"
    assert "2 different completion(s)" in done["events"][-1]["message"]


@pytest.mark.parametrize(
    ("settings", "validated", "param"),
    [
        ({"classification_n_classes": 2}, False, "compute_classification_metrics"),
        ({}, True, "compute_classification_metrics"),
        ({"classification_n_classes": 1}, True, "classification_n_classes"),
        ({"classification_n_classes": 101}, True, "classification_n_classes"),
        (
            {"classification_positive_class": " weather", "classification_n_classes": 3},
            True,
            "classification_n_classes",
        ),
        ({"classification_positive_class": ""}, True, "classification_positive_class"),
        (
            {"classification_positive_class": " weather", "classification_betas": [0]},
            True,
            "classification_betas",
        ),
        (
            {"classification_positive_class": " weather", "classification_betas": [1] * 11},
            True,
            "classification_betas",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(client, http, settings, validated, param):
    answer = create(http, client, 400, validated, compute_classification_metrics=True, **settings)
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]


def test_the_events_come_in_their_usual_order(client, http):
    done = finish(http, create(http, client, n_epochs=1))
    messages = [event["message"] for event in done["events"]]
    wanted = [
        f"Created fine-tune: {done['id']}",
        "Fine-tune enqueued. Queue number: ",
        "Fine-tune started",
        "Completed epoch 1/1",
        f"Uploaded model: {done['fine_tuned_model']}",
        f"Uploaded result file: {done['result_files'][0]['id']}",
        "Fine-tune succeeded",
    ]
    places = [next(i for i, message in enumerate(messages) if message.startswith(text)) for text in wanted]
    assert places == sorted(places)
    assert places[-1] == len(messages) - 1
