"""The first fine-tuning API, `/v1/fine_tunes`, as plain HTTP: today's clients no longer know it."""

import json

import pytest
from conftest import as_prompts, model_ids, upload, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def training_file(client, tickets):
    return upload(client, as_prompts(tickets[:24]))


def create(http, training_file, path="/v1/fine_tunes", **settings):
    answer = http.post(path, json={"model": "demo", "training_file": training_file, "batch_size": 4, **settings})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(http, job):
    """The data of a job's stream of events, until the server closes it."""
    with http.stream("GET", f"/v1/fine_tunes/{job['id']}/events", params={"stream": "true"}, timeout=120) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def test_a_fine_tune_streams_its_events_to_the_end(client, http, training_file):
    job = create(http, training_file, n_epochs=1, suffix="old style")
    assert job["object"] == "fine-tune"
    assert job["id"].startswith("ft-")
    assert job["status"] in ("pending", "created", "running")
    assert job["hyperparams"]["n_epochs"] == 1
    assert [file["id"] for file in job["training_files"]] == [training_file]

    *history, last = stream(http, job)
    assert last == "[DONE]"
    history = [json.loads(event) for event in history]
    assert {event["object"] for event in history} == {"fine-tune-event"}
    assert job["id"] in history[0]["message"]

    done = http.get(f"/v1/fine_tunes/{job['id']}").json()
    assert done["status"] == "succeeded"
    assert done["fine_tuned_model"].startswith("demo:ft-")
    assert ":old-style-20" in done["fine_tuned_model"], "the suffix, then the time"
    assert [event["message"] for event in done["events"]] == [event["message"] for event in history]
    assert done["result_files"][0]["purpose"] == "fine-tune-results"
    assert client.completions.create(model=done["fine_tuned_model"], prompt="Hello", max_tokens=4).choices[0].text

    # A finished job replays its history and ends.
    assert [json.loads(event) for event in stream(http, job) if event != "[DONE]"] == history
    assert job["id"] in [other["id"] for other in http.get("/v1/fine_tunes").json()["data"]]
    client.models.delete(done["fine_tuned_model"])


def test_the_old_spelling_is_the_same_resource(http, training_file):
    job = create(http, training_file, path="/v1/fine-tunes", n_epochs=50)
    assert http.get(f"/fine_tunes/{job['id']}").json()["id"] == job["id"]
    assert http.post(f"/v1/fine-tunes/{job['id']}/cancel").status_code == 200
    assert list(stream(http, job))[-1] == "[DONE]"


def test_a_running_fine_tune_is_cancelled_and_its_stream_ends(client, http, training_file):
    before = model_ids(client)
    job = create(http, training_file, n_epochs=50)
    wait_for(lambda: http.get(f"/v1/fine_tunes/{job['id']}").json()["status"] == "running", "the start", within=90)
    assert http.post(f"/v1/fine_tunes/{job['id']}/cancel").status_code == 200
    assert list(stream(http, job))[-1] == "[DONE]"
    assert http.get(f"/v1/fine_tunes/{job['id']}").json()["status"] == "cancelled"
    assert model_ids(client) == before


def test_an_unknown_fine_tune_is_not_found(http):
    answer = http.get("/v1/fine_tunes/ft-nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["classification_positive_class", "model"])
def test_a_text_that_is_too_long_to_be_stored_is_refused_by_its_name(http, training_file, field):
    answer = http.post("/v1/fine_tunes", json={"training_file": training_file, field: "x" * 10_000})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, "string_above_max_length")
    assert len(answer.content) < 1000, "it is not sent back"


def test_a_list_describes_the_files_that_are_left(client, http, tickets):
    kept, deleted = upload(client, tickets[:12]), upload(client, tickets[:12])
    made = []
    for file in (kept, deleted, kept):
        job = http.post("/v1/fine_tunes", json={"training_file": file, "n_epochs": 50}).json()
        http.post(f"/v1/fine_tunes/{job['id']}/cancel")
        made.append(job["id"])
    wait_for(lambda: http.get(f"/v1/fine_tunes/{made[1]}").json()["status"] == "cancelled", "the end of the job")
    client.files.delete(deleted)
    listed = {job["id"]: job for job in http.get("/v1/fine_tunes").json()["data"]}
    files = [[file["id"] for file in listed[job]["training_files"]] for job in made]
    assert files == [[kept], [], [kept]]
