"""The program as containers and supervisors run it: its variables, its health check, its folder, its stop."""

import json
import subprocess

import attunelib
import httpx
import pytest
from conftest import wait_for

# More tokens than any machine draws before the server must end.
LONG = {"model": "demo", "prompt": "On Friday", "max_tokens": 900, "n": 128}

# What Kubernetes puts into each pod of a namespace with Services `attune` and `attune-log`.
SERVICE_LINKS = {
    "ATTUNE_SERVICE_HOST": "10.0.0.1",
    "ATTUNE_SERVICE_PORT": "8080",
    "ATTUNE_SERVICE_PORT_HTTP": "8080",
    "ATTUNE_PORT": "tcp://10.0.0.1:8080",
    "ATTUNE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "ATTUNE_PORT_8080_TCP_PROTO": "tcp",
    "ATTUNE_PORT_8080_TCP_PORT": "8080",
    "ATTUNE_PORT_8080_TCP_ADDR": "10.0.0.1",
    "ATTUNE_LOG_SERVICE_HOST": "10.0.0.2",
    "ATTUNE_LOG_PORT": "udp://10.0.0.2:53",
    "ATTUNE_LIMITS_PORT_53_UDP_ADDR": "10.0.0.2",
}


def run(binary, *arguments, settings=None):
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=attunelib.environment(settings))


def test_the_addresses_of_kubernetes_services_are_no_settings(start_server):
    server = start_server(settings=SERVICE_LINKS)
    assert httpx.get(server.url + "/ready").status_code == 200
    server.stop()


@pytest.mark.parametrize("name", ["ATTUNE_LISTN", "ATTUNE_PORTS", "ATTUNE_PORT", "ATTUNE_LIMITS__SERVICE_HOSTS"])
def test_a_misspelt_setting_of_the_environment_is_named(binary, tmp_path, name):
    said = run(binary, "serve", "--data-dir", tmp_path, settings={name: "8080"})
    assert said.returncode != 0
    assert name.split("__")[-1].removeprefix("ATTUNE_").lower() in said.stderr.lower()


def test_the_health_check_asks_the_configured_address(binary, server, tmp_path):
    address = server.url.removeprefix("http://")
    file = tmp_path / "attune.toml"
    file.write_text(f'listen = "{address}"\n')
    anywhere = {"ATTUNE_LISTEN": "0.0.0.0:" + address.split(":")[1]}
    assert run(binary, "health", "--listen", address).returncode == 0
    assert run(binary, "health", "--config", file).returncode == 0
    assert run(binary, "health", settings=anywhere).returncode == 0
    nobody = run(binary, "health", "--listen", "127.77.77.77:9")
    assert nobody.returncode == 1
    assert "127.77.77.77:9" in nobody.stderr


def test_an_answer_that_is_cut_by_the_stop_ends_with_an_error_and_is_charged(start_server, endless):
    server = start_server()
    body = {**LONG, "stream": True, "logit_bias": endless}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(5):
            next(lines)
        server.process.terminate()
        last = json.loads([line for line in lines][-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error", last
    assert "stopping" in last["error"]["message"]
    # Docker waits ten seconds before it kills.
    assert server.process.wait(10) == 0

    server = start_server(data_dir=server.data_dir)
    rows = wait_for(lambda: httpx.get(server.url + "/v1/usage").json()["data"], "the usage")
    assert sum(row["completion_tokens"] for row in rows) > 5
    server.stop()


def test_keys_and_the_database_can_stand_in_files_as_secrets_of_containers_do(binary, start_server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\n\n second \n")
    server = start_server(settings={"ATTUNE_API_KEYS_FILE": str(keys), "ATTUNE_DATABASE_CONNECTIONS": "4"})
    for key, status in [("first", 200), ("second", 200), ("third", 401)]:
        answer = httpx.get(server.url + "/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status, key
    server.stop()

    url = tmp_path / "url"
    url.write_text("postgres://attune@127.0.0.1:9/attune\n")
    said = run(binary, "migrate", "--data-dir", tmp_path, settings={"ATTUNE_DATABASE_URL_FILE": str(url)})
    assert said.returncode == 1 and "127.0.0.1" in said.stderr
    for settings in (
        {"ATTUNE_API_KEYS_FILE": str(keys), "ATTUNE_API_KEYS": '["other"]'},
        {"ATTUNE_DATABASE_URL_FILE": str(url), "ATTUNE_DATABASE_URL": "postgres://other"},
        {"ATTUNE_API_KEYS_FILE": str(tmp_path / "nowhere")},
    ):
        said = run(binary, "migrate", "--data-dir", tmp_path, settings=settings)
        assert said.returncode == 1 and "_file" in said.stderr, settings
    said = run(binary, "serve", "--data-dir", tmp_path, settings={"ATTUNE_DATABASE_CONNECTIONS": "1"})
    assert said.returncode == 1 and "database_connections" in said.stderr
