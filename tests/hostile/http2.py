"""Frames of HTTP/2 (RFC 9113) by hand, over a raw socket: what no sound client would send, and what clients hide."""

import socket
import struct
import urllib.parse

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def text(value):
    """A text of HPACK that is shorter than 127 bytes, without Huffman's code."""
    return bytes([len(value)]) + value.encode()


def head(method, path, key=None):
    """The fields of a request: indexed ones of the static table, and literals that are not kept."""
    fields = {"GET": b"\x82", "POST": b"\x83"}[method] + b"\x86\x01" + text("localhost") + b"\x04" + text(path)
    if key:
        fields += b"\x0f\x08" + text(f"Bearer {key}")
    if method == "POST":
        fields += b"\x0f\x10" + text("application/json")
    return fields


class Connection:
    """A connection that has sent the preface and its settings. It acknowledges pings only if it is `polite`."""

    def __init__(self, url, polite=True, window=65_535, receive_buffer=None):
        address = urllib.parse.urlsplit(url)
        self.polite = polite
        self.frames = []
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect((address.hostname, address.port))
        settings = struct.pack("!HI", INITIAL_WINDOW_SIZE, window)
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, settings))

    def send(self, content):
        self.socket.sendall(content)

    def request(self, method, path, key=None, body=None, stream=1):
        ends = END_STREAM if body is None else 0
        content = frame(HEADERS, head(method, path, key), END_HEADERS | ends, stream)
        if body is not None:
            content += frame(DATA, body, END_STREAM, stream)
        self.send(content)

    def _exactly(self, size):
        content = b""
        while len(content) < size:
            piece = self.socket.recv(size - len(content))
            if not piece:
                return None
            content += piece
        return content

    def read(self):
        """The next frame as (kind, flags, stream, payload), or None if the server has closed the connection."""
        try:
            start = self._exactly(9)
            payload = start and self._exactly(int.from_bytes(start[:3], "big"))
        except (ConnectionResetError, BrokenPipeError):
            return None
        if payload is None:
            return None
        kind, flags, stream = start[3], start[4], int.from_bytes(start[5:9], "big")
        self.frames.append(kind)
        if kind == SETTINGS and not flags & ACK:
            self._answer(frame(SETTINGS, flags=ACK))
        if kind == PING and not flags & ACK and self.polite:
            self._answer(frame(PING, payload, ACK))
        return kind, flags, stream, payload

    def _answer(self, content):
        try:
            self.send(content)
        except (ConnectionResetError, BrokenPipeError):
            pass  # The next read sees the end.

    def answer(self, stream=1):
        """Reads to the end of the stream's answer; returns its body, or None if the connection ended before."""
        body = b""
        while got := self.read():
            kind, flags, of, payload = got
            if of == stream and kind == DATA:
                body += payload
            if of == stream and flags & END_STREAM and kind in (DATA, HEADERS):
                return body
        return None

    def read_to_the_end(self):
        while self.read():
            pass

    def close(self):
        self.socket.close()
