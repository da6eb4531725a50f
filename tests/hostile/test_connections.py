"""Connections that are silent, idle, or never end what they began; more of them than there is room for; no descriptors
left. Those with a key and `/health` are answered under all of it, and a stop is in time."""

import contextlib
import json
import resource
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import attunelib
import http2
import httpx
import pytest
from conftest import sdk

wait_for = sdk.wait_for
vocabulary = sdk.vocabulary

KEYS = {"ATTUNE_API_KEYS": '["first", "second"]'}
# Far more than a server needs that closes what is idle after three seconds, and far less than one that never does.
SOON = 45
NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def limits(**values):
    return {f"ATTUNE_LIMITS__{name.upper()}": str(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def impatient(start_server):
    """A server that closes what is idle for three seconds. It has no worker, so that jobs wait."""
    return start_server("--no-worker", settings={**KEYS, **limits(idle_connection_seconds=3)})


@pytest.fixture(scope="module")
def waiting(impatient):
    """The path of a stream of events that has no end and is quiet: its job waits."""
    return events_of_a_waiting_job(impatient)


def client(server, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60)


def events_of_a_waiting_job(server):
    line = json.dumps({"prompt": "a", "completion": " b"}).encode() + b"\n"
    with client(server, "first") as http:
        form = {"files": {"file": ("train.jsonl", line * 12)}, "data": {"purpose": "fine-tune"}}
        file = http.post("/v1/files", **form).json()["id"]
        job = http.post("/v1/fine_tunes", json={"model": "demo", "training_file": file}).json()["id"]
    return f"/v1/fine_tunes/{job}/events?stream=true"


def connect(server, content=b""):
    address = urllib.parse.urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=SOON)
    connection.sendall(content)
    return connection


def read_to_the_end(connection):
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def metric(server, name, **labels):
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = httpx.get(server.url + "/metrics", timeout=60).text.splitlines()
    lines = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    found = [line for line in lines if all(part in line for part in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


@pytest.fixture
def dripping():
    """A function that goes on sending the same bytes until the other side or the test has ended."""
    ended = threading.Event()
    threads = []

    def drip(send, content):
        def work():
            with contextlib.suppress(OSError):
                while not ended.wait(0.3):
                    send(content)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    yield drip
    ended.set()
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"PRI * HTTP/2.0", NEXT], ids=["silent", "part", "half", "served"])
def test_a_connection_without_a_request_is_closed(impatient, sent):
    with connect(impatient, sent) as connection:
        read_to_the_end(connection)


def test_a_head_that_never_ends_is_no_request(impatient, dripping):
    with connect(impatient, NEXT + b"GET /health HTTP/1.1\r\n") as connection:
        dripping(connection.sendall, b"x: y\r\n")
        read_to_the_end(connection)


@pytest.mark.parametrize("polite", [True, False])
@pytest.mark.parametrize("requests", [0, 1])
def test_an_idle_connection_over_http2_is_told_to_end(impatient, polite, requests):
    connection = http2.Connection(impatient.url, polite)
    if requests:
        connection.request("GET", "/health")
        assert b"ok" in connection.answer()
    connection.socket.settimeout(SOON)
    connection.read_to_the_end()
    assert http2.GOAWAY in connection.frames
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [http2.frame(http2.PING, b"12345678"), http2.frame(http2.WINDOW_UPDATE, b"\0\0\0\1")],
    ids=["pings", "windows"],
)
def test_frames_that_are_no_requests_keep_no_connection(impatient, dripping, sent):
    connection = http2.Connection(impatient.url)
    connection.socket.settimeout(SOON)
    dripping(connection.send, sent)
    connection.read_to_the_end()
    connection.close()


def test_fields_without_an_end_are_no_request(impatient):
    connection = http2.Connection(impatient.url)
    connection.send(http2.frame(http2.HEADERS, http2.head("GET", "/health"), http2.END_STREAM, 1))
    connection.socket.settimeout(SOON)
    connection.read_to_the_end()
    connection.close()


