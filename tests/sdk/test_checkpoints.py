"""Checkpoints of a job as models: listed, asked, deleted."""

import openai
import pytest
from conftest import QUICK, create_job, model_ids, upload, wait_for, wait_for_end

pytestmark = pytest.mark.timeout(240)
EXAMPLES, EPOCHS = 20, 4
STEPS = EXAMPLES // QUICK["batch_size"]


@pytest.fixture(scope="module")
def finished(client, tickets):
    files = [upload(client, lines) for lines in (tickets[:EXAMPLES], tickets[EXAMPLES : EXAMPLES + 4])]
    job = create_job(client, files[0], {**QUICK, "n_epochs": EPOCHS}, validation_file=files[1])
    job = wait_for_end(client, job.id)
    assert job.status == "succeeded", job.error
    return job


@pytest.fixture(scope="module")
def checkpoints(client, finished):
    return list(client.fine_tuning.jobs.checkpoints.list(finished.id))


def answer(client, model, ticket):
    """The greedy answer to a letter."""
    return client.chat.completions.create(
        model=model, messages=ticket["messages"][:1], temperature=0, max_tokens=60
    ).choices[0].message.content


def test_the_last_three_epochs_are_listed_newest_first(client, finished, checkpoints):
    assert [checkpoint.step_number for checkpoint in checkpoints] == [STEPS * epoch for epoch in (4, 3, 2)]
    for checkpoint in checkpoints:
        assert checkpoint.object == "fine_tuning.job.checkpoint"
        assert checkpoint.id.startswith("ftckpt_")
        assert checkpoint.fine_tuning_job_id == finished.id
        assert checkpoint.created_at >= finished.created_at
        name = f"{finished.fine_tuned_model}:ckpt-step-{checkpoint.step_number}"
        assert checkpoint.fine_tuned_model_checkpoint == name
        metrics = checkpoint.metrics
        assert metrics.step == checkpoint.step_number
        assert metrics.train_loss > 0
        assert metrics.full_valid_loss == metrics.valid_loss > 0
        assert 0 <= metrics.full_valid_mean_token_accuracy <= 1
    events = client.fine_tuning.jobs.list_events(finished.id, limit=100)
    losses = {event.data["step"]: event.data["train_loss"] for event in events if event.type == "metrics"}
    assert [losses[checkpoint.step_number] for checkpoint in checkpoints] == [
        checkpoint.metrics.train_loss for checkpoint in checkpoints
    ]


def test_checkpoints_come_in_pages(http, finished, checkpoints):
    ids = [checkpoint.id for checkpoint in checkpoints]

    def page(**query):
        answer = http.get(f"/v1/fine_tuning/jobs/{finished.id}/checkpoints", params=query)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["object"] == "list"
        found = [item["id"] for item in body["data"]]
        assert (body["first_id"], body["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        return found, body["has_more"]

    assert page() == (ids, False)
    assert page(limit=3) == (ids, False)
    assert page(limit=2) == (ids[:2], True)
    assert page(limit=2, after=ids[1]) == (ids[2:], False)
    assert page(after=ids[2]) == ([], False)
    assert page(after="ftckpt_nobody") == ([], False)


def test_a_job_without_validation_has_checkpoints_without_its_figures(client, tickets):
    job = create_job(client, upload(client, tickets[:12]), {**QUICK, "n_epochs": 1})
    assert wait_for_end(client, job.id).status == "succeeded"
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.metrics.train_mean_token_accuracy is not None
    assert checkpoint.metrics.valid_loss is None


def test_checkpoints_are_models_of_their_organisation(client, finished, checkpoints):
    listed = {model.id: model for model in client.models.list()}
    final = listed[finished.fine_tuned_model]
    for checkpoint in checkpoints:
        name = checkpoint.fine_tuned_model_checkpoint
        assert listed[name].owned_by == final.owned_by == finished.organization_id
        assert client.models.retrieve(name).id == name


def test_each_checkpoint_answers_in_its_own_way_and_the_last_one_as_the_final_model(
    client, finished, checkpoints, heldout
):
    names = [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints]
    final = [answer(client, finished.fine_tuned_model, ticket) for ticket in heldout[:3]]
    assert [answer(client, names[0], ticket) for ticket in heldout[:3]] == final

    def vector(model):
        return client.embeddings.create(model=model, input="Hello!").data[0].embedding

    assert vector(names[0]) == pytest.approx(vector(finished.fine_tuned_model), abs=1e-5)
    assert vector(names[1]) != pytest.approx(vector(names[0]), abs=1e-5)


def test_a_checkpoint_answers_while_its_job_still_runs(client, tickets, heldout):
    job = create_job(client, upload(client, tickets[:12]), {**QUICK, "n_epochs": 50})
    try:
        checkpoint = wait_for(lambda: client.fine_tuning.jobs.checkpoints.list(job.id).data, "a checkpoint")[0]
        model = checkpoint.fine_tuned_model_checkpoint
        try:
            assert answer(client, model, heldout[0])
        except openai.NotFoundError:
            # Three epochs went by in the meantime.
            assert model not in model_ids(client)
            newest = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
            assert answer(client, newest.fine_tuned_model_checkpoint, heldout[0])
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    finally:
        client.fine_tuning.jobs.cancel(job.id)
        wait_for_end(client, job.id)
    # What was made stays: it is deleted as every model is.
    left = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert left
    for checkpoint in left:
        assert client.models.delete(checkpoint.fine_tuned_model_checkpoint).deleted
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_a_job_goes_on_from_a_checkpoint(client, tickets, checkpoints):
    settings = {name: value for name, value in QUICK.items() if name not in ("rank", "alpha")}
    job = client.fine_tuning.jobs.create(
        model=checkpoints[-1].fine_tuned_model_checkpoint,
        training_file=upload(client, tickets[:12]),
        method={"type": "supervised", "supervised": {"hyperparameters": {**settings, "n_epochs": 1}}},
    )
    job = wait_for_end(client, job.id)
    assert job.status == "succeeded", job.error
    assert ":ckpt-step-" not in job.fine_tuned_model


def test_models_and_their_checkpoints_are_deleted_one_by_one(client, finished, checkpoints, heldout):
    first, *others = [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints]
    client.models.delete(finished.fine_tuned_model)
    assert answer(client, first, heldout[0])
    client.models.delete(first)
    with pytest.raises(openai.NotFoundError) as fault:
        answer(client, first, heldout[0])
    assert fault.value.code == "model_not_found"
    left = [item.fine_tuned_model_checkpoint for item in client.fine_tuning.jobs.checkpoints.list(finished.id)]
    assert left == others
    assert answer(client, others[0], heldout[0])


def test_an_unknown_job_has_no_checkpoints(client):
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.checkpoints.list("ftjob-nobody")
