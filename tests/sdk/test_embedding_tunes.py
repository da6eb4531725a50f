"""Fine-tuning embeddings: from a file of pairs of texts to a model whose vectors find what belongs together."""

import math
import re
import subprocess

import attunelib
import openai
import pytest
from conftest import create_job, events, upload, wait_for, wait_for_end

pytestmark = pytest.mark.timeout(240)

SETTINGS = {"n_epochs": 3, "batch_size": 32, "rank": 8, "alpha": 16}


def texts(ticket):
    """A letter and the ticket that it became."""
    return [message["content"] for message in ticket["messages"][-2:]]


def pairs(tickets):
    return [dict(zip(("anchor", "positive"), texts(ticket), strict=True)) for ticket in tickets]


def embed(client, model, inputs):
    return [item.embedding for item in client.embeddings.create(model=model, input=inputs).data]


def likeness(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def scores(client, model, lines):
    """The similarity of every anchor to every positive."""
    anchors = embed(client, model, [line["anchor"] for line in lines])
    positives = embed(client, model, [line["positive"] for line in lines])
    return [[likeness(anchor, positive) for positive in positives] for anchor in anchors]


def found(scores):
    """Share of the anchors to which their own positive is the nearest."""
    return sum(row.index(max(row)) == place for place, row in enumerate(scores)) / len(scores)


def ranking_loss(scores, scale):
    def cross_entropy(place, row):
        return math.log(sum(math.exp(scale * score) for score in row)) - scale * row[place]

    return sum(cross_entropy(place, row) for place, row in enumerate(scores)) / len(scores)


@pytest.fixture(scope="module")
def finished(client, tickets, heldout):
    held_out = upload(client, pairs(heldout[:24]))
    job = create_job(client, upload(client, pairs(tickets[:400])), SETTINGS, validation_file=held_out, suffix="find")
    job = wait_for_end(client, job.id, within=200)
    assert job.status == "succeeded", job.error
    return job


def test_the_new_model_finds_held_out_texts_that_the_base_does_not(client, heldout, finished):
    lines = pairs(heldout[24:])
    before, after = (found(scores(client, model, lines)) for model in ("demo", finished.fine_tuned_model))
    assert after > 0.7, (before, after)
    assert after > before + 0.5, (before, after)


def test_what_training_measured_is_what_the_server_answers(client, heldout, finished):
    """The loss of the validation file, computed anew with vectors of `/v1/embeddings`."""
    lines = pairs(heldout[:24])
    metrics = [event.data for event in events(client, finished.id) if event.type == "metrics"]
    served = scores(client, finished.fine_tuned_model, lines)
    assert metrics[-1]["full_valid_loss"] == pytest.approx(ranking_loss(served, 20), rel=1e-3, abs=1e-4)
    assert metrics[-1]["full_valid_accuracy"] == pytest.approx(found(served))
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert metrics[-1]["valid_loss"] < metrics[0]["train_loss"]
    assert 0 <= metrics[0]["train_accuracy"] < metrics[-1]["train_accuracy"] <= 1
    assert "train_mean_token_accuracy" not in metrics[0]


def test_checkpoints_and_results_have_figures_of_pairs(client, http, finished):
    checkpoints = http.get(f"/v1/fine_tuning/jobs/{finished.id}/checkpoints").json()["data"]
    assert len(checkpoints) == 3
    assert {"train_accuracy", "valid_accuracy", "full_valid_accuracy"} <= checkpoints[0]["metrics"].keys()
    assert embed(client, checkpoints[-1]["fine_tuned_model_checkpoint"], "hello")
    (result,) = finished.result_files
    header, *_, last = client.files.content(result).text.splitlines()
    assert header == (
        "step,train_loss,train_accuracy,valid_loss,valid_accuracy,full_valid_loss,full_valid_accuracy,"
        "valid_recall_at_1,valid_recall_at_10"
    )
    figures = dict(zip(header.split(","), last.split(","), strict=True))
    assert 0 <= float(figures["valid_recall_at_1"]) <= float(figures["valid_recall_at_10"]) <= 1


def test_what_is_found_is_counted_before_training_and_after_it(client, heldout, finished):
    """Recall of the validation file, computed anew with vectors of `/v1/embeddings`."""
    lines = pairs(heldout[:24])
    last = [event.data for event in events(client, finished.id) if event.type == "metrics"][-1]
    for model, name in (("demo", "valid_recall_at_1_before"), (finished.fine_tuned_model, "valid_recall_at_1")):
        assert last[name] == pytest.approx(found(scores(client, model, lines)))
    messages = [event.message for event in events(client, finished.id)]
    assert any(message.startswith("Before training: recall@1 ") for message in messages), messages
    assert any("The final model: recall@1 " in message for message in messages), messages


def test_scores_are_learned_as_cosines(client, tickets):
    own = [dict(zip(("sentence1", "sentence2"), texts(ticket), strict=True), score=0.9) for ticket in tickets[:60]]
    others = [
        {"sentence1": texts(ticket)[0], "sentence2": texts(other)[1], "score": 0.1}
        for ticket, other in zip(tickets[:60], tickets[61:121], strict=True)
    ]
    file = upload(client, own + others)
    job = create_job(client, file, SETTINGS | {"loss": "cosine_similarity", "batch_size": 16}, validation_file=file)
    job = wait_for_end(client, job.id, within=200)
    assert job.status == "succeeded", job.error
    last = [event.data for event in events(client, job.id) if event.type == "metrics"][-1]
    assert last["valid_rank_correlation"] > last["valid_rank_correlation_before"]

    def distance(model):
        lines = (own[:10]) + others[:10]
        first = embed(client, model, [line["sentence1"] for line in lines])
        second = embed(client, model, [line["sentence2"] for line in lines])
        cosines = map(likeness, first, second)
        return sum((cosine - line["score"]) ** 2 for cosine, line in zip(cosines, lines, strict=True))

    assert distance(job.fine_tuned_model) < distance("demo")


def test_the_job_tells_its_settings_and_what_it_trains_on(client, http, finished):
    job = http.get(f"/v1/fine_tuning/jobs/{finished.id}").json()
    settings = job["method"]["supervised"]["hyperparameters"]
    assert (settings["scale"], settings["batch_size"]) == (20, 32)
    assert "auto" not in settings.values()
    messages = [event.message for event in events(client, finished.id)]
    assert any(message.startswith("Training on 400 pairs of texts with ") for message in messages), messages


def test_watching_shows_the_accuracy(binary, server, finished):
    full = [str(binary), "jobs", "watch", finished.id, "--url", server.url]
    done = subprocess.run(full, capture_output=True, text=True, timeout=60, env=attunelib.environment({}))
    assert done.returncode == 0, done.stderr
    assert re.search(r" loss [\d.]+, accuracy [\d.]+, validation loss [\d.]+, validation accuracy ", done.stdout)


def test_an_estimate_knows_pairs_and_chooses_larger_batches(http, client, tickets):
    lines = pairs(tickets[:400])
    lines[5]["negative"] = [lines[7]["positive"], lines[8]["positive"]]
    body = {"model": "demo", "training_file": upload(client, lines), "hyperparameters": {"n_epochs": 3}}
    answer = http.post("/v1/fine_tuning/jobs/estimate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    estimate = answer.json()
    assert estimate["hyperparameters"]["scale"] == 20
    assert estimate["hyperparameters"]["batch_size"] == 32
    assert (estimate["examples"], estimate["target_tokens"]) == (400, estimate["trained_tokens"])
    assert estimate["tokens_per_second"] > 0 and estimate["memory_bytes"]["peak"] > estimate["memory_bytes"]["loss"] > 0
    assert estimate["steps"] >= 3 * math.ceil(400 / 32)


def test_the_older_resource_takes_pairs_in_other_spellings(http, client, tickets):
    lines = [{"query": letter, "document": ticket, "negative": "something else"} for letter, ticket in map(texts, tickets[:12])]
    body = {"training_file": upload(client, lines), "model": "demo", "n_epochs": 1, "batch_size": 4}
    tune = http.post("/v1/fine_tunes", json=body).json()

    def ended():
        job = http.get(f"/v1/fine_tunes/{tune['id']}").json()
        return job if job["status"] in ("succeeded", "failed", "cancelled") else None

    job = wait_for(ended, "the end of the fine-tune")
    assert job["status"] == "succeeded", job["events"]
    assert job["hyperparams"]["prompt_loss_weight"] == 0
    # All have the same negative, which no batch takes twice.
    assert any("A step has 1.0 pairs on average" in event["message"] for event in job["events"])
    assert len(embed(client, job["fine_tuned_model"], ["a letter"])) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"anchor": "a"}, "has no `positive`"),
        ({"anchor": "a", "positive": 3}, "has a number as `positive`"),
        ({"anchor": "a", "positive": "b", "score": 1}, "is a pair of texts with a score, but line 1 is a pair of texts"),
        ({"anchor": "a", "positive": "b", "score": 4.5}, "has 4.5 as `score`, which goes from -1 to 1: divide scores of 0 to 5 by 5"),
        ({"query": "a", "document": "b", "label": 1}, "is a pair of texts with a label, but line 1 is a pair of texts"),
        ({"anchor": "a", "positive": "a"}, "has the same text as `anchor` and `positive`"),
        ({"prompt": "a", "completion": "b"}, "is a prompt and completion, but line 1 is a pair of texts"),
    ],
)
def test_a_wrong_line_is_named(http, client, tickets, line, words):
    lines = pairs(tickets[:11])
    file = upload(client, [*lines[:6], line, *lines[6:]])
    answer = http.post("/v1/fine_tuning/jobs/estimate", json={"model": "demo", "training_file": file})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "training_file", "invalid_training_file")
    assert f"Line 7 {words}" in error["message"]


def test_a_job_of_few_pairs_fails_and_says_how_many_are_needed(client, tickets):
    job = wait_for_end(client, create_job(client, upload(client, pairs(tickets[:4])), SETTINGS).id)
    assert (job.status, job.error.code) == ("failed", "invalid_n_examples")
    assert "4" in job.error.message and "10" in job.error.message


@pytest.mark.parametrize("scale", [0, 1001])
def test_a_scale_out_of_range_is_refused(client, tickets, scale):
    with pytest.raises(openai.BadRequestError) as fault:
        create_job(client, upload(client, pairs(tickets[:10])), {"scale": scale})
    assert fault.value.param == "scale"