def test_a_client_without_a_key_that_takes_no_answer_is_closed(impatient):
    connection = http2.Connection(impatient.url, window=0)
    connection.request("GET", "/metrics")
    connection.socket.settimeout(SOON)
    connection.read_to_the_end()
    assert http2.DATA not in connection.frames
    connection.close()


def test_quiet_streams_outlive_the_limit(impatient, waiting):
    """The first comment comes after fifteen seconds, five times the limit."""
    over_http2 = http2.Connection(impatient.url)
    over_http2.request("GET", waiting, "first")
    over_http2.socket.settimeout(SOON)
    with client(impatient, "first") as http, http.stream("GET", waiting) as answer:
        said = b""
        while b"keepalive" not in said:
            got = over_http2.read()
            assert got, "the connection ended"
            said += got[3]
        assert any("keepalive" in line for line in answer.iter_lines())
    assert http2.PING in over_http2.frames
    over_http2.close()


def test_a_client_over_http2_that_is_gone_in_the_middle_of_a_stream_is_noticed(impatient, waiting):
    connection = http2.Connection(impatient.url, polite=False)
    connection.request("GET", waiting, "first")
    connection.socket.settimeout(SOON)
    connection.read_to_the_end()
    connection.close()


@contextlib.contextmanager
def narrow(binary, descriptors, **settings):
    """A server that may have so many descriptors."""
    folder = attunelib.data_folder()
    server = attunelib.Server(binary, folder, "--no-worker", settings={**KEYS, **settings})
    server.command = ["prlimit", f"--nofile={min(descriptors, 100)}:{descriptors}", *server.command]
    with server:
        yield server
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("kind", ["http/1", "http/2"])
def test_silent_connections_keep_nobody_out(binary, kind):
    with narrow(binary, 256) as server, contextlib.ExitStack() as held:
        assert metric(server, "process_max_fds") == 256, "the soft limit is raised"
        for _ in range(300):
            if kind == "http/2":
                connection = http2.Connection(server.url)
                held.callback(connection.close)
                connection.request("GET", "/health")
            else:
                held.enter_context(connect(server, NEXT))
        for path, key in [("/health", None), ("/ready", None), ("/v1/models", "first"), ("/v1/models", "second")]:
            with client(server, key) as http:
                assert http.get(path).status_code == 200, path
        assert metric(server, "process_open_fds") < 200
        assert metric(server, "attune_connections") < 100
        assert metric(server, "attune_connections_closed_total", reason="displaced") >= 200
        assert "file descriptors" in server.tail(400), "a low limit is told"


def test_requests_that_hold_all_places_leave_one_to_probes(start_server):
    server = start_server("--no-worker", settings={**KEYS, **limits(max_connections=16)})
    events = events_of_a_waiting_job(server)
    with contextlib.ExitStack() as held:

        def hold(key):
            http = held.enter_context(client(server, key))
            answer = held.enter_context(http.stream("GET", events))
            assert answer.status_code == 200
            return answer

        streams = [hold("first") for _ in range(8)]
        with client(server, "first") as http:
            refused = http.get("/v1/models")
            assert refused.status_code == 429, refused.text
            assert "connections" in refused.json()["error"]["message"]
        # Eight are a key's part of sixteen, and two of these are left to others than running requests.
        for _ in range(6):
            hold("second")
        with client(server, "second") as http:
            refused = http.get("/v1/models")
            assert refused.status_code == 503, refused.text
            assert "retry-after" in refused.headers
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(server.url + path, timeout=60).status_code == 200
        assert metric(server, "attune_connections_refused_total", reason="key") == 1
        assert metric(server, "attune_connections_refused_total", reason="full") == 1
        streams[0].close()
        with client(server, "second") as http:
            wait_for(lambda: http.get("/v1/models").status_code == 200, "a place")


