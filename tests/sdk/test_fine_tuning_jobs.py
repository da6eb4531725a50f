"""Fine-tuning from a file to a model that answers, through `/v1/fine_tuning/jobs`."""

import csv
import io
import json
import statistics
import tarfile
import threading
import time
from dataclasses import dataclass, field

import openai
import pytest
from conftest import QUICK, create_job, events, model_ids, steps, upload, wait_for, wait_for_end

EXAMPLES = 60
PROMPT = "On Friday"


def answer(client, model, ticket):
    """The greedy answer to a letter."""
    return client.chat.completions.create(
        model=model, messages=ticket["messages"][:1], temperature=0, max_tokens=80
    ).choices[0].message.content


def base_text(client, endless, seed):
    """A long answer of the base, as a stream; the moments of its begin and end."""
    start = time.monotonic()
    stream = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=400, temperature=0.8, seed=seed, logit_bias=endless, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in stream), start, time.monotonic()


@dataclass
class Finished:
    """A finished job, and what a user of the base saw meanwhile: texts by seed with their begin and end."""

    job: object
    succeeded_at: float
    streams: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def finished(client, tickets, endless):
    """One job from upload to success, with the base streaming from before its start until after its end."""
    over = threading.Event()
    streams = {}

    def use_the_base():
        while not over.is_set():
            seed = 100 + len(streams)
            streams[seed] = base_text(client, endless, seed)

    bystander = threading.Thread(target=use_the_base)
    bystander.start()
    try:
        job = create_job(client, upload(client, tickets[:EXAMPLES]), suffix="letters", metadata={"purpose": "test"})
        assert job.id.startswith("ftjob-")
        assert job.status in ("validating_files", "queued", "running")
        assert job.fine_tuned_model is None
        job = wait_for_end(client, job.id, within=150)
        succeeded_at = time.monotonic()
    finally:
        over.set()
        bystander.join()
    assert job.status == "succeeded", job.error
    return Finished(job, succeeded_at, streams)


pytestmark = pytest.mark.timeout(240)


def test_a_finished_job_tells_what_it_did(client, finished):
    job = finished.job
    assert job.object == "fine_tuning.job"
    assert job.fine_tuned_model.startswith("ft:demo:")
    assert ":letters:" in job.fine_tuned_model
    assert job.error is None
    assert job.seed == 7
    assert job.metadata == {"purpose": "test"}
    assert job.finished_at >= job.created_at
    assert job.trained_tokens > EXAMPLES * QUICK["n_epochs"] * 20
    assert job.hyperparameters.n_epochs == QUICK["n_epochs"]
    assert job.hyperparameters.batch_size == QUICK["batch_size"]
    assert job.method.type == "supervised"


def test_a_job_is_described_in_full(http, finished):
    job = http.get(f"/v1/fine_tuning/jobs/{finished.job.id}").json()
    assert job["integrations"] == []
    assert job["usage_metrics"] is None
    assert job["shared_with_openai"] is False
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": job["hyperparameters"]}}
    assert "auto" not in job["hyperparameters"].values(), "chosen once it runs"
    assert job["user_provided_suffix"] == "letters"


def test_jobs_are_found_by_their_metadata(client, http, finished):
    def found(**query):
        return [job["id"] for job in http.get("/v1/fine_tuning/jobs", params=query).json()["data"]]

    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"purpose": "test"})] == [finished.job.id]
    assert client.fine_tuning.jobs.list(metadata={"purpose": "another"}).data == []
    assert finished.job.id not in found(metadata="null")
    newest = found(limit=1)
    for cursor in ("after", "starting_after"):
        assert newest[0] not in found(**{cursor: newest[0]})
    assert found(after="ftjob-nobody") == []
    assert found(after="", limit=1) == newest


def test_jobs_are_listed(client, finished):
    assert finished.job.id in [job.id for job in client.fine_tuning.jobs.list()]
    assert len(client.fine_tuning.jobs.list(limit=1).data) == 1


def test_events_tell_the_way_to_the_model_with_falling_loss(client, finished):
    history = events(client, finished.job.id)
    assert all(event.object == "fine_tuning.job.event" and event.message for event in history)
    metrics = [event.data for event in history if event.type == "metrics"]
    reached = [data["step"] for data in metrics]
    assert reached == sorted(set(reached))
    total = EXAMPLES * QUICK["n_epochs"] // QUICK["batch_size"]
    assert {data["total_steps"] for data in metrics} == {total}
    assert reached[-1] == total
    losses = [data["train_loss"] for data in metrics]
    third = len(losses) // 3
    assert statistics.mean(losses[-third:]) < 0.7 * statistics.mean(losses[:third])
    assert any(finished.job.fine_tuned_model in event.message for event in history)


def test_events_come_in_pages_newest_first(client, finished):
    page = client.fine_tuning.jobs.list_events(finished.job.id, limit=2)
    assert len(page.data) == 2
    assert page.has_more
    assert [event.id for event in page] == [event.id for event in events(client, finished.job.id)][::-1]


def test_the_result_file_has_a_line_for_every_step(client, finished):
    (result,) = finished.job.result_files
    table = list(csv.DictReader(io.StringIO(client.files.content(result).text)))
    assert {"step", "train_loss"} <= set(table[0])
    assert [int(row["step"]) for row in table] == list(range(1, len(table) + 1))
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert client.files.retrieve(result).purpose == "fine-tune-results"


def test_the_new_model_is_listed_and_answers_in_its_own_way(client, finished, heldout):
    model = finished.job.fine_tuned_model
    assert model in model_ids(client)
    assert client.models.retrieve(model).id == model
    tuned, base = answer(client, model, heldout[0]), answer(client, "demo", heldout[0])
    assert tuned
    assert tuned != base


