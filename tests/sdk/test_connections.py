"""Connections of HTTP/1 whose request is answered before its body was read: either the next request on the same
connection is answered, or the answer said that none will be. Sent from raw sockets, since clients hide what they lose."""

import contextlib
import json
import socket
import urllib.parse

import pytest
from conftest import create_key

NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMIT = 40_000
SMALL = b'{"model": "demo", "prompt": "On"}'
LARGE = b"x" * 3_000_000

# Requests that are answered without their bodies: what is sent, by which key, and the status.
EARLY = {
    "an unknown path": ("POST /v1/nothing", "acme", 404),
    "no key": ("POST /v1/chat/completions", None, 401),
    "a wrong key": ("POST /v1/files", "revoked", 401),
    "a wrong method": ("POST /v1/models", "acme", 405),
    "a method that nobody knows": ("BREW /v1/completions", "acme", 405),
    "a missing job": ("POST /v1/fine_tuning/jobs/ftjob-x/pause", "acme", 404),
    "a missing file": ("DELETE /v1/files/file-x", "acme", 404),
    "a key that may not": ("POST /v1/load_lora_adapter", "acme", 403),
    "a listing with a body": ("GET /v1/models", "acme", 200),
    "a check of health with a body": ("POST /health", None, 405),
    "a question of a browser": ("OPTIONS /v1/files", None, 200),
    "a page": ("GET /openapi.json", None, 200),
}


def address(server):
    parts = urllib.parse.urlsplit(server.url)
    return parts.hostname, parts.port


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(address(server), timeout=30) as connection, connection.makefile("rb") as answers:
        yield connection, answers


def head(line, key=None, *fields):
    fields = ["Host: localhost", *fields, *([f"Authorization: Bearer {key}"] if key else [])]
    return "\r\n".join([line + " HTTP/1.1", *fields, "", ""]).encode()


def chunks(body, size=50_000):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def framed(line, key, body, kind, *fields):
    """A whole request, with its body in one of both forms."""
    if kind == "chunked":
        return head(line, key, "Transfer-Encoding: chunked", *fields) + chunks(body)
    return head(line, key, f"Content-Length: {len(body)}", *fields) + body


def read(answers, method="GET"):
    """Status, fields and body of the next answer."""
    line = answers.readline()
    assert line.startswith(b"HTTP/1.1 "), line
    fields = {}
    while (field := answers.readline().decode().strip()) != "":
        name, value = field.split(":", 1)
        fields[name.lower()] = value.strip()
    status = int(line.split()[1])
    if method == "HEAD" or status < 200:
        return status, fields, b""
    if "content-length" in fields:
        body = answers.read(int(fields["content-length"]))
        assert len(body) == int(fields["content-length"])
        return status, fields, body
    if fields.get("transfer-encoding") != "chunked":
        return status, fields, answers.read()
    body = b""
    while (size := int(answers.readline(), 16)) > 0:
        body += answers.read(size)
        assert answers.readline() == b"\r\n"
    assert answers.readline() == b"\r\n"
    return status, fields, body


def says_close(fields):
    return fields.get("connection", "").lower() == "close"


def check_end(answers):
    """Nothing comes any more. What was sent in vain may turn the end into a reset."""
    with contextlib.suppress(ConnectionError):
        assert answers.read() == b""


def check(server, request, status, method="POST"):
    """Sends the request and another one in one go, and returns whether the connection lived on."""
    with connected(server) as (connection, answers):
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(request + NEXT)
        told, fields, body = read(answers, method)
        assert told == status, body
        if told >= 400 and method != "HEAD":
            assert json.loads(body)["error"]["message"]
        if says_close(fields):
            check_end(answers)
            return False
        told, fields, _ = read(answers)
        assert told == 200
        return True


@pytest.mark.parametrize("kind", ["length", "chunked"])
@pytest.mark.parametrize("case", EARLY)
def test_a_connection_outlives_an_answer_before_a_small_body(tenants, case, kind):
    line, key, status = EARLY[case]
    request = framed(line, tenants.keys.get(key), SMALL, kind)
    assert check(tenants.server, request, status)


@pytest.mark.parametrize("kind", ["length", "chunked"])
@pytest.mark.parametrize("case", EARLY)
def test_an_answer_before_a_large_body_is_read_and_the_last(tenants, case, kind):
    line, key, status = EARLY[case]
    request = framed(line, tenants.keys.get(key), LARGE, kind)
    assert not check(tenants.server, request, status)


