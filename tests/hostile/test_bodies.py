"""Bodies that hurt: forms without an end, uploads that trickle, downloads that nobody reads, and disks that take nothing.
What a client holds is bounded and comes back, and others are answered meanwhile."""

import json
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import HUNDRED, MIB, ONE, Memory, Tenant, attunelib, descriptors, sdk
from forms import Upload, line, part, whole

HEAD = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
FORM = "multipart/form-data; boundary=edge"
BEGUN = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="'
PURPOSE = part("purpose", b"user_data")


def connect(server, buffer=None):
    address = urllib.parse.urlsplit(server.url)
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(90)
    connection.connect((address.hostname, address.port))
    return connection


def answer_of(connection):
    """The status and the error object of the answer that a connection gets."""
    data = b""
    while b"\r\n\r\n" not in data or not data.partition(b"\r\n\r\n")[2].rstrip().endswith(b"}"):
        got = connection.recv(65536)
        if not got:
            break
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def pour(tenant, begin, megabytes, content_type=FORM):
    """Sends a form of `begin` and then of one letter only; returns the answer, and the bytes sent until it came."""
    with connect(tenant.server) as connection:
        connection.sendall(HEAD.format(tenant.key, content_type, len(begin) + megabytes * MIB).encode() + begin)
        sent = 0
        connection.settimeout(30)
        done = threading.Event()

        def send():
            nonlocal sent
            try:
                while sent < megabytes * MIB and not done.is_set():
                    sent += connection.send(b"x" * 65536)
            except OSError:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return answer_of(connection), sent
        finally:
            done.set()
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()


def temporary(server):
    return list((server.data_dir / "tmp").iterdir())


def given_back(server, before):
    """Waits until descriptors and temporary files are as before."""
    sdk.wait_for(lambda: not temporary(server), "no temporary files", within=30)
    # Some of the database's connections and of idle clients may have come meanwhile.
    sdk.wait_for(lambda: descriptors(server) <= before + 24, f"the descriptors, {before} before", within=30)


class Watch:
    """Asks for `/health` all the time."""

    def __init__(self, server):
        self.url, self.slowest, self.asked, self.ended = server.url, 0.0, 0, threading.Event()

    def ask(self):
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while True:
                start = time.monotonic()
                assert client.get("/health").status_code == 200
                self.slowest = max(self.slowest, time.monotonic() - start)
                self.asked += 1
                if self.ended.wait(0.05):
                    return

    def __enter__(self):
        self.pool = ThreadPoolExecutor(1)
        self.asking = self.pool.submit(self.ask)
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.pool.shutdown()
        self.asking.result()


@pytest.mark.parametrize(
    ("begin", "content_type", "said"),
    [
        (b"", FORM, "does not begin with its boundary"),
        (BEGUN, FORM, "longer than 8192 bytes"),
        (b"--edge\r\nA", FORM, "longer than 8192 bytes"),
        (b"--edge", FORM, "longer than 8192 bytes"),
        (b"", "multipart/form-data; boundary=" + "b" * 71, "longer than 70 characters"),
        (b"", "multipart/form-data", "names no boundary"),
        (PURPOSE + part("other", b"")[:-2], FORM, "'other' is longer than 4096 bytes"),
    ],
)
def test_a_form_without_an_end_is_refused_at_once(server, attacker, memory, begin, content_type, said):
    before = descriptors(server)
    with Watch(server) as watch, ThreadPoolExecutor(3) as pool:
        poured = [pool.submit(pour, attacker, begin, 150, content_type) for _ in range(3)]
        for (status, error), sent in (each.result() for each in poured):
            assert (status, error["type"]) == (400, "invalid_request_error")
            assert said in error["message"], error
            assert sent < 100 * MIB, "it was read on"
    assert memory.grown() < ONE
    assert watch.asked
    assert watch.slowest < 5
    given_back(server, before)


def test_a_hundred_such_forms_from_one_key_stay_within_their_memory(server, attacker, memory):
    before = descriptors(server)
    with Watch(server) as watch, ThreadPoolExecutor(100) as pool:
        begins = [b"", BEGUN] * 50
        for (status, _), _ in pool.map(lambda begin: pour(attacker, begin, 4), begins):
            assert status in (400, 429)
    assert memory.grown() < HUNDRED
    assert watch.asked
    given_back(server, before)


@pytest.mark.parametrize("name", ["file", "purpose"])
def test_a_field_that_comes_twice_is_refused_by_its_name(server, attacker, name):
    parts = {"file": part("file", line(100_000), "x.jsonl"), "purpose": PURPOSE}
    answer = Upload(whole(*parts.values(), parts[name])).send(attacker)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (name, "duplicate_field")
    assert not temporary(server)


def test_an_upload_whose_client_leaves_leaves_nothing(server, attacker, bystander):
    before = descriptors(server)
    begin = PURPOSE + part("file", b"x" * MIB, "x.bin")[:-2]
    connections = []
    for _ in range(20):
        connection = connect(server)
        connection.sendall(HEAD.format(attacker.key, FORM, 100 * MIB).encode() + begin)
        connections.append(connection)
    sdk.wait_for(lambda: len(temporary(server)) == 20, "the uploads")
    for connection in connections:
        connection.close()
    given_back(server, before)


@pytest.fixture(scope="module")
def impatient(binary, start_server):
    """A key of a server that waits for nobody."""
    limits = {"MAX_UPLOAD_SECONDS": "45", "MAX_UNREAD_SECONDS": "2"}
    server = start_server(settings={f"ATTUNE_LIMITS__{name}": value for name, value in limits.items()})
    tenant = Tenant(server, sdk.create_key(binary, server.data_dir, "attacker")[0])
    sdk.wait_for(lambda: sdk.listed(server, tenant.key).status_code == 200, "the key")
    return tenant


