"""What asks a server while it is measured: programs that want answers of the model, and pages that people look at."""

import concurrent.futures
import multiprocessing
import re
import selectors
import socket
import time
import urllib.parse

import attunelib

PROGRAMS = 8
BODY = {"model": "demo", "prompt": "The", "max_tokens": 96, "temperature": 0}


def tokens_per_second(url, key, seconds):
    """New tokens per second of programs that ask one after the other, all at once."""
    client = attunelib.Client(url, key)
    start = time.monotonic()

    def ask(number):
        tokens, last = 0, start
        while time.monotonic() - start < seconds:
            body = {**BODY, "prompt": f"The {number}"}
            tokens += client.post("/v1/completions", body)["usage"]["completion_tokens"]
            last = time.monotonic()
        return tokens / (last - start)

    with concurrent.futures.ThreadPoolExecutor(PROGRAMS) as pool:
        return sum(pool.map(ask, range(PROGRAMS)))


class Pages:
    """Open pages: each has loaded itself and its curves as a browser does, and holds its stream. They live in a process
    of their own, which reads what comes and does nothing with it."""

    def __init__(self, url, cookie, paths):
        self.ready = multiprocessing.Event()
        self.bytes = multiprocessing.Value("Q", 0)
        arguments = (urllib.parse.urlsplit(url).netloc, cookie, paths, self.ready, self.bytes)
        self.process = multiprocessing.Process(target=look, args=arguments, daemon=True)

    def heard(self):
        """Bytes of the streams so far."""
        return self.bytes.value

    def __enter__(self):
        self.process.start()
        while not self.ready.wait(1):
            if not self.process.is_alive():
                raise RuntimeError("the pages could not be opened")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()


def look(address, cookie, paths, ready, heard):
    host, port = address.split(":")

    def ask(path, *headers):
        connection = socket.create_connection((host, int(port)), 60)
        lines = [f"GET {path} HTTP/1.1", f"Host: {address}", f"Cookie: {cookie}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        return connection

    def whole(path):
        with ask(path, "Connection: close") as connection:
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        if b" 200 " not in answer[:20]:
            raise RuntimeError(f"{path}: {answer[:500]}")
        return answer

    selector = selectors.DefaultSelector()
    # The page says with which event its stream goes on. One of each job loads all of it: the stream is what counts.
    last = {}
    for path in dict.fromkeys(paths):
        last[path] = re.search(rb'data-last="(\d+)"', whole(path))[1].decode()
        whole(path + "/curves")
    for path in paths:
        stream = ask(f"{path}/stream?after={last[path]}", "Accept: text/event-stream")
        answer = stream.recv(65536)
        if b"text/event-stream" not in answer:
            raise RuntimeError(f"{path}: {answer[:500]}")
        selector.register(stream, selectors.EVENT_READ)
    ready.set()
    while True:
        for key, _ in selector.select(1):
            heard.value += len(key.fileobj.recv(65536))
