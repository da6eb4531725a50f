"""`attune embed`: vectors of a file of texts, as a server makes them, in order; a run that is killed, a server that is busy, and
texts that cannot be embedded."""

import base64
import contextlib
import json
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import attunelib
import pytest
from conftest import ENCODERS, wait_for

WIDTH = 3


def command(binary, file, url, *options):
    return [str(binary), "embed", str(file), "--url", url, "--model", "demo", *map(str, options)]


def run(binary, file, url, *options):
    full = command(binary, file, url, *options)
    return subprocess.run(full, capture_output=True, text=True, timeout=120, env=attunelib.environment())


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fake_vector(text):
    return [float(text), 0.5, -1.0]


@contextlib.contextmanager
def fake_server(status=lambda texts: 200):
    """A server whose vector of a text is the number that the text is. `status` is asked first, with the texts, and may wait."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            code = status(body["input"])
            answer = {"error": {"message": "not now"}}
            if code == 200:
                asked.append(body)
                data = [base64.b64encode(struct.pack("<3f", *fake_vector(text))).decode() for text in body["input"]]
                answer = {"data": [{"index": i, "embedding": item} for i, item in enumerate(data)]}
            text = json.dumps(answer).encode()
            with contextlib.suppress(OSError):
                self.send_response(code)
                if code == 429:
                    self.send_header("retry-after", "1")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def numbers(tmp_path):
    """A file of 20 texts, each a number, as lines of text."""
    file = tmp_path / "numbers.txt"
    file.write_text("".join(f"{number}\n" for number in range(20)), encoding="utf-8")
    return file


def test_vectors_are_those_of_the_route_in_the_order_of_the_texts(binary, server, client, tmp_path):
    texts = [f"Order {number} has {'a ' * (number % 7)}scratch." for number in range(40)]
    file = tmp_path / "corpus.jsonl"
    rows = [{"id": f"row-{number}", "body": text, "other": 1} for number, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = run(binary, file, server.url, "--text-field", "body", "--batch", 7)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "corpus.vectors.jsonl"
    assert done.stdout == f"{output}\n" and "40 vectors" in done.stderr
    expected = [item.embedding for item in client.embeddings.create(model="demo", input=texts).data]
    made = lines_of(output)
    assert [line["index"] for line in made] == list(range(40))
    assert [line["id"] for line in made] == [row["id"] for row in rows]
    for line, vector in zip(made, expected, strict=True):
        assert line["embedding"] == pytest.approx(vector, abs=1e-5)
    # A finished file is not touched.
    again = run(binary, file, server.url, "--text-field", "body")
    assert again.returncode == 1 and "exists already" in again.stderr
    assert lines_of(output) == made


def test_an_array_of_numpy_holds_the_same_vectors(binary, numbers, tmp_path):
    output = tmp_path / "vectors.npy"
    with fake_server() as fake:
        done = run(binary, numbers, fake.url, "--output", output, "--batch", 6)
    assert done.returncode == 0, done.stderr
    data = output.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    header = eval(data[10 : 10 + length], {})  # As NumPy reads it: a literal.
    assert header == {"descr": "<f4", "fortran_order": False, "shape": (20, WIDTH)}
    values = struct.unpack(f"<{20 * WIDTH}f", data[10 + length :])
    assert list(values) == [value for number in range(20) for value in fake_vector(number)]


def test_a_killed_run_goes_on_behind_what_it_wrote(binary, numbers, tmp_path):
    output = tmp_path / "vectors.jsonl"
    held = threading.Event()

    def status(texts):
        # The texts from 8 on wait until the first run is dead.
        if int(texts[0]) >= 8:
            held.wait(60)
        return 200

    with fake_server(status) as fake:
        full = command(binary, numbers, fake.url, "--output", output, "--batch", 4)
        process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=attunelib.environment())
        try:
            wait_for(lambda: output.exists() and output.read_text().count("\n") == 8, "two batches")
        finally:
            process.kill()
            process.wait()
        held.set()
        # A line that was written in part.
        with output.open("a", encoding="utf-8") as file:
            file.write('{"index":8,"embedding":[8.0')
        other = run(binary, numbers, fake.url, "--output", output, "--dimensions", 2)
        assert other.returncode == 1 and "other settings" in other.stderr
        fake.asked.clear()
        done = run(binary, numbers, fake.url, "--output", output, "--batch", 4)
    assert done.returncode == 0, done.stderr
    assert "8 texts were done before" in done.stderr
    second = {text for body in fake.asked for text in body["input"]}
    assert second >= {str(number) for number in range(8, 20)} and "3" not in second
    assert [line["embedding"] for line in lines_of(output)] == [fake_vector(number) for number in range(20)]


def test_a_busy_server_is_asked_again_and_one_that_says_no_is_not(binary, numbers, tmp_path):
    refusals = iter([429, 503])
    with fake_server(lambda texts: next(refusals, 200)) as fake:
        done = run(binary, numbers, fake.url, "--batch", 20, "--prompt-name", "query", "--truncate")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("asking again in") == 2 and "answers 429: not now" in done.stderr
    assert [(body["prompt_name"], body["truncate"], len(body["input"])) for body in fake.asked] == [("query", True, 20)]
    assert len(lines_of(tmp_path / "numbers.vectors.jsonl")) == 20
    with fake_server(lambda texts: 401) as fake:
        refused = run(binary, numbers, fake.url, "--output", tmp_path / "other.jsonl")
    assert refused.returncode == 1 and "answers 401: not now" in refused.stderr and "line" not in refused.stderr
    with fake_server(lambda texts: 503) as fake:
        away = run(binary, numbers, fake.url, "--output", tmp_path / "third.jsonl", "--patience", 1)
    assert away.returncode == 1 and "answers 503" in away.stderr


def test_a_text_that_the_server_refuses_is_named_by_its_line(binary, server, tmp_path):
    file = tmp_path / "corpus.jsonl"
    long = "word " * 50_000
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a", "b", long, "c"]), encoding="utf-8")
    done = run(binary, file, server.url)
    assert done.returncode == 1
    assert f"{file} line 3: " in done.stderr and "context length" in done.stderr, done.stderr[-500:]
    file.write_text('{"text": "a"}\n{"text": ""}\n', encoding="utf-8")
    empty = run(binary, file, server.url, "--output", tmp_path / "other.jsonl")
    assert empty.returncode == 1 and "line 2: the text is empty" in empty.stderr


def test_what_is_wrong_with_the_model_is_no_fault_of_a_line(binary, start_server, tmp_path):
    classifier = start_server("--model", f"demo={ENCODERS / 'bert_score'}")
    file = tmp_path / "corpus.txt"
    file.write_text("one\ntwo\n", encoding="utf-8")
    refused = run(binary, file, classifier.url)
    assert refused.returncode == 1 and not (tmp_path / "corpus.vectors.jsonl").read_text()
    assert "makes no vectors" in refused.stderr and "/v1/rerank" in refused.stderr and "line 1" not in refused.stderr
