"""The server as a process: crashes, doors and locks."""

import subprocess

import attunelib
import httpx
import openai
import pytest
from conftest import create_job, events, sdk, steps, upload, wait_for, wait_for_end


@pytest.mark.timeout(400)
def test_a_job_survives_the_death_of_its_server(start_server, tickets, heldout):
    server = start_server()
    examples, training = 120, {"n_epochs": 6, "batch_size": 4, "learning_rate": 2e-3, "rank": 8, "alpha": 16}
    total = examples * training["n_epochs"] // training["batch_size"]
    with sdk(server) as client:
        job = create_job(client, upload(client, tickets[:examples]), training)

        def last_step():
            return (steps(client, job.id) or [0])[-1]

        checkpoints = server.data_dir / "blobs" / "checkpoints"
        wait_for(lambda: any(path.is_file() for path in checkpoints.rglob("*")), "the first checkpoint", within=120)
        saved = last_step()
        wait_for(lambda: last_step() >= saved + 3, "steps after the checkpoint", within=30)
        assert last_step() < total, "the job was over before its server could die"
        server.kill()

    server = start_server(data_dir=server.data_dir)
    with sdk(server) as client:
        job = wait_for_end(client, job.id, within=180)
        assert job.status == "succeeded", job.error
        reached = steps(client, job.id)
        assert reached[-1] == total
        assert reached.count(reached[0]) == 1, "training began again from the start"
        assert any("resumed after step" in event.message.lower() for event in events(client, job.id))
        answer = client.chat.completions.create(
            model=job.fine_tuned_model, messages=heldout[0]["messages"][:1], temperature=0, max_tokens=80
        )
        assert answer.choices[0].message.content
    server.stop()


def run_to_its_end(binary, *arguments):
    """Runs a server that must refuse to start; returns what it said."""
    done = subprocess.run(
        [binary, "serve", *arguments], capture_output=True, text=True, timeout=60, env=attunelib.environment()
    )
    assert done.returncode != 0
    assert "panicked" not in done.stderr
    return (done.stdout + done.stderr).lower()


def test_a_second_server_on_the_same_data_is_refused(binary, server, client):
    said = run_to_its_end(binary, "--listen", "127.0.0.1:0", "--data-dir", server.data_dir)
    assert str(server.data_dir).lower() in said
    assert "in use" in said or "another" in said
    assert client.models.retrieve("demo")


def test_an_open_address_needs_a_key(binary, tmp_path):
    said = run_to_its_end(binary, "--listen", "0.0.0.0:0", "--data-dir", tmp_path)
    assert "api key" in said
    assert "api_keys" in said


def test_a_missing_model_folder_is_named(binary, tmp_path):
    missing = tmp_path / "none"
    said = run_to_its_end(binary, "--listen", "127.0.0.1:0", "--data-dir", tmp_path, "--model", f"mine={missing}")
    assert str(missing).lower() in said


def test_a_path_that_is_no_model_is_told_before_a_database_starts(binary, tmp_path):
    gguf = tmp_path / "model-q4_0.gguf"
    gguf.write_bytes(b"GGUF")
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text('{"model_type": "bart"}')
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, says in [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "attune pull huggingfacetb/smollm2"),
        (gguf, "the file ends at byte 4, within its header"),
        (attunelib.DEMO / "model.safetensors", f"give its folder, {attunelib.DEMO}"),
        (unknown, "`bart` is not supported; supported are"),
        (empty, "has no config.json"),
    ]:
        data = tmp_path / "data"
        for command in ["serve", "worker"]:
            arguments = ["--data-dir", data, "--model", f"mine={path}"]
            done = subprocess.run(
                [binary, command, *arguments], capture_output=True, text=True, timeout=60, env=attunelib.environment()
            )
            assert done.returncode != 0
            assert says.lower() in done.stderr.lower(), done.stderr
            assert not (data / "postgres").exists()


def test_only_the_right_key_opens_the_server(start_server):
    server = start_server(settings={"ATTUNE_API_KEYS": '["secret"]'})
    assert "demo" in [model.id for model in sdk(server, "secret").models.list()]
    with pytest.raises(openai.AuthenticationError) as fault:
        sdk(server, "guess").models.list()
    assert fault.value.code == "invalid_api_key"
    assert "guess" not in fault.value.message
    assert httpx.get(server.url + "/v1/models").status_code == 401
    for probe in ("/health", "/ready"):
        assert httpx.get(server.url + probe).status_code == 200
    server.stop()


def test_metrics_are_there_for_prometheus(http):
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert "attune_" in answer.text
