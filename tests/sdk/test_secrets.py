"""Secrets of the configuration are never printed, however they were written wrongly."""

import socket
import subprocess

import attunelib
import httpx
import pytest
from conftest import listed

SECRET = "topsecret-0123456789"
KEY = f"sk-{SECRET}"


def run(binary, *arguments, settings=None):
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=attunelib.environment(settings))


def refused(binary, *arguments, settings=None):
    """What a command says that must fail, and must not say the secret."""
    done = run(binary, *arguments, settings=settings)
    said = done.stderr + done.stdout
    assert done.returncode not in (0, 101), said
    assert SECRET not in said and "panicked" not in said, said
    return said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", "0123456789"),
        ("API_KEYS", f"{{key={KEY}}}"),
        ("API_KEYS", f"[[{KEY}]]"),
        ("API_KEYS", f"[{{key={KEY}}}]"),
        ("API_KEYS", f"{KEY},"),
        ("API_KEYS", f'["{KEY}"'),
        ("API_KEYS", f"""'["{KEY}"]'"""),
        ("API_KEYS", f"'{KEY}'"),
        ("API_KEYS", f"second {KEY}"),
        ("API_KEYS__FIRST", KEY),
        ("DATABASE_URL", f"[{KEY}]"),
        ("DATABASE_URL", f"{{password={KEY}}}"),
        ("DATABASE_URL", "0123456789"),
        ("DATABASE_URL__PASSWORD", KEY),
        ("API_KEYS_FILE", KEY),
        ("API_KEYS_FILE", f"[{KEY}]"),
        ("API_KEYS_FILE", f"/{KEY}"),
        ("DATABASE_URL_FILE", f"postgres://a:{SECRET}@127.0.0.1:9/x"),
    ],
)
def test_a_secret_in_a_wrong_form_in_the_environment_is_not_shown(binary, tmp_path, name, value):
    said = refused(binary, "serve", "--data-dir", tmp_path, settings={f"ATTUNE_{name}": value})
    assert name.split("__")[0].lower() in said
    assert "0123456789" not in said


@pytest.mark.parametrize(
    "text",
    [
        f"api_keys = {KEY}",
        f'api_keys = ["{KEY}"',
        f"api_keys = ['{KEY}', 3]",
        f"api_keys = [['{KEY}']]",
        f'api_keys = {{key = "{KEY}"}}',
        f'api_keys = ["{KEY}"]\napi_keys = ["{KEY}"]',
        f'[api_keys]\nkey = "{KEY}"',
        f'api_key = "{KEY}"',
        f'database_url = ["postgres://a:{SECRET}@db/x"]',
        f"database_url = postgres://a:{SECRET}@db/x",
        f'database_url = "postgres://a:{SECRET}@db/x',
        f'[database_url]\npassword = "{SECRET}"',
        f'api_keys_file = "{KEY}"',
        f'database_url_file = {{password = "{SECRET}"}}',
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["worker"], ["migrate"], ["keys", "list"], ["health"]])
def test_a_secret_in_a_wrong_form_in_the_file_is_not_shown(binary, tmp_path, text, command):
    file = tmp_path / "attune.toml"
    file.write_text(text + "\n")
    refused(binary, *command, "--config", file, "--data-dir", tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        f"postgres://a:{SECRET}@127.0.0.1:9/x",
        f"postgres://a:{SECRET}@127.0.0.1:9/x?unknown={SECRET}",
        f"postgres://a:b@127.0.0.1:9/x?{SECRET}=1",
        f"postgres://a:b@127.0.0.1:9/x?sslmode={SECRET}",
        f"postgres://a:12/{SECRET}@127.0.0.1/x?sslmode=no",
        f"postgres://a:{SECRET}/x@127.0.0.1:9/x",
        f"postgres://a:12?{SECRET}@127.0.0.1:9/x",
        f"mysql://a:{SECRET}@127.0.0.1:9/x",
        SECRET,
    ],
)
@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_a_password_of_the_database_is_not_shown(binary, tmp_path, url, where):
    file = tmp_path / "url"
    file.write_text(url)
    arguments, settings = {
        "flag": (["--database-url", url], {}),
        "environment": ([], {"ATTUNE_DATABASE_URL": url}),
        "file": ([], {"ATTUNE_DATABASE_URL_FILE": str(file)}),
    }[where]
    said = refused(binary, "--log", "trace", "migrate", "--data-dir", tmp_path, *arguments, settings=settings)
    assert "database" in said


def test_a_key_of_the_commands_is_not_shown(binary):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for arguments in (["jobs", "list", "--url", url, "--api-key", KEY], ["serve", f"--api-key={KEY}"]):
            refused(binary, "--log", "trace", *arguments)
        refused(binary, "--log", "trace", "jobs", "list", "--url", url, settings={"ATTUNE_API_KEY": KEY})
        for odd in (url.replace("//", f"//me:{SECRET}@"), f"ftp://me:{SECRET}@127.0.0.1", f"me:{SECRET}"):
            refused(binary, "jobs", "list", "--url", odd)


@pytest.mark.parametrize(
    ("value", "keys"),
    [(KEY, [KEY]), (f"{KEY}, second", [KEY, "second"]), (f'["{KEY}","a,b"]', [KEY, "a,b"])],
)
def test_keys_may_be_written_as_one_text(start_server, value, keys):
    server = start_server("--log", "trace", settings={"ATTUNE_API_KEYS": value})
    for key in keys:
        answer = listed(server, key)
        assert (answer.status_code, answer.headers["openai-organization"]) == (200, "local")
    for key in ("other", value if value not in keys else "another", "a", "b"):
        assert listed(server, key).status_code == 401
    assert httpx.get(server.url + "/v1/models").status_code == 401
    server.stop()
    log = "\n".join(server.log)
    assert log and SECRET not in log