def test_the_new_model_gives_embeddings_of_its_own(client, finished):
    def vector(model):
        return client.embeddings.create(model=model, input="Hello!").data[0].embedding

    assert vector(finished.job.fine_tuned_model) != pytest.approx(vector("demo"), abs=1e-4)


def test_base_and_tuned_model_do_not_mix_in_one_batch(client, finished, heldout):
    tuned = finished.job.fine_tuned_model
    wanted = {model: answer(client, model, heldout[0]) for model in ("demo", tuned)}
    got = {}

    def ask(number, model):
        got[number, model] = answer(client, model, heldout[0])

    threads = [threading.Thread(target=ask, args=(number, model)) for number in range(4) for model in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {(number, model): wanted[model] for number in range(4) for model in wanted}


def test_streams_of_the_base_were_not_disturbed_by_the_training(client, finished, endless):
    across = [seed for seed, (_, start, end) in finished.streams.items() if start < finished.succeeded_at <= end]
    during = [seed for seed, (_, _, end) in finished.streams.items() if end < finished.succeeded_at]
    assert across or during
    for seed in across + during[-2:]:
        alone, _, _ = base_text(client, endless, seed)
        assert finished.streams[seed][0] == alone


def test_the_adapter_can_be_downloaded_as_a_peft_folder(http, finished):
    answer = http.get(f"/v1/models/{finished.job.fine_tuned_model}/adapter")
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        files = {name.rsplit("/", 1)[-1]: archive.extractfile(name).read() for name in archive.getnames()}
    config = json.loads(files["adapter_config.json"])
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", QUICK["rank"], QUICK["alpha"])
    weights = files["adapter_model.safetensors"]
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert any(name.endswith("q_proj.lora_A.weight") for name in header)


def test_a_base_model_has_no_adapter(http):
    assert http.get("/v1/models/demo/adapter").status_code in (400, 404)


def test_a_deleted_model_is_gone(client, finished, heldout):
    model = finished.job.fine_tuned_model
    assert client.models.delete(model).deleted
    assert model not in model_ids(client)
    for call in (lambda: client.models.retrieve(model), lambda: answer(client, model, heldout[0])):
        with pytest.raises(openai.NotFoundError) as fault:
            call()
        assert fault.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.delete(model)


@pytest.fixture
def long_job(client, tickets):
    """A job that takes longer than any test, cancelled at the end."""
    job = create_job(client, upload(client, tickets[:EXAMPLES]), {**QUICK, "n_epochs": 50})
    yield job
    if client.fine_tuning.jobs.retrieve(job.id).status not in ("succeeded", "failed", "cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
        wait_for_end(client, job.id)


def test_a_running_job_is_cancelled_and_leaves_no_model(client, long_job):
    def finished_models():
        """Checkpoints of the epochs so far are models of their own and stay."""
        return [model for model in model_ids(client) if ":ckpt-step-" not in model]

    before = finished_models()
    wait_for(lambda: steps(client, long_job.id), "the first step", within=90)
    client.fine_tuning.jobs.cancel(long_job.id)
    job = wait_for_end(client, long_job.id)
    assert job.status == "cancelled"
    assert job.fine_tuned_model is None
    assert finished_models() == before
    with pytest.raises((openai.BadRequestError, openai.ConflictError)):
        client.fine_tuning.jobs.cancel(long_job.id)


def test_a_paused_job_stops_and_goes_on(client, long_job):
    def is_now(status):
        return lambda: client.fine_tuning.jobs.retrieve(long_job.id).status == status

    wait_for(lambda: steps(client, long_job.id), "the first step", within=90)
    client.fine_tuning.jobs.pause(long_job.id)
    wait_for(is_now("paused"), "the pause")
    before = steps(client, long_job.id)
    client.fine_tuning.jobs.resume(long_job.id)
    wait_for(lambda: steps(client, long_job.id)[-1] > before[-1], "a step after the pause")
    after = steps(client, long_job.id)
    assert after[: len(before)] == before, "the steps before the pause are kept"
    assert min(after[len(before) :]) > before[0], "training began again from the start"


def test_an_unknown_job_is_not_found(client):
    for call in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError):
            call("ftjob-nobody")


@pytest.mark.parametrize(
    ("settings", "param"),
    [({"training_file": "file-nobody"}, "training_file"), ({"suffix": "x" * 65}, "suffix"), ({"seed": -1}, "seed")],
)
def test_a_wrong_field_of_a_new_job_is_named(client, tickets, settings, param):
    training_file = settings.pop("training_file", None) or upload(client, tickets[:10])
    with pytest.raises(openai.BadRequestError) as fault:
        create_job(client, training_file, **settings)
    assert fault.value.param == param


@pytest.mark.parametrize(
    ("settings", "param", "advice"),
    [
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"epochs": 5}}}},
         "method.supervised.hyperparameters.epochs", "Did you mean 'n_epochs'?"),
        ({"hyperparameters": {"lr": 1e-4}}, "hyperparameters.lr", "Did you mean 'learning_rate'?"),
        ({"n_epochs": 3}, "n_epochs", "It belongs inside 'method.supervised.hyperparameters'."),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "write 3 without quotation marks"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/estimate"])
def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(http, path, settings, param, advice):
    answer = http.post(path, json={"model": "demo", "training_file": "file-x", **settings})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert advice in error["message"]


def test_a_new_job_on_an_unknown_model_is_refused_and_told_which_there_are(client, tickets):
    with pytest.raises(openai.NotFoundError) as fault:
        client.fine_tuning.jobs.create(model="nobody", training_file=upload(client, tickets[:10]))
    assert "Base models of this server: `demo`." in fault.value.message