@pytest.mark.parametrize("part", [b"", SMALL[:9]])
@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_body_that_does_not_come_holds_no_answer_up(tenants, kind, part):
    with connected(tenants.server) as (connection, answers):
        field = "Transfer-Encoding: chunked" if kind == "chunked" else f"Content-Length: {len(SMALL)}"
        body = b"%x\r\n%s\r\n" % (len(part), part) if kind == "chunked" and part else part
        connection.sendall(head("POST /v1/nothing", tenants.keys["acme"], field) + body)
        status, fields, _ = read(answers)
        assert (status, says_close(fields)) == (404, True)


def test_a_body_that_comes_a_little_later_keeps_its_connection(tenants):
    with connected(tenants.server) as (connection, answers):
        request = framed("POST /v1/nothing", tenants.keys["acme"], SMALL, "length")
        connection.sendall(request[: -len(SMALL)])
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(SMALL)
        connection.sendall(NEXT)
        assert read(answers)[0] == 404
        assert read(answers)[0] == 200


@pytest.mark.parametrize("body", [SMALL, LARGE])
@pytest.mark.parametrize("case", ["no key", "an unknown path", "a wrong method"])
def test_a_client_that_waits_to_be_asked_is_not_asked_for_nothing(tenants, case, body):
    line, key, status = EARLY[case]
    with connected(tenants.server) as (connection, answers):
        fields = (f"Content-Length: {len(body)}", "Expect: 100-continue")
        connection.sendall(head(line, tenants.keys.get(key), *fields))
        told, fields, _ = read(answers)
        assert (told, says_close(fields)) == (status, True)
        # Such a client may have begun all the same.
        with contextlib.suppress(ConnectionError):
            connection.sendall(body)
        check_end(answers)


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_client_that_waits_to_be_asked_is_asked_where_its_body_is_wanted(tenants, kind):
    body = b'{"model": "demo", "prompt": "On", "max_tokens": 1}'
    request = framed("POST /v1/completions", tenants.keys["acme"], body, kind, "Expect: 100-continue")
    start = request.index(b"\r\n\r\n") + 4
    with connected(tenants.server) as (connection, answers):
        for _ in range(2):
            connection.sendall(request[:start])
            assert read(answers)[0] == 100
            connection.sendall(request[start:])
            assert read(answers)[0] == 200


@pytest.fixture(scope="module")
def narrow(start_server):
    """A server that takes small bodies only."""
    return start_server(settings={"ATTUNE_LIMITS__MAX_BODY_BYTES": str(LIMIT)})


@pytest.mark.parametrize("kind", ["length", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT, 100 * LIMIT])
def test_a_body_above_the_limit_is_answered_to_a_client_that_sends_it_all_first(narrow, kind, size):
    lives = check(narrow, framed("POST /v1/completions", None, b"x" * size, kind), 413)
    assert lives == (size < 100 * LIMIT)


def test_a_foreign_page_is_refused_and_its_connection_lives_on(server):
    request = framed("POST /v1/completions", None, SMALL, "length", "Origin: https://example.com")
    assert check(server, request, 403)


def test_a_key_that_has_no_requests_left_keeps_its_connection(binary, tenants):
    key, _ = create_key(binary, tenants.server.data_dir, "acme", "--rpm", "1")
    body = b'{"model": "demo", "prompt": "On", "max_tokens": 1}'
    request = framed("POST /v1/completions", key, body, "length")
    with connected(tenants.server) as (connection, answers):
        connection.sendall(request + request + NEXT)
        assert [read(answers)[0] for _ in range(3)] == [200, 429, 200]


def test_a_form_with_something_behind_its_end_keeps_its_connection(tenants):
    form = (
        b'--e\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--e\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nno json\r\n--e--\r\nbehind it'
    )
    for kind in ("length", "chunked"):
        request = framed("POST /v1/files", tenants.keys["acme"], form, kind, "Content-Type: multipart/form-data; boundary=e")
        with connected(tenants.server) as (connection, answers):
            connection.sendall(request + NEXT)
            status, fields, _ = read(answers)
            assert status in (200, 400)
            assert not says_close(fields)
            assert read(answers)[0] == 200


@pytest.mark.parametrize("body", [b"zz\r\nnot a chunk\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"])
@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/completions"])
def test_a_body_that_breaks_its_own_form_ends_the_connection(tenants, path, body):
    with connected(tenants.server) as (connection, answers):
        connection.sendall(head("POST " + path, tenants.keys["acme"], "Transfer-Encoding: chunked") + body + NEXT)
        status, fields, _ = read(answers)
        assert 400 <= status < 500
        assert says_close(fields)
        # Nothing of what follows is taken for a request.
        check_end(answers)


def test_a_request_that_is_none_is_answered_and_the_last(server):
    with connected(server) as (connection, answers):
        connection.sendall(b"what is this\r\n\r\n" + NEXT)
        status, fields, _ = read(answers)
        assert (status, says_close(fields)) == (400, True)
        check_end(answers)
