"""Twenty deaths of the server in the middle of training: each job ends in the adapter of a run that nobody disturbed."""

import hashlib
import io
import random
import tarfile
import time

import httpx
import pytest
from conftest import create_job, events, sdk, upload, wait_for_end

DEATHS = 20
# Deaths of one job. Each may come before the first state to go on from, and the third such in a row fails a job.
DEATHS_OF_A_JOB = 2
SEED = 20261123
# Dropout, so that random numbers must be the same after a resume; the best adapter and the validation file are part of the state.
SETTINGS = {
    "n_epochs": 4,
    "batch_size": 4,
    "rank": 8,
    "learning_rate": 2e-3,
    "lora_dropout": 0.1,
    "keep_best": True,
}


def adapter_hash(server, model):
    """SHA-256 of the model's weights."""
    answer = httpx.get(f"{server.url}/v1/models/{model}/adapter", timeout=60)
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith(".safetensors"))
        return hashlib.sha256(archive.extractfile(name).read()).hexdigest()


def result_of(server, client, job):
    """What must be the same: the weights, and the figures of all steps."""
    (file,) = job.result_files
    return adapter_hash(server, job.fine_tuned_model), client.files.content(file).read()


def losses_of_workers(client, job):
    return sum("stopped answering" in event.message for event in events(client, job))


@pytest.mark.timeout(1200)
def test_twenty_deaths_change_no_bit_of_any_adapter(start_server, tickets):
    chance = random.Random(SEED)
    server = start_server()
    with sdk(server) as client:
        files = {"training_file": upload(client, tickets[:32]), "validation_file": upload(client, tickets[32:36])}
        # The first job also measures the machine, the second shows how long one takes.
        first = wait_for_end(client, create_job(client, hyperparameters=SETTINGS, **files).id)
        began = time.monotonic()
        second = wait_for_end(client, create_job(client, hyperparameters=SETTINGS, **files).id)
        seconds = time.monotonic() - began
        assert (first.status, second.status) == ("succeeded", "succeeded"), first.error
        expected = result_of(server, client, first)
        assert result_of(server, client, second) == expected
        job = create_job(client, hyperparameters=SETTINGS, **files).id

    seen, of_this_job, resumed = 0, 0, 0
    while seen < DEATHS:
        time.sleep(chance.uniform(0, seconds))
        server.kill()
        server = start_server(data_dir=server.data_dir)
        with sdk(server) as client:
            # A server that dies before the job begins, or after it ended, does not count.
            lost = losses_of_workers(client, job)
            seen += lost - of_this_job
            was_running, of_this_job = lost > of_this_job, lost
            if was_running and lost < DEATHS_OF_A_JOB and seen < DEATHS:
                continue
            ended = wait_for_end(client, job)
            assert ended.status == "succeeded", ended.error
            assert result_of(server, client, ended) == expected, f"another adapter after {lost} deaths"
            resumed += sum(event.message.startswith("Resumed after step") for event in events(client, job))
            job, of_this_job = create_job(client, hyperparameters=SETTINGS, **files).id, 0
    assert resumed > DEATHS // 4, "hardly any attempt went on from a state"
    assert not list((server.data_dir / "tmp").iterdir()), "short-lived files stay"
    server.stop()
