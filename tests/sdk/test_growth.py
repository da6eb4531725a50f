"""Lists and queues that grow: pages of many models, a bound on unfinished jobs, deletions against new jobs, retention."""

import re
import shutil
import subprocess
import threading

import attunelib
import httpx
import openai
import pytest
from conftest import sdk, upload, wait_for

pytestmark = pytest.mark.timeout(300)

JOBS = 3
RACES = 60


@pytest.fixture(scope="module")
def still(start_server):
    """A server that runs no jobs, so that they stay in its queue."""
    settings = {"ATTUNE_TRAINING__MAX_UNFINISHED_JOBS": str(JOBS), "ATTUNE_ALIASES": '{other="demo"}'}
    return start_server("--no-worker", settings=settings)


@pytest.fixture(scope="module")
def still_client(still):
    with sdk(still) as client:
        yield client


def sql(server, statement):
    """Runs SQL in the server's private database and returns what it selects."""
    (folder,) = {found.group(1) for line in server.log if (found := re.search(r"socket in ([^)\s]+)", line))}
    command = [shutil.which("psql"), "-h", folder, "-U", "attune", "-d", "attune", "-qAt", "-v", "ON_ERROR_STOP=1"]
    done = subprocess.run([*command, "-c", statement], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_psql = pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")


@needs_psql
def test_ten_thousand_models_are_listed_whole_by_pages(still, still_client):
    sql(
        still,
        "insert into fine_tuned_models (organization, name, base, adapter, created_at) select 'local', 'many-' || n, "
        "'demo', 'aa', to_timestamp(1000 + n / 3) from generate_series(1, 10050) n",
    )
    try:
        expected = {"demo", "other", *(f"many-{n}" for n in range(1, 10051))}
        page = still_client.models.list()
        assert (len(page.data), page.has_more) == (10_000, True)
        assert (page.first_id, page.last_id) == (page.data[0].id, page.data[-1].id)
        models = [model.id for model in page.data]
        while page.has_more:
            page = still_client.models.list(extra_query={"after": page.last_id})
            models += [model.id for model in page.data]
        assert len(models) == len(set(models)) and set(models) == expected

        for path in ("/v1/models", "/v1/engines"):
            ids, after = [], ""
            while True:
                answer = httpx.get(f"{still.url}{path}?limit=2500&after={after}", timeout=60).json()
                ids += [item["id"] for item in answer["data"]]
                assert len(answer["data"]) <= 2500
                if not answer["has_more"]:
                    break
                after = answer["last_id"]
            assert ids == models
    finally:
        sql(still, "delete from fine_tuned_models where name like 'many-%'")
    answer = httpx.get(f"{still.url}/v1/models?after=nothing", timeout=60).json()
    assert (answer["data"], answer["has_more"], answer["last_id"]) == ([], False, None)
    answer = httpx.get(f"{still.url}/v1/models", timeout=60).json()
    assert [model["id"] for model in answer["data"]] == ["demo", "other"] and answer["has_more"] is False
    for after, rest in (("demo", ["other"]), ("other", [])):
        answer = httpx.get(f"{still.url}/v1/models?after={after}", timeout=60).json()
        assert [model["id"] for model in answer["data"]] == rest


def test_an_organisation_cannot_fill_the_queue_without_a_bound(still, still_client, tickets):
    file = upload(still_client, tickets[:12])
    added, refused = [], []

    def create(_):
        try:
            added.append(still_client.fine_tuning.jobs.create(model="demo", training_file=file).id)
        except openai.RateLimitError as fault:
            refused.append(fault)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(4 * JOBS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(added), len(refused)) == (JOBS, 3 * JOBS)
    fault = refused[0]
    assert fault.code == "rate_limit_exceeded"
    assert "training.max_unfinished_jobs" in fault.message and str(JOBS) in fault.message
    assert fault.response.headers["x-should-retry"] == "false", "an hour may pass before a place is free"
    older = httpx.post(f"{still.url}/v1/fine_tunes", json={"model": "demo", "training_file": file}, timeout=60)
    assert older.status_code == 429, "both resources count"
    still_client.fine_tuning.jobs.cancel(added[0])
    added.append(still_client.fine_tuning.jobs.create(model="demo", training_file=file).id)
    for job in added[1:]:
        still_client.fine_tuning.jobs.cancel(job)


def test_either_a_file_is_deleted_or_the_job_that_names_it_is_created(still, still_client, tickets):
    for race in range(RACES):
        file = upload(still_client, tickets[:12])
        answers = {}

        def delete(file=file, answers=answers):
            answers["deleted"] = httpx.delete(f"{still.url}/v1/files/{file}", timeout=60)

        def create(file=file, answers=answers):
            body = {"model": "demo", "training_file": file}
            answers["created"] = httpx.post(f"{still.url}/v1/fine_tuning/jobs", json=body, timeout=60)

        threads = [threading.Thread(target=work) for work in ((delete, create) if race % 2 else (create, delete))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deleted, created = answers["deleted"], answers["created"]
        assert sorted((deleted.status_code, created.status_code)) == [200, 400], (deleted.text, created.text)
        if created.status_code == 200:
            assert deleted.json()["error"]["param"] == "file_id"
            still_client.fine_tuning.jobs.cancel(created.json()["id"])
        else:
            error = created.json()["error"]
            assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")


@needs_psql
def test_a_model_that_a_waiting_job_trains_further_is_not_deleted(still, still_client, tickets):
    sql(
        still,
        "insert into fine_tuned_models (organization, name, base, adapter) values ('local', 'ft:demo:local::x', 'demo', 'aa')",
    )
    file = upload(still_client, tickets[:12])
    job = still_client.fine_tuning.jobs.create(model="ft:demo:local::x", training_file=file)
    with pytest.raises(openai.BadRequestError) as fault:
        still_client.models.delete("ft:demo:local::x")
    assert fault.value.param == "model" and job.id in fault.value.message
    still_client.fine_tuning.jobs.cancel(job.id)
    assert still_client.models.delete("ft:demo:local::x").deleted
    with pytest.raises(openai.NotFoundError) as fault:
        still_client.fine_tuning.jobs.create(model="ft:demo:local::x", training_file=file)
    assert fault.value.param == "model"


@needs_psql
def test_what_is_old_is_removed_by_a_running_server_and_what_serves_stays(start_server, tickets):
    data = attunelib.data_folder()
    server = start_server("--no-worker", data_dir=data)
    try:
        with sdk(server) as client:
            file = upload(client, tickets[:12])
            jobs = [client.fine_tuning.jobs.create(model="demo", training_file=file).id for _ in range(3)]
            for job in jobs[:2]:
                client.fine_tuning.jobs.cancel(job)
        sql(server, f"update jobs set finished_at = now() - interval '100 days' where id = '{jobs[0]}'")
        sql(server, f"update jobs set finished_at = now() - interval '400 days' where id = '{jobs[1]}'")
        server.stop()
        server = start_server("--no-worker", data_dir=data)

        def status(job):
            return httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job}", timeout=60).status_code

        def events(job):
            return len(httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job}/events", timeout=60).json()["data"])

        wait_for(lambda: status(jobs[1]) == 404, "the end of the job that ended 400 days ago")
        wait_for(lambda: events(jobs[0]) == 0, "the end of the events of the job that ended 100 days ago")
        assert status(jobs[0]) == 200
        assert events(jobs[2]) > 0
        assert httpx.get(f"{server.url}/v1/files/{file}", timeout=60).status_code == 200
    finally:
        server.stop()
        shutil.rmtree(data, ignore_errors=True)


@needs_psql
def test_events_of_a_fine_tune_are_read_in_pages(still, still_client, tickets):
    file = upload(still_client, tickets[:12])
    made = httpx.post(f"{still.url}/v1/fine_tunes", json={"model": "demo", "training_file": file}, timeout=60).json()
    sql(
        still,
        "insert into job_events (job, attempt, message) select key, 0, 'step ' || n from jobs, "
        f"generate_series(1, 10020) n where id = '{made['id']}' order by n",
    )
    url = f"{still.url}/v1/fine_tunes/{made['id']}"
    whole = httpx.get(url, timeout=60).json()
    assert len(whole["events"]) == 10_000 and whole["has_more_events"] is True
    messages, after = [], ""
    while True:
        page = httpx.get(f"{url}/events?limit=4000&after={after}", timeout=60).json()
        messages += [event["message"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert messages[-10020:] == [f"step {n}" for n in range(1, 10021)]
    assert len(messages) == 10_020 + len(made["events"])
    httpx.post(f"{url}/cancel", timeout=60)