def test_a_lack_of_descriptors_passes_and_is_told_once(binary):
    with narrow(binary, 1024) as server:
        pid = server.process.pid

        def told(what):
            return [line for line in list(server.log) if what in line]

        def cpu_seconds():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / 100

        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, 1024))
        with connect(server, NEXT) as connection:
            wait_for(lambda: told("cannot accept"), "the log")
            before, start = cpu_seconds(), time.monotonic()
            time.sleep(2)
            assert cpu_seconds() - before < (time.monotonic() - start) / 2, "it does not spin"
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))
            assert b"200 OK" in connection.recv(65536), "it recovers by itself"
        assert metric(server, "attune_accept_errors_total", error="too_many_files_of_process") > 1
        wait_for(lambda: metric(server, "process_max_fds") and told("accepted again"), "the end of it")
        assert len(told("cannot accept")) == len(told("accepted again")) == 1


# What a stop does.


@pytest.fixture
def streams(start_server, vocabulary):
    """A function that starts a server and three streams over each protocol, all running: some clients read, one of each
    kind does not."""
    endless = {str(token): -100 for text, token in vocabulary.items() if text.startswith("<|")}
    body = {"model": "demo", "prompt": "On", "max_tokens": 900, "n": 32, "stream": True, "logit_bias": endless}
    content = json.dumps(body).encode()
    opened = []

    def start():
        server = start_server(settings={**KEYS, **limits(max_sequences=512)})
        for _ in range(3):
            connection = http2.Connection(server.url, receive_buffer=4096)
            connection.request("POST", "/v1/completions", "first", content)
            while http2.DATA not in connection.frames:
                assert connection.read(), "the connection ended"
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer second\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            over_http1 = socket.socket()
            over_http1.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            over_http1.settimeout(60)
            address = urllib.parse.urlsplit(server.url)
            over_http1.connect((address.hostname, address.port))
            over_http1.sendall(head.encode() + content)
            said = b""
            while b"data: " not in said:
                piece = over_http1.recv(4096)
                assert piece, said
                said += piece
            opened.append((connection, over_http1))
        return server, opened

    yield start
    for connection, over_http1 in opened:
        connection.close()
        over_http1.close()


def usage_after_a_restart(start_server, server):
    again = start_server(data_dir=server.data_dir, settings=KEYS)
    with client(again, "first") as http:
        rows = http.get("/v1/usage", params={"group_by": "key"}).json()["data"]
    again.stop()
    return rows


def read_in_background(opened):
    """Lets the first client of each protocol read; returns the threads."""
    connection, over_http1 = opened[0]
    works = [lambda: connection.read_to_the_end(), lambda: read_to_the_end(over_http1)]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def check_usage(rows):
    assert sum(row["requests"] for row in rows) == 6, rows
    assert sum(row["completion_tokens"] for row in rows) > 6 * 32, rows


def test_a_stop_is_in_time_whoever_reads_and_running_requests_are_charged(start_server, streams):
    server, opened = streams()
    read_in_background(opened)
    server.process.terminate()
    # Docker kills after ten seconds.
    assert server.process.wait(10) == 0, server.tail()
    check_usage(usage_after_a_restart(start_server, server))


def locked(server):
    """A process that holds a lock which stops all writing of usage, until it is ended."""
    lines = (server.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    command = ["psql", "-XAtq", "-h", lines[4], "-p", lines[3], "-U", "attune", "attune"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("begin; lock table usage_daily; select 'locked';\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "locked"
    return process


def test_a_stop_waits_for_a_slow_database_and_writes_then(start_server, streams):
    server, opened = streams()
    lock = locked(server)
    readers = read_in_background(opened)
    server.process.terminate()
    for reader in readers:
        reader.join(30)
    lock.communicate("commit;\n")
    assert server.process.wait(10) == 0, server.tail()
    check_usage(usage_after_a_restart(start_server, server))


def test_a_stop_is_in_time_although_the_database_hangs(streams):
    server, _ = streams()
    lock = locked(server)
    server.process.terminate()
    assert server.process.wait(10) == 0, server.tail()
    assert "could not be written" in server.tail(400)
    lock.kill()
    lock.communicate()
