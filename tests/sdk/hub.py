"""A stand-in for a model hub on loopback, with every fault that a download can meet.

Two servers: the hub itself, and the one that holds large files, as Hugging Face's does. The second is at another address
and notes each request that carries a token. Used by `test_pull.py` and its neighbours, with Attune and with Python's
huggingface_hub.
"""

import hashlib
import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Files from this length on are kept by the second server.
LARGE = 4096
PIECE = 16 * 1024


class File:
    """A file of a commit, and the faults of fetching it. A fault that is a list is used up from its front."""

    def __init__(self, content):
        self.content = content
        self.git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.is_large = len(content) >= LARGE
        # Answers before the real one: pairs of a status and headers.
        self.statuses = []
        # Bytes after which the connection is cut, one for each answer.
        self.cuts = []
        # Bytes after which an answer waits for `released`.
        self.hold_after = None
        self.released = threading.Event()
        self.ignores_ranges = False
        self.refuses_ranges = False
        # Answers whose last byte is wrong.
        self.wrong_bytes = 0
        # Bytes more than the file has that an answer announces and sends.
        self.more = 0
        self.is_page = False
        # Seconds before each piece.
        self.pace = 0

    @property
    def etag(self):
        return self.sha256 if self.is_large else self.git

    def entry(self, path):
        """The file in a listing."""
        entry = {"type": "file", "path": path, "oid": self.git, "size": len(self.content)}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


