"""Keys of the database: the command line beside a running server, who is let in, and what tenants see of each other."""

import re
import subprocess

import attunelib
import httpx
import openai
import pytest
from conftest import (
    create_job,
    create_key,
    events,
    keys_command,
    listed,
    model_ids,
    sdk,
    upload,
    wait_for,
    wait_for_end,
)


def error_of(answer):
    """The error object of an answer, which must have all four keys."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture(scope="module")
def own(start_server):
    """A server of this file's own, open when it starts."""
    return start_server()


def test_the_first_key_closes_an_open_server_and_its_revocation_does_not_open_it(binary, own):
    assert listed(own, "anything").status_code == 200
    text, key = create_key(binary, own.data_dir, "Acme")
    assert re.fullmatch(r"sk-attune-[A-Za-z0-9]{32,}", text)
    wait_for(lambda: listed(own, "anything").status_code == 401, "the server to close")
    assert httpx.get(own.url + "/v1/models").status_code == 401
    answer = listed(own, text)
    assert answer.status_code == 200
    assert answer.headers["openai-organization"] == "acme"

    assert keys_command(binary, own.data_dir, "revoke", key).returncode == 0
    wait_for(lambda: listed(own, text).status_code == 401, "the end of the key")
    assert listed(own, "anything").status_code == 401


