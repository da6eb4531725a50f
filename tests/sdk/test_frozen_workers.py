"""Workers that stand still for longer than their lease and wake up when another one has their job: the job ends in the
adapter of a run that nobody disturbed, with one result file, and nobody starts over."""

import os
import random
import re
import signal

import attunelib
import pytest
from conftest import ask_database, create_job, events, sdk, upload, wait_for, wait_for_end
from test_crashes import result_of

ROUNDS = 3
SEED = 20261129
SETTINGS = {"n_epochs": 14, "batch_size": 4, "rank": 8, "learning_rate": 2e-3, "lora_dropout": 0.1}


@pytest.fixture
def shared(binary, start_server):
    """A server that answers only, two workers on its database and its folder, and a function that asks the database."""
    server = start_server("--no-worker")
    socket = next(found[1] for line in server.log if (found := re.search(r"socket in (/\S+?)\)", line)))
    database = {"ATTUNE_DATABASE_URL": f"postgres://attune@localhost/attune?host={socket}"}
    workers = [attunelib.Server(binary, server.data_dir, settings=database, command="worker") for _ in range(2)]

    def ask(sql):
        return ask_database(server, sql)

    for worker in workers:
        worker.start()
    yield server, ask
    for worker in workers:
        worker.process.send_signal(signal.SIGCONT)
        worker.stop()
    server.stop()


@pytest.mark.timeout(420)
def test_a_worker_that_wakes_up_too_late_takes_nothing_from_the_job(shared, tickets):
    chance = random.Random(SEED)
    server, ask = shared
    with sdk(server) as client:
        files = {"training_file": upload(client, tickets[:32]), "validation_file": upload(client, tickets[32:36])}
        undisturbed = wait_for_end(client, create_job(client, hyperparameters=SETTINGS, **files).id, within=180)
        assert undisturbed.status == "succeeded", undisturbed.error
        expected = result_of(server, client, undisturbed)

        job = create_job(client, hyperparameters=SETTINGS, **files).id
        row = f"from jobs where id = '{job}'"
        frozen = None
        for _ in range(ROUNDS):
            owner = wait_for(lambda: ask(f"select lease_owner {row} and (status <> 'running' or checkpoint is not null)") or
                             ask(f"select 'over' {row} and status = 'succeeded'"), "a state")
            if owner == "over":
                break
            # Anywhere in the next steps, in the writing of a state, a checkpoint, the model.
            wait_for(lambda: chance.random() < 0.2, "the moment", every=0.05)
            os.kill(int(owner.split("-")[0]), signal.SIGSTOP)
            if frozen:
                os.kill(frozen, signal.SIGCONT)
            frozen = int(owner.split("-")[0])

            def is_taken_over():
                ask(f"update jobs set lease_expires_at = now() - interval '1 s' where id = '{job}' and lease_owner = '{owner}'")
                # A job ends with its third lost attempt, which is not what this is about.
                ask(f"update jobs set run_after = now(), failures = 0 where id = '{job}' and status = 'queued'")
                return ask(f"select 1 {row} and (lease_owner <> '{owner}' or status = 'succeeded')")

            wait_for(is_taken_over, "another worker", within=150)
        if frozen:
            os.kill(frozen, signal.SIGCONT)
        ended = wait_for_end(client, job, within=180)
        assert ended.status == "succeeded", ended.error
        assert result_of(server, client, ended) == expected
        told = [event.message for event in events(client, job)]
        assert not any("starts over" in message for message in told), told
        assert any(message.startswith("Resumed after step") for message in told), "no worker went on from a state"
        results = [file.id for file in client.files.list() if file.purpose == "fine-tune-results"]
        assert sorted(results) == sorted(undisturbed.result_files + ended.result_files)