class Repository:
    def __init__(self, name):
        self.name = name
        self.commits = {}
        self.branches = {}
        # Called after the listing, as someone who pushes meanwhile.
        self.after_listing = None
        # Entries to list in place of the real ones.
        self.entries = None
        # Status, code and message of every answer about it, or of its files alone.
        self.refusal = None
        self.file_refusal = None
        self.moved_to = None

    def commit(self, files, branch="main"):
        """Adds a commit with these files; returns its id."""
        made = {path: File(content) for path, content in files.items()}
        text = json.dumps([self.name, sorted((path, file.etag) for path, file in made.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = made
        self.branches[branch] = commit
        return commit

    def file(self, path, branch="main"):
        return self.commits[self.branches[branch]][path]


class Request:
    def __init__(self, server, method, path, headers):
        self.server, self.method, self.path = server, method, path
        self.authorization = headers.get("Authorization")
        self.range = headers.get("Range")
        self.sent = 0


class Hub:
    """The two servers. `url` is for `HF_ENDPOINT`; `requests` are all that came, with the bytes that were sent."""

    def __init__(self):
        self.repositories = {}
        self.tokens = set()
        self.requests = []
        self.page_size = 1000
        # Called with the number of each request, from 1 on, before it is answered.
        self.before = None
        self.lock = threading.Lock()
        self.servers = [self._serve("127.0.0.1", "hub"), self._serve("127.0.0.2", "store")]
        self.url, self.store_url = (
            "http://{}:{}".format(*server.server_address) for server in self.servers
        )

    def _serve(self, address, name):
        hub = self

        class Bound(Handler):
            pass

        Bound.hub, Bound.name = hub, name
        server = ThreadingHTTPServer((address, 0), Bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def add(self, name, files):
        repository = self.repositories.setdefault(name, Repository(name))
        repository.commit(files)
        return repository

    def close(self):
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for file in files.values():
                    file.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def asked(self, text, method="GET"):
        """The requests whose path holds `text`."""
        return [request for request in self.requests if text in request.path and request.method == method]

    def sent(self, file):
        """Bytes of a large file that were sent."""
        return sum(request.sent for request in self.asked(file.sha256))

    def leaks(self):
        """Requests that carried a token to the wrong server."""
        return [request.path for request in self.requests if request.server != "hub" and request.authorization]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None
    name = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        hub = self.hub
        # A proxy is asked for whole addresses.
        url = urllib.parse.urlsplit(self.path)
        self.asked = Request(self.name, self.command, url.path + ("?" + url.query if url.query else ""), self.headers)
        with hub.lock:
            hub.requests.append(self.asked)
            number = len(hub.requests)
        if hub.before:
            hub.before(number)
        try:
            if self.name == "store":
                self.store(url, with_body)
            else:
                self.as_hub(url, with_body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # The hub itself.

    def as_hub(self, url, with_body):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self.refuse(401, None, "Invalid username or password.", with_body)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        if is_api:
            parts = parts[2:]
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found", with_body)
        if repository.moved_to:
            return self.redirect(307, self.path.replace(name, repository.moved_to, 1))
        refusal = repository.refusal or (repository.file_refusal if not is_api else None)
        if refusal:
            return self.refuse(*refusal, with_body)
        if is_api and rest[:1] == ["refs"]:
            names = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                     for name, commit in repository.branches.items()]  # fmt: skip
            return self.json({"branches": names, "tags": [], "converts": []}, with_body)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}", with_body)
        files = repository.commits[commit]
        if is_api and rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": path} for path in files]
            info = {"id": name, "modelId": name, "sha": commit, "private": False, "gated": False, "siblings": siblings}
            return self.json(info, with_body)
        if is_api and rest[0] == "tree":
            return self.tree(repository, commit, urllib.parse.parse_qs(url.query), with_body)
        path = "/".join(rest[2:])
        if rest[:1] != ["resolve"] or path not in files:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist", with_body)
        self.resolve(commit, files[path], with_body)

    def tree(self, repository, commit, query, with_body):
        entries = repository.entries
        if entries is None:
            entries = [file.entry(path) for path, file in sorted(repository.commits[commit].items())]
        start, size = int(query.get("cursor", ["0"])[0]), self.hub.page_size
        headers = {}
        if start + size < len(entries):
            address = f"{self.hub.url}/api/models/{repository.name}/tree/{commit}?recursive=true&cursor={start + size}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.json(entries[start : start + size], with_body, headers)
        if repository.after_listing:
            after, repository.after_listing = repository.after_listing, None
            after()

    def resolve(self, commit, file, with_body):
        headers = {"X-Repo-Commit": commit}
        if not file.is_large:
            return self.content(file, with_body, {**headers, "ETag": f'"{file.git}"'})
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self.redirect(302, f"{self.hub.store_url}/{commit}/{file.sha256}?signature=secret", headers)

    # The server of large files.

    def store(self, url, with_body):
        if self.headers.get("Authorization"):
            return self.refuse(400, None, "a token came to the wrong server", with_body)
        _, commit, digits = url.path.split("/")
        for repository in self.hub.repositories.values():
            for file in repository.commits.get(commit, {}).values():
                if file.sha256 == digits:
                    return self.content(file, with_body, {"ETag": '"another-one"'})
        self.refuse(404, None, "no such file", with_body)

    # Answers.

    def content(self, file, with_body, headers):
        if file.statuses:
            status, more = file.statuses.pop(0)
            return self.reply(status, b"not now", with_body, more)
        if file.is_page:
            page = b"<html><body>Please log in to the network.</body></html>"
            return self.reply(200, page, with_body, {"Content-Type": "text/html"})
        content, start = file.content + b"x" * file.more, 0
        wanted = self.headers.get("Range")
        if wanted and file.refuses_ranges:
            return self.reply(416, b"", with_body, {"Content-Range": f"bytes */{len(content)}"})
        status = 200
        if wanted and not file.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if file.wrong_bytes and with_body:
            file.wrong_bytes -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.head(status, len(content) - start, {**headers, "Accept-Ranges": "bytes"})
        if with_body:
            self.send(file, content, start)

    def send(self, file, content, start):
        end = len(content)
        if file.cuts:
            end = min(end, start + file.cuts.pop(0))
        at = start
        while at < end:
            if file.hold_after is not None and at >= file.hold_after and not file.released.is_set():
                file.released.wait(60)
            stop = min(end, at + PIECE)
            if file.hold_after is not None and at < file.hold_after:
                stop = min(stop, file.hold_after)
            time.sleep(file.pace)
            self.wfile.write(content[at:stop])
            self.asked.sent += stop - at
            at = stop
        if end < len(content):
            self.close_connection = True

    def json(self, value, with_body, headers=None):
        self.reply(200, json.dumps(value).encode(), with_body, {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status, code, message, with_body):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply(status, json.dumps({"error": message}).encode(), with_body, headers)

    def redirect(self, status, location, headers=None):
        self.reply(status, b"", True, {"Location": location, **(headers or {})})

    def reply(self, status, body, with_body, headers=None):
        self.head(status, len(body), headers or {})
        if with_body:
            self.wfile.write(body)

    def head(self, status, length, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