def test_a_revoked_a_made_up_and_an_expired_key_get_the_same_answer(binary, own):
    revoked, key = create_key(binary, own.data_dir, "acme")
    assert listed(own, revoked).status_code == 200
    assert keys_command(binary, own.data_dir, "revoke", key).returncode == 0
    wait_for(lambda: listed(own, revoked).status_code == 401, "the end of the revoked key")
    expired, _ = create_key(binary, own.data_dir, "acme", "--expires", "1s")
    wait_for(lambda: listed(own, expired).status_code == 401, "the end of the expired key")
    made_up = "sk-attune-" + "x" * 40

    def told(text):
        answer = listed(own, text)
        error = error_of(answer)
        assert answer.status_code == 401
        assert text not in error["message"]
        return {**error, "message": error["message"].replace(text[-4:], "….")}

    assert told(revoked) == told(expired) == told(made_up)
    assert told(made_up)["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        sdk(own, revoked).models.list()


def test_a_key_that_has_not_expired_works_and_is_listed(binary, own):
    text, key = create_key(
        binary, own.data_dir, "lists", "--name", "night job", "--admin", "--rpm", 7, "--tpm", 5000, "--expires", "30d"
    )
    assert listed(own, text).status_code == 200

    def line():
        done = keys_command(binary, own.data_dir, "list", "--org", "lists")
        assert done.returncode == 0, done.stderr
        head, *rows = done.stdout.splitlines()
        assert head.split()[:3] == ["ID", "ORG", "KEY"]
        (row,) = rows
        return row

    row = line()
    assert text not in row
    for part in (key, "lists", "night job", "yes", "7", "5000", text[-4:]):
        assert part in row
    # The day of its last use is written within a second or so.
    wait_for(lambda: re.search(r"\d{4}-\d{2}-\d{2}$", line()), "the day of the last use")
    everyone = keys_command(binary, own.data_dir, "list").stdout
    assert key in everyone and "acme" in everyone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--org", "a b"], "organisation"),
        (["create", "--org", "a:b"], "organisation"),
        (["create", "--org", ""], "organisation"),
        (["create", "--org", "a", "--expires", "soon"], "30d"),
        (["create", "--org", "a", "--expires", "2020-01-01"], "past"),
        (["create", "--org", "a", "--rpm", "0"], "rpm"),
        (["create"], "--org"),
        (["revoke", "key_none"], "key_none"),
    ],
)
def test_a_wrong_command_says_what_to_change(binary, own, arguments, said):
    done = keys_command(binary, own.data_dir, *arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "panicked" not in done.stderr
    assert not done.stdout


def test_keys_are_made_before_the_first_start_and_let_a_server_listen_to_others(binary, start_server):
    folder = attunelib.data_folder()
    try:
        text, _ = create_key(binary, folder, "early")
        server = attunelib.Server(binary, folder, listen="0.0.0.0:0")
        with server:
            url = server.url.replace("0.0.0.0", "127.0.0.1")
            assert httpx.get(url + "/v1/models").status_code == 401
            answer = httpx.get(url + "/v1/models", headers={"Authorization": f"Bearer {text}"})
            assert answer.status_code == 200
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def test_keys_of_the_configuration_stay_beside_those_of_the_database(binary, start_server):
    server = start_server(settings={"ATTUNE_API_KEYS": '["configured"]', "ATTUNE_ORGANIZATION": "house"})
    text, _ = create_key(binary, server.data_dir, "acme")
    assert listed(server, text).headers["openai-organization"] == "acme"
    answer = listed(server, "configured")
    assert answer.headers["openai-organization"] == "house"
    admin = {"Authorization": "Bearer configured"}
    assert httpx.get(server.url + "/v1/usage?organization=*", headers=admin).status_code == 200
    server.stop()


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_what_concerns_the_whole_server_needs_an_admin_key(tenants, path):
    body = {"lora_name": "none", "lora_path": "none"}
    with tenants.http("acme") as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 403
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("invalid_request_error", "insufficient_permissions")
    with tenants.http("admin") as http:
        assert http.post(path, json=body).status_code in (400, 404)


# --- Tenants -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acmes(tenants, tickets):
    """A file, two jobs (one of each resource) and a model of acme's."""
    client = tenants.client("acme")
    file = upload(client, tickets[:40], name="acme-secret.jsonl")
    quick = {"n_epochs": 1, "batch_size": 8, "rank": 2, "alpha": 4}
    job = wait_for_end(client, create_job(client, file, quick, metadata={"team": "secret"}).id)
    assert job.status == "succeeded", job.error
    with tenants.http("acme") as http:
        legacy = http.post("/v1/fine_tunes", json={"training_file": file, "model": "demo", "n_epochs": 1}).json()
        http.post(f"/v1/fine_tunes/{legacy['id']}/cancel")
    return {"file": file, "job": job.id, "model": job.fine_tuned_model, "legacy": legacy["id"], "metadata": "secret"}


def test_lists_show_ones_own_things_only(tenants, acmes):
    for name, sees in (("acme", True), ("rival", False), ("admin", False)):
        client = tenants.client(name)
        assert (acmes["file"] in [file.id for file in client.files.list()]) is sees
        assert (acmes["job"] in [job.id for job in client.fine_tuning.jobs.list()]) is sees
        assert (acmes["job"] in [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "secret"})]) is sees
        assert (acmes["model"] in model_ids(client)) is sees
        with tenants.http(name) as http:
            assert (acmes["legacy"] in http.get("/v1/fine_tunes").text) is sees


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/files/{file}", None),
        ("GET", "/v1/files/{file}/content", None),
        ("DELETE", "/v1/files/{file}", None),
        ("GET", "/v1/files?after={file}", None),
        ("GET", "/v1/fine_tuning/jobs/{job}", None),
        ("GET", "/v1/fine_tuning/jobs/{job}/events", None),
        ("GET", "/v1/fine_tuning/jobs/{job}/checkpoints", None),
        ("POST", "/v1/fine_tuning/jobs/{job}/cancel", None),
        ("POST", "/v1/fine_tuning/jobs/{job}/pause", None),
        ("POST", "/v1/fine_tuning/jobs/{job}/resume", None),
        ("GET", "/v1/fine_tuning/jobs?after={job}", None),
        ("GET", "/v1/fine_tunes/{legacy}", None),
        ("POST", "/v1/fine_tunes/{legacy}/cancel", None),
        ("GET", "/v1/fine_tunes/{legacy}/events", None),
        ("GET", "/v1/fine_tunes/{legacy}/events?stream=true", None),
        ("DELETE", "/v1/fine_tunes/{legacy}", None),
        ("GET", "/v1/fine_tunes?after={legacy}", None),
        ("GET", "/v1/models/{model}", None),
        ("DELETE", "/v1/models/{model}", None),
        ("GET", "/v1/models/{model}/adapter", None),
        ("POST", "/v1/completions", {"model": "{model}", "prompt": "a"}),
        ("POST", "/v1/chat/completions", {"model": "{model}", "messages": [{"role": "user", "content": "a"}]}),
        ("POST", "/v1/chat/completions", {"model": "{model}", "messages": [{"role": "user", "content": "a"}], "stream": True}),
        ("POST", "/v1/embeddings", {"model": "{model}", "input": "a"}),
        ("POST", "/v1/fine_tuning/jobs", {"model": "demo", "training_file": "{file}"}),
        ("POST", "/v1/fine_tuning/jobs", {"model": "{model}", "training_file": "{file}"}),
        ("POST", "/v1/fine_tunes", {"model": "demo", "training_file": "{file}"}),
        ("POST", "/v1/fine_tunes", {"model": "{model}", "training_file": "{file}"}),
    ],
)
def test_anothers_thing_is_as_if_it_were_not_there(tenants, acmes, method, path, body):
    missing = {kind: "".join(reversed(name)) for kind, name in acmes.items()}

    def ask(names):
        filled = {key: value.format(**names) if isinstance(value, str) else value for key, value in (body or {}).items()}
        with tenants.http("rival") as http:
            answer = http.request(method, path.format(**names), json=filled if body else None)
        text = answer.text
        for kind, name in names.items():
            text = text.replace(name, f"<{kind}>")
        return answer.status_code, re.sub(r'"(id|created|seq)[^,}]*', "", text)

    status, text = ask(acmes)
    assert (status, text) == ask(missing)
    listing = "?after=" in path
    assert 400 <= status < 500 or (listing and status == 200), text
    assert "secret" not in text


def test_nothing_of_acmes_was_harmed(tenants, acmes):
    client = tenants.client("acme")
    assert client.files.retrieve(acmes["file"]).filename == "acme-secret.jsonl"
    assert client.models.retrieve(acmes["model"])
    assert client.fine_tuning.jobs.retrieve(acmes["job"]).status == "succeeded"
    assert events(client, acmes["job"])
