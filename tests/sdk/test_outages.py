"""What goes on while the database is away, and who is let in then; a database that is not this program's."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import attunelib
import httpx
import pytest
from conftest import create_key, keys_command, listed, wait_for

pytestmark = pytest.mark.timeout(240)
MADE_UP = "sk-attune-" + "x" * 40
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def socket_dir(data_dir):
    """The folder of the socket of the private database that runs on `data_dir`."""
    pid_file = data_dir / "postgres" / "postmaster.pid"
    return pid_file.read_text().splitlines()[4]


def sql(data_dir, text):
    command = ["psql", "-h", socket_dir(data_dir), "-U", "attune", "-d", "attune", "-v", "ON_ERROR_STOP=1", "-qAtc", text]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class Database:
    """A database that a test can take away: the private one of a server that does nothing else."""

    def __init__(self, start_server):
        self.owner = start_server("--no-worker")
        self.data_dir = self.owner.data_dir
        self.frozen = []
        self.url = f"postgres://attune@localhost/attune?host={socket_dir(self.data_dir)}"

    def stop(self):
        self.owner.stop()
        assert not (self.data_dir / "postgres" / "postmaster.pid").exists()

    def start(self):
        self.owner.start()
        assert socket_dir(self.data_dir) in self.url

    def processes(self):
        """The numbers of the database's processes, the first one of them first."""
        first = (self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]
        return [int(first), *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def freeze(self):
        """Lets the database fall silent, as a lost network does: connections stay open, and nothing answers."""
        self.frozen = self.processes()
        for process in self.frozen:
            os.kill(process, signal.SIGSTOP)

    def thaw(self):
        for process in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        self.frozen = []


@pytest.fixture
def database(start_server):
    database = Database(start_server)
    yield database
    database.thaw()
    database.owner.stop()


@pytest.fixture
def server_on(database, start_server):
    """A function that starts servers on the database."""
    servers = []

    def start(**settings):
        servers.append(start_server("--no-worker", settings={"ATTUNE_DATABASE_URL": database.url, **settings}))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def ask(server, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(server.url + "/v1/chat/completions", json=HELLO, headers=headers, timeout=60)


def is_ready(server):
    return httpx.get(server.url + "/ready", timeout=60).status_code == 200


def take_away(database, server, how="stopped"):
    database.stop() if how == "stopped" else database.freeze()
    wait_for(lambda: not is_ready(server), "the outage")


def bring_back(database, server):
    database.thaw() if database.frozen else database.start()
    wait_for(lambda: is_ready(server), "the end of the outage")


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_keys_in_use_go_on_without_the_database_and_their_usage_is_kept(binary, database, server_on, how):
    acme, acme_id = create_key(binary, database.data_dir, "acme")
    revoked, revoked_id = create_key(binary, database.data_dir, "acme")
    unused, _ = create_key(binary, database.data_dir, "acme")
    server = server_on()
    assert ask(server, acme).status_code == 200
    assert ask(server, revoked).status_code == 200
    assert keys_command(binary, database.data_dir, "revoke", revoked_id).returncode == 0
    wait_for(lambda: ask(server, revoked).status_code == 401, "the end of the revoked key")
    assert ask(server, acme).status_code == 200
    prompts = sum(ask(server, acme).json()["usage"]["prompt_tokens"] for _ in range(2))

    take_away(database, server, how)
    during = [ask(server, acme) for _ in range(5)]
    assert [answer.status_code for answer in during] == [200] * 5, during[0].text
    assert {answer.headers["openai-organization"] for answer in during} == {"acme"}
    assert ask(server, revoked).status_code in (401, 503)
    for key in (unused, MADE_UP):
        answer = ask(server, key)
        assert answer.status_code == 503 and key not in answer.text
    assert ask(server).status_code == 401
    assert ask(server, "anything").status_code == 401
    admin = httpx.get(server.url + "/v1/lora_adapters", headers={"Authorization": f"Bearer {acme}"}, timeout=60)
    assert admin.status_code == 403

    bring_back(database, server)
    wait_for(lambda: ask(server, unused).status_code == 200, "the keys to be looked up again")
    assert ask(server, MADE_UP).status_code == ask(server, revoked).status_code == 401
    headers = {"Authorization": f"Bearer {acme}"}
    usage = server.url + "/v1/usage?group_by=key"

    def counted():
        rows = httpx.get(usage, headers=headers, timeout=60).json()["data"]
        (row,) = [row for row in rows if row["key"] == acme_id]
        return row["requests"] == 9 and row["prompt_tokens"] > prompts

    wait_for(counted, "the usage of the outage")
    assert keys_command(binary, database.data_dir, "revoke", acme_id).returncode == 0
    wait_for(lambda: ask(server, acme).status_code == 401, "the end of the key")


def test_an_outage_longer_than_the_set_time_ends_all_keys_of_the_database(binary, database, server_on):
    acme, _ = create_key(binary, database.data_dir, "acme")
    short = server_on(ATTUNE_LIMITS__KEYS_OUTAGE_SECONDS="1", ATTUNE_API_KEYS="configured")
    none = server_on(ATTUNE_LIMITS__KEYS_OUTAGE_SECONDS="0")
    for server in (short, none):
        assert ask(server, acme).status_code == 200
    take_away(database, short)
    for server in (short, none):
        wait_for(lambda: ask(server, acme).status_code == 503, "the end of the key")
        assert ask(server).status_code == 401
    assert ask(short, "configured").status_code == 200
    bring_back(database, short)
    for server in (short, none):
        wait_for(lambda: ask(server, acme).status_code == 200, "the key to be looked up again")


def test_an_open_server_stays_open_without_the_database_but_not_for_keys_that_it_cannot_look_up(database, server_on):
    server = server_on()
    assert ask(server).status_code == ask(server, "anything").status_code == 200
    take_away(database, server)
    for _ in range(3):
        assert ask(server).status_code == ask(server, "anything").status_code == 200
        assert ask(server, MADE_UP).status_code == 503
    bring_back(database, server)
    wait_for(lambda: ask(server, MADE_UP).status_code == 200, "the look-up of the key")


def test_the_first_key_is_never_taken_for_no_key(binary, database, server_on):
    server = server_on()
    # Without notifications, as if each were lost.
    sql(database.data_dir, "alter table api_keys disable trigger user")
    for _ in range(3):
        assert listed(server, "anything").headers["openai-organization"] == "local"
    revoked, key = create_key(binary, database.data_dir, "acme")
    assert keys_command(binary, database.data_dir, "revoke", key).returncode == 0
    assert listed(server, revoked).status_code == 401, "not even a key that is revoked already"

    sql(database.data_dir, "delete from api_keys")
    server = server_on()
    assert listed(server, "anything").status_code == 200
    acme, _ = create_key(binary, database.data_dir, "acme")
    answer = listed(server, acme)
    assert (answer.status_code, answer.headers["openai-organization"]) == (200, "acme")
    headers = {"Authorization": f"Bearer {acme}"}
    assert httpx.get(server.url + "/v1/lora_adapters", headers=headers).status_code == 403
    assert listed(server, "anything").status_code == 401, "its holder has closed the server"


def test_a_newer_database_is_refused_by_every_command_with_what_to_do(binary, database, tmp_path):
    sql(
        database.data_dir,
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)"
        " values (9999, 'things to come', true, '', 0)",
    )
    for command in (["serve"], ["worker"], ["migrate"], ["keys", "list"], ["keys", "create", "--org", "a"]):
        arguments = [str(binary), *command, "--data-dir", str(tmp_path), "--database-url", database.url]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=attunelib.environment())
        assert done.returncode == 1 and not done.stdout, command
        for part in ("newer than this program", "9999 (things to come)", "backup"):
            assert part in done.stderr, (command, done.stderr)
