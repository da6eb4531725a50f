"""Files: upload in every order, read back, refuse what is broken."""

import openai
import pytest
from conftest import jsonl, upload

PART = 'Content-Disposition: form-data; name="{}"'


def multipart(parts):
    """A multipart body with its parts in the order given."""
    body = b""
    for name, value in parts:
        head = PART.format(name)
        if name == "file":
            head += '; filename="letters.jsonl"\r\nContent-Type: application/octet-stream'
        body += b"--edge\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"
    return body + b"--edge--\r\n"


@pytest.fixture
def content(tickets):
    return jsonl(tickets[:12])


@pytest.mark.parametrize("order", [("purpose", "file"), ("file", "purpose")])
def test_a_file_may_come_before_or_after_its_purpose(client, http, content, order):
    values = {"purpose": b"fine-tune", "file": content}
    answer = http.post(
        "/v1/files",
        content=multipart([(name, values[name]) for name in order]),
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file["id"].startswith("file-")
    assert file["object"] == "file"
    assert (file["filename"], file["purpose"], file["bytes"]) == ("letters.jsonl", "fine-tune", len(content))
    assert file["status"] in ("uploaded", "processed")
    assert client.files.content(file["id"]).content == content


def test_a_file_is_listed_read_and_deleted(client, content):
    file = client.files.create(file=("letters.jsonl", content), purpose="fine-tune")
    assert file.id in [other.id for other in client.files.list()]
    assert file.id in [other.id for other in client.files.list(purpose="fine-tune")]
    assert client.files.retrieve(file.id).bytes == len(content)
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    assert file.id not in [other.id for other in client.files.list()]
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_a_list_comes_in_pages(client, tickets):
    made = [upload(client, tickets[:10], f"page{number}.jsonl") for number in range(3)]
    page = client.files.list(limit=2)
    assert [file.id for file in page.data] == made[:0:-1]
    assert page.has_more
    assert made[0] in [file.id for file in page]


def post_with(http, content, *notes):
    fields = [("purpose", b"fine-tune"), *((f"metadata[{name}]", value) for name, value in notes), ("file", content)]
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    return http.post("/v1/files", content=multipart(fields), headers=headers)


def test_a_file_keeps_the_notes_of_its_uploader(client, http, content):
    made = post_with(http, content, ("origin", "über".encode()), ("team", b"support")).json()
    assert made["metadata"] == {"origin": "über", "team": "support"}
    assert client.files.retrieve(made["id"]).model_extra["metadata"] == made["metadata"]
    assert client.files.list(limit=1).data[0].model_extra["metadata"] == made["metadata"]
    # Without notes the object is that of OpenAI.
    assert "metadata" not in post_with(http, content).json()
    for notes in ([("a", b"1"), ("a", b"2")], [("a", 513 * b"x")], [(65 * "x", b"1")],
                  [(str(number), b"1") for number in range(17)]):
        refused = post_with(http, content, *notes)
        assert refused.status_code == 400 and "metadata" in refused.json()["error"]["param"], refused.text
    assert post_with(http, content, *((str(number), b"1") for number in range(16))).status_code == 200


def test_bytes_survive_unchanged(client):
    content = '\ufeff{"prompt": "ü → 魚", "completion": " ok"}\r\n{"prompt": "", "completion": " \\u0000"}\n\n'.encode()
    file = client.files.create(file=("odd.jsonl", content), purpose="fine-tune")
    assert client.files.content(file.id).content == content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"this is no JSON\n", "line 1"),
        (2 * b'{"prompt": "a", "completion": " b"}\n' + b'{"prompt": \n', "line 3"),
        (b'{"prompt": "a", "completion": " b"}\n[1, 2]\n', "line 2"),
        (b'{"prompt": "\xff"}\n', "line 1"),
        (b"", ""),
    ],
)
def test_a_broken_training_file_is_refused_with_its_line(client, content, complaint):
    before = [file.id for file in client.files.list()]
    with pytest.raises(openai.BadRequestError) as fault:
        client.files.create(file=("broken.jsonl", content), purpose="fine-tune")
    assert complaint in fault.value.message.lower()
    assert [file.id for file in client.files.list()] == before


LINE = b'{"prompt": "a", "completion": " b"}'


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"prompt,completion\na,b\nc,d\n", "table (CSV)"),
        (b"question\tanswer\na\tb\n", "table (CSV)"),
        (b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml", "Word or Excel"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"%PDF-1.4\n%\xe2\xe3", "PDF"),
        (LINE.decode().encode("utf-16"), "UTF-8"),
        (b"[" + LINE + b", " + LINE + b"]", "one JSON array"),
        (b"[\n  " + LINE + b",\n  " + LINE + b"\n]\n", "one JSON array"),
        ((LINE + b",\n") * 3, "Lines 1, 2 and 3 end with a comma: remove the comma at the end."),
        (b"{'prompt': 'a', 'completion': 'b'}\n" * 2, "use double quotes"),
        (LINE + b'\n{"prompt": "a", "completion": "\\ud83d"}\n', "Line 2 (column 38) has half of a character"),
        (LINE + b'\n{"prompt": "a", "prompt": "b", "completion": "c"}\n', "Line 2 has the key `prompt` twice"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name_with_what_to_do(client, content, remedy):
    with pytest.raises(openai.BadRequestError) as fault:
        client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert remedy in fault.value.message


def test_an_unknown_purpose_is_refused(client, content):
    with pytest.raises(openai.BadRequestError) as fault:
        client.files.create(file=("letters.jsonl", content), purpose="mischief")
    assert fault.value.param == "purpose"


@pytest.mark.parametrize("missing", ["purpose", "file"])
def test_a_missing_part_is_named(http, content, missing):
    parts = [(name, value) for name, value in (("purpose", b"fine-tune"), ("file", content)) if name != missing]
    answer = http.post(
        "/v1/files", content=multipart(parts), headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == missing


@pytest.mark.parametrize("name", ["file", "purpose"])
def test_a_field_that_comes_twice_is_refused_by_its_name(http, content, name):
    parts = [("purpose", b"fine-tune"), ("file", content)]
    parts.append(next(part for part in parts if part[0] == name))
    answer = http.post(
        "/v1/files", content=multipart(parts), headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (name, "duplicate_field")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("multipart/form-data", "names no boundary"),
        ("multipart/form-data; boundary=" + "b" * 71, "longer than 70 characters"),
        ("multipart/form-data; boundary=other", "does not begin with its boundary"),
    ],
)
def test_a_form_without_its_boundary_is_told_so(http, content, kind, complaint):
    body = multipart([("purpose", b"fine-tune"), ("file", content + b" " * 5000)])
    answer = http.post("/v1/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]["message"]


def test_a_large_file_comes_back_unchanged(client):
    content = bytes(range(256)) * 40_000
    file = client.files.create(file=("large.bin", content), purpose="user_data")
    answer = client.files.content(file.id)
    assert answer.response.headers["content-length"] == str(len(content))
    assert answer.content == content
    client.files.delete(file.id)