def trickle(tenant, piece, every):
    """Sends an upload of pieces until it is answered."""
    with connect(tenant.server) as connection:
        connection.sendall(HEAD.format(tenant.key, FORM, 100 * MIB).encode() + PURPOSE + part("file", b"x", "x")[:-2])
        connection.settimeout(every)
        for _ in range(int(120 / every)):
            connection.sendall(piece)
            try:
                connection.recv(1, socket.MSG_PEEK)
                return answer_of(connection)
            except TimeoutError:
                continue
    raise AssertionError("it was never answered")


def test_an_upload_that_trickles_or_takes_too_long_is_ended_and_says_why(impatient):
    before = descriptors(impatient.server)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(trickle, impatient, b"x", 1)
        long = pool.submit(trickle, impatient, b"x" * 4096, 0.5)
        for each, said in ((slow, "at least 1024 bytes per second"), (long, "within the 45 seconds")):
            status, error = each.result()
            assert status == 408, error
            assert said in error["message"], error
    given_back(impatient.server, before)


def test_downloads_that_nobody_reads_end_and_give_back_what_they_hold(impatient):
    server, memory = impatient.server, Memory(impatient.server.process.pid)
    content = os.urandom(MIB) * 48
    file = Upload(whole(PURPOSE, part("file", content, "x.bin"))).send(impatient).json()["id"]
    memory.watch()
    before = descriptors(server)
    request = f"GET /v1/files/{file}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {impatient.key}\r\n\r\n".encode()
    connections = [connect(server, buffer=4096) for _ in range(100)]
    for connection in connections:
        connection.sendall(request)
    # One who takes it piece by piece, with rests that are shorter than the limit, gets all of it.
    with connect(server, buffer=65536) as reader, Watch(server) as watch:
        reader.sendall(request)
        got, rests = bytearray(reader.recv(65536)), 0
        whole_answer = got.index(b"\r\n\r\n") + 4 + len(content)
        while len(got) < whole_answer:
            piece = reader.recv(65536)
            assert piece, "the download of a slow reader was cut"
            got += piece
            if len(got) > rests * 64 * 1024 and rests < 8:
                rests += 1
                time.sleep(0.7)
        assert got.endswith(content)
    assert watch.asked
    given_back(server, before)
    assert memory.grown() < ONE
    for connection in connections:
        connection.close()


def test_answers_that_nobody_reads_end_their_connection(impatient):
    server = impatient.server
    connection = connect(server, buffer=4096)
    connection.settimeout(1)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    # The server has accepted it once it answers.
    connection.settimeout(60)
    connection.sendall(request)
    assert connection.recv(1)
    connection.settimeout(1)
    before = descriptors(server)
    sent = 0
    try:
        # As many as the server takes, which stops to read where it cannot write.
        for _ in range(2000):
            connection.sendall(request)
            sent += 1
    except (TimeoutError, ConnectionError):
        pass
    assert sent > 10
    sdk.wait_for(lambda: descriptors(server) < before, "the end of the connection", within=30)
    connection.close()


@pytest.fixture
def storage(binary, tmp_path):
    """A function that starts a server by a shell command with `{}` for itself."""
    servers = []

    def start(command):
        wrapper = tmp_path / "attune"
        wrapper.write_text("#!/bin/sh\n" + command.format(f'{binary} "$@"') + "\n")
        wrapper.chmod(0o755)
        folder = attunelib.data_folder()
        server = attunelib.Server(wrapper, folder)
        server.data_dir = folder
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()
        shutil.rmtree(server.data_dir, ignore_errors=True)


def upload(server, content=b"x" * 100_000):
    form = whole(PURPOSE, part("file", content, "x.bin"))
    return httpx.post(server.url + "/v1/files", content=form, headers={"Content-Type": FORM}, timeout=60)


def readiness(server):
    answer = httpx.get(server.url + "/ready", timeout=60)
    return answer.status_code, answer.json().get("reason")


def test_a_full_disk_is_a_507_and_not_ready_until_there_is_room(storage):
    # A limit on the size of files stands for a full disk: the same write fails. Its signal would end the process.
    server = storage("trap '' XFSZ; exec {}")
    assert readiness(server) == (200, None)
    kept = upload(server).json()["id"]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    answer = upload(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage"), answer.text
    assert "operator" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert not temporary(server)
    sdk.wait_for(lambda: readiness(server) == (503, "The disk of the data folder is full."), "not ready")
    assert httpx.delete(f"{server.url}/v1/files/{kept}").json()["deleted"], "deleting makes room"
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert upload(server).status_code == 200
    sdk.wait_for(lambda: readiness(server) == (200, None), "ready")


def test_a_disk_that_became_read_only_is_a_503_and_deleting_still_works(storage):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount: unshare -m fails")
    server = storage("exec unshare -m --propagation private {}")
    kept = upload(server).json()["id"]
    blobs = server.data_dir / "blobs"
    mount = f"mount --bind {blobs} {blobs} && mount -o remount,bind,ro {blobs}"
    inside = ["nsenter", "-t", str(server.process.pid), "-m", "sh", "-c", mount]
    mounted = subprocess.run(inside, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount: {mounted.stderr}")
    answer = upload(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_read_only"), server.tail()
    assert answer.headers["x-should-retry"] == "false"
    sdk.wait_for(lambda: not temporary(server), "no temporary files", within=30)
    assert httpx.delete(f"{server.url}/v1/files/{kept}").status_code == 200
    assert httpx.get(f"{server.url}/v1/files/{kept}").status_code == 404
    sdk.wait_for(lambda: readiness(server) == (503, "The data folder can only be read."), "not ready")
