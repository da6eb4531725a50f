"""Files that arrive in parts: by OpenAI's client and plain HTTP."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ask_database, jsonl, sdk

LINE = {"prompt": "a", "completion": " b"}
CONTENT = jsonl([LINE, {**LINE, "prompt": "ä"}] * 50)


@pytest.fixture
def begin(http):
    """Begins an upload of CONTENT; returns its object."""

    def begin(http=http, **more):
        body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(CONTENT), "mime_type": "text/jsonl", **more}
        answer = http.post("/v1/uploads", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return begin


def add(http, upload, data):
    return http.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("part", data)})


def complete(http, upload, *parts, **more):
    ids = [part.json()["id"] for part in parts]
    return http.post(f"/v1/uploads/{upload['id']}/complete", json={"part_ids": ids, **more})


def fault(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def parts_on_disk(server):
    return [path for path in (server.data_dir / "blobs" / "uploads").rglob("*") if path.is_file()]


def test_a_file_in_chunks_by_openais_client_is_the_file(client):
    upload = client.uploads.upload_file_chunked(
        file=io.BytesIO(CONTENT).getvalue(),
        filename="chunks.jsonl",
        bytes=len(CONTENT),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=1000,
    )
    assert (upload.status, upload.object, upload.bytes) == ("completed", "upload", len(CONTENT))
    assert upload.expires_at - upload.created_at == 3600
    file = upload.file
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(CONTENT), "chunks.jsonl", "fine-tune")
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).read() == CONTENT


def test_parts_may_come_at_once_and_in_any_order(http, begin, server):
    upload = begin()
    assert (upload["object"], upload["status"], upload["file"]) == ("upload", "pending", None)
    pieces = [CONTENT[at : at + 700] for at in range(0, len(CONTENT), 700)]
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda piece: add(http, upload, piece), reversed(pieces)))
    for part in parts:
        assert part.status_code == 200, part.text
        assert (part.json()["object"], part.json()["upload_id"]) == ("upload.part", upload["id"])
    answer = complete(http, upload, *reversed(parts), md5=hashlib.md5(CONTENT).hexdigest().upper())
    assert answer.status_code == 200, answer.text
    file = answer.json()["file"]["id"]
    assert http.get(f"/v1/files/{file}/content").content == CONTENT
    assert not [path for path in parts_on_disk(server) if upload["id"] in str(path)], "the parts are gone"
    assert upload["id"] in fault(complete(http, upload, *parts))["message"]
    assert "completed" in fault(add(http, upload, b"x"))["message"]
    assert "completed" in fault(http.post(f"/v1/uploads/{upload['id']}/cancel"))["message"]


def test_what_does_not_fit_is_told_and_can_be_mended(http, begin):
    upload = begin()
    first, second = add(http, upload, CONTENT[:10]), add(http, upload, CONTENT[10:])
    assert fault(complete(http, upload, first))["param"] == "part_ids"
    assert fault(complete(http, upload, first, second, second))["param"] == "part_ids"
    unknown = http.post(f"/v1/uploads/{upload['id']}/complete", json={"part_ids": ["part_x"]})
    assert "part_x" in fault(unknown)["message"]
    assert fault(complete(http, upload, first, second, md5="0" * 32))["param"] == "md5"
    # The other way round the lines are none.
    assert "JSONL" in fault(complete(http, upload, second, first))["message"]
    assert complete(http, upload, first, second).json()["status"] == "completed"


def test_parts_of_another_upload_are_none(http, begin):
    one, other = begin(), begin()
    part = add(http, other, CONTENT)
    assert fault(complete(http, one, part))["param"] == "part_ids"


def test_parts_take_no_more_than_twice_the_file(http, begin):
    upload = begin(bytes=10)
    assert [add(http, upload, b"0123456789").status_code for _ in range(3)] == [200, 200, 400]
    assert fault(add(http, upload, b""))["param"] == "data"
    assert fault(http.post(f"/v1/uploads/{upload['id']}/parts", files={"file": b"x"}))["param"] == "data"


def test_a_cancelled_upload_takes_no_parts_and_leaves_nothing(http, begin, client, server):
    upload = begin()
    part = add(http, upload, CONTENT)
    assert [path for path in parts_on_disk(server) if upload["id"] in str(path)]
    for _ in range(2):
        assert client.uploads.cancel(upload["id"]).status == "cancelled"
    assert "cancelled" in fault(add(http, upload, b"x"))["message"]
    assert "cancelled" in fault(complete(http, upload, part))["message"]
    assert not [path for path in parts_on_disk(server) if upload["id"] in str(path)]


def test_an_upload_expires(http, begin, server):
    upload = begin()
    part = add(http, upload, CONTENT)
    ask_database(server, f"update uploads set expires_at = now() where id = '{upload['id']}'")
    assert "expired" in fault(complete(http, upload, part))["message"]
    assert "expired" in fault(add(http, upload, b"x"))["message"]
    assert "expired" in fault(http.post(f"/v1/uploads/{upload['id']}/cancel"))["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 1 << 40}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"purpose": "batch", "filename": "a.txt"}, "filename"),
        ({"filename": "a\0.jsonl"}, "filename"),
        ({"filename": "a" * 1025}, "filename"),
        ({"filename": None}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"expires_after": 3600}, "expires_after"),
    ],
)
def test_a_wrong_upload_is_refused_by_name(http, more, param):
    body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl", **more}
    assert fault(http.post("/v1/uploads", json=body))["param"] == param


def test_the_file_of_an_upload_may_expire(client):
    after = {"anchor": "created_at", "seconds": 7200}
    made = client.uploads.create(
        bytes=2, filename="a.jsonl", mime_type="text/jsonl", purpose="batch", expires_after=after
    )
    assert made.expires_at - made.created_at == 3600, "that is the upload's own time"
    part = client.uploads.parts.create(made.id, data=b"{}")
    file = client.uploads.complete(made.id, part_ids=[part.id]).file
    assert file.expires_at == file.created_at + 7200
    assert client.files.retrieve(file.id).expires_at == file.expires_at


def test_another_organisations_upload_is_none(tenants, begin):
    with tenants.http("acme") as acme, tenants.http("rival") as rival:
        upload = begin(acme)
        part = add(acme, upload, CONTENT)
        for answer in (
            add(rival, upload, b"x"),
            complete(rival, upload, part),
            rival.post(f"/v1/uploads/{upload['id']}/cancel"),
        ):
            assert fault(answer, 404)["message"] == f"No such Upload object: {upload['id']}"
        assert complete(acme, upload, part).status_code == 200


def test_an_upload_goes_on_after_a_restart(start_server):
    server = start_server()
    with sdk(server) as client:
        upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=4, mime_type="text/jsonl")
        first = client.uploads.parts.create(upload.id, data=b"{}")
    server.kill()
    server = start_server(data_dir=server.data_dir)
    with sdk(server) as client:
        second = client.uploads.parts.create(upload.id, data=b"\n\n")
        done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        assert client.files.content(done.file.id).read() == b"{}\n\n"
    server.stop()
