"""Starts an Attune server and talks to it, with Python's standard library alone.

Used by `tools/demo`, `tools/bench`, `tests/sdk` and `tests/parity/check_loop.py`.
"""

import collections
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
# What a request raises where the server is gone.
CONNECTION_FAULTS = (OSError, http.client.HTTPException)


class ServerError(Exception):
    """The server did not start, or died; the message holds the end of its log."""


class ApiError(Exception):
    """The server answered with an error status."""

    def __init__(self, status, body):
        self.status = status
        self.body = body
        super().__init__(f"HTTP {status}: {body}")


def build(profile="release"):
    """Builds the binary and returns its path."""
    arguments = ["cargo", "build", "--locked"] + (["--release"] if profile == "release" else [])
    if subprocess.run(arguments, cwd=ROOT).returncode != 0:
        raise ServerError("the build failed; its messages are above")
    target = subprocess.run([ROOT / "tools" / "target-dir"], capture_output=True, text=True, check=True)
    return Path(target.stdout.strip()) / profile / "attune"


def data_folder():
    """A new folder for a server's data. Others may pass through it, because a server that runs as root runs its
    database as another user."""
    folder = Path(tempfile.mkdtemp(prefix="attune-"))
    folder.chmod(0o711)
    return folder


def environment(settings=None):
    """The environment without any Attune setting of the caller's, plus `settings`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    return {**inherited, **(settings or {})}


class Server:
    """A running `attune serve` on a free port of 127.0.0.1, or `attune worker` by another `command`."""

    def __init__(self, binary, data_dir, *arguments, settings=None, listen="127.0.0.1:0", command="serve"):
        self.command = [str(binary), command, "--listen", listen, "--data-dir", str(data_dir), *arguments]
        self.settings = settings
        self.process = None
        self.url = None
        self.log = collections.deque(maxlen=400)

    def start(self, within=120):
        """Starts the server and returns when it is ready; raises [`ServerError`] after `within` seconds."""
        ready = threading.Event()
        # A session of its own: Ctrl-C reaches the caller, which then stops the server in an orderly way.
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=environment(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        process = self.process

        def read(stream, is_stdout):
            for line in stream:
                self.log.append(line.rstrip("\n"))
                if is_stdout and line.startswith("listening on http://"):
                    self.url = line.split()[2].rstrip("/")
                    ready.set()

        readers = [
            threading.Thread(target=read, args=(process.stdout, True), daemon=True),
            threading.Thread(target=read, args=(process.stderr, False), daemon=True),
        ]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + within
        while not ready.wait(0.05):
            if process.poll() is not None:
                for reader in readers:
                    reader.join(5)
                raise ServerError(f"the server ended with status {process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"the server was not ready after {within} s\n{self.tail()}")
        return self

    def tail(self, lines=30):
        """The end of the server's output."""
        return "\n".join(list(self.log)[-lines:])

    def stop(self, within=30):
        """Asks the server to end and waits; kills it where it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            print(f"the server did not stop within {within} s and was killed\n{self.tail()}", file=sys.stderr)
            self.kill()

    def kill(self):
        """Ends the server at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class Client:
    """Requests to a server; every call opens its own connection, so threads can share a client."""

    def __init__(self, url, key=None, timeout=600):
        self.address = urllib.parse.urlsplit(url).netloc
        self.key = key
        self.timeout = timeout

    def _send(self, method, path, body=None, content_type="application/json"):
        connection = http.client.HTTPConnection(self.address, timeout=self.timeout)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if body is not None:
            headers["Content-Type"] = content_type
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        if response.status >= 400:
            text = response.read().decode(errors="replace")
            connection.close()
            raise ApiError(response.status, text)
        return connection, response

    def fetch(self, method, path, body=None, content_type="application/json"):
        """The raw body of the answer."""
        connection, response = self._send(method, path, body, content_type)
        with contextlib.closing(connection):
            return response.read()

    def get(self, path):
        """The JSON answer to a GET."""
        return json.loads(self.fetch("GET", path))

    def post(self, path, body=None):
        """The JSON answer to a POST of JSON."""
        return json.loads(self.fetch("POST", path, json.dumps(body or {}).encode()))

    def stream(self, path, body):
        """Yields the JSON events of a streamed answer."""
        connection, response = self._send("POST", path, json.dumps({**body, "stream": True}).encode())
        with contextlib.closing(connection):
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                data = line[len(b"data: "):].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ApiError(response.status, json.dumps(event["error"]))
                yield event
        raise ApiError(200, "the stream ended without [DONE]")

    def upload(self, filename, content, purpose="fine-tune"):
        """Uploads a file and returns its object."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self.fetch("POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}"))

    def chat(self, model, messages, **settings):
        """The text of one chat completion, at temperature 0 unless asked otherwise."""
        body = {"model": model, "messages": messages, "temperature": 0, **settings}
        return self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"] or ""


class Job:
    """Follows a `/v1/fine_tuning/jobs` job and its events."""

    def __init__(self, client, job):
        self.client = client
        self.state = job
        self.path = "/v1/fine_tuning/jobs/" + job["id"]
        self._seen = set()

    @property
    def is_over(self):
        """True in the states that a job does not leave."""
        return self.state["status"] in ("succeeded", "failed", "cancelled")

    def refresh(self):
        """Reads the job again."""
        self.state = self.client.get(self.path)
        return self.state

    def new_events(self):
        """Events that came since the last call, oldest first."""
        fresh, after = [], ""
        while True:
            page = self.client.get(f"{self.path}/events?limit=100{after}")
            unseen = [event for event in page["data"] if event["id"] not in self._seen]
            fresh += unseen
            if len(unseen) < len(page["data"]) or not page["data"] or not page.get("has_more"):
                break
            after = "&after=" + page["data"][-1]["id"]
        self._seen.update(event["id"] for event in fresh)
        return fresh[::-1]


def read_jsonl(path):
    """The objects of a JSONL file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def same_json(text, wanted):
    """True where both texts are JSON of the same value."""
    try:
        return json.loads(text) == json.loads(wanted)
    except ValueError:
        return False
