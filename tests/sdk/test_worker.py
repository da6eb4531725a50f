"""`attune worker` as those who watch it see it: a busy one, one that hangs, and its metrics."""

import os
import re

import attunelib
import httpx
import pytest
from conftest import create_job, sdk, upload, wait_for
from test_process import run


@pytest.fixture
def start_worker(binary, start_server, tickets):
    """A function that starts a worker with a queued job; `before` is called with the path of the training file."""
    workers = []

    def start(before=lambda path: None, **settings):
        server = start_server("--no-worker")
        with sdk(server) as client:
            file = upload(client, tickets[:16])
            create_job(client, training_file=file)
        server.stop()
        before(server.data_dir / "blobs" / "files" / file)
        settings = {f"ATTUNE_TRAINING__{name.upper()}": str(value) for name, value in settings.items()}
        worker = attunelib.Server(binary, server.data_dir, settings=settings, command="worker")
        workers.append(worker)
        return worker.start()

    yield start
    for worker in workers:
        worker.stop()


def metric(worker, name):
    """The value of a metric; `None` if it is not there."""
    text = httpx.get(worker.url + "/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return found and float(found[1])


def status(worker, path):
    return httpx.get(worker.url + path).status_code


def test_a_worker_tells_that_it_is_well_and_what_it_trains_and_nothing_else(binary, start_worker):
    worker = start_worker()
    seen = set()

    def is_done():
        seen.update(status(worker, path) for path in ("/health", "/ready"))
        return metric(worker, 'attune_training_attempts_total{outcome="succeeded"}')

    assert wait_for(is_done, "the end of the job") == 1
    assert seen == {200}
    assert metric(worker, 'attune_training_steps_total{model="demo"}') > 0
    assert metric(worker, 'attune_training_tokens_total{model="demo"}') > 100
    assert metric(worker, "attune_training_running") == 0
    assert metric(worker, "attune_worker_silent_seconds") < 60

    address = {"ATTUNE_WORKER_LISTEN": worker.url.removeprefix("http://")}
    assert run(binary, "health", "--worker", settings=address).returncode == 0
    for path in ("/v1/models", "/models", "/docs", "/v1/files"):
        assert status(worker, path) == 404, path
    worker.stop()
    assert worker.process.returncode == 0
    asked = run(binary, "health", "--worker", settings=address)
    assert asked.returncode == 1 and address["ATTUNE_WORKER_LISTEN"] in asked.stderr


def test_the_health_check_of_a_worker_that_listens_nowhere_says_what_to_set(binary):
    asked = run(binary, "health", "--worker")
    assert asked.returncode == 1 and "ATTUNE_WORKER_LISTEN" in asked.stderr


def test_a_worker_that_hangs_says_that_it_is_stuck_until_it_turns_again(binary, start_worker):
    """A pipe in the file's place: opening it waits until somebody writes, as on a network disk that does not answer."""
    places = []

    def hang(path):
        kept = path.with_name("kept")
        path.rename(kept)
        os.mkfifo(path)
        places.extend([path, kept])

    worker = start_worker(hang, stuck_after_seconds=10)
    wait_for(lambda: status(worker, "/health") == 503, "the word that it is stuck")
    assert httpx.get(worker.url + "/health").json() == {"status": "stuck"}
    assert status(worker, "/ready") == 503
    assert metric(worker, "attune_worker_silent_seconds") > 10
    assert metric(worker, "attune_training_running") == 1
    assert run(binary, "health", "--listen", worker.url.removeprefix("http://")).returncode == 1

    path, kept = places
    pipe = path.with_name("pipe")
    path.rename(pipe)
    kept.rename(path)
    os.close(os.open(pipe, os.O_WRONLY))
    wait_for(lambda: status(worker, "/health") == 200, "the word that it turns again")
    assert status(worker, "/ready") == 200


def test_a_time_that_an_idle_worker_would_exceed_is_refused(binary, tmp_path):
    said = run(binary, "worker", "--data-dir", tmp_path, settings={"ATTUNE_TRAINING__STUCK_AFTER_SECONDS": "5"})
    assert said.returncode == 1 and "stuck_after_seconds" in said.stderr
