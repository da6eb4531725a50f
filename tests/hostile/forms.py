"""Uploads whose framing costs a server much or is broken: boundaries, heads, parts and lengths made by chance."""

import json

TYPE = "multipart/form-data; boundary={}"
PART = 'Content-Disposition: form-data; name="{}"'


class Upload:
    """A body of `POST /v1/files`, sent as it is."""

    path = "/v1/files"

    def __init__(self, body, boundary="edge", content_type=None):
        self.body, self.content_type = body, content_type or TYPE.format(boundary)

    def send(self, tenant, timeout=120):
        with tenant.client(timeout) as client:
            return client.post(self.path, content=self.body, headers={"Content-Type": self.content_type})


def part(name, content, filename=None, boundary="edge", extra=()):
    """One part of a form, with the delimiter before it."""
    head = PART.format(name) + (f'; filename="{filename}"' if filename is not None else "")
    lines = [f"--{boundary}", head, *extra, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


def line(length=100):
    return json.dumps({"prompt": "x" * length, "completion": " y"}).encode() + b"\n"


def whole(*parts, boundary="edge"):
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def form(source):
    """A form of which one thing is made by chance; most are refused."""
    size = source.choice([1, 100, 5000, 100_000, 4 << 20])
    purpose, file = part("purpose", b"fine-tune"), part("file", line(), "x.jsonl")
    text = source.choice(["x", "\r", "\r\n--edg", "--edge", "\r\n", '"', "\\", "=?utf-8?Q?=41?=", ";", " ", "\0", "ä"])
    text = (text * (size // len(text) + 1))[:size]
    kind = source.choice(["preamble", "boundary", "filename", "header", "parts", "file", "twice", "cut", "end", "rubbish"])
    if kind == "preamble":
        return Upload(text.encode() + b"\r\n" + whole(purpose, file))
    if kind == "boundary":
        boundary = source.choice(["b" * 70, "b" * 71, "a b", "ä", "", "'()+_,-./:=?", "-", "b" * size])[:8000]
        parts = [part("purpose", b"fine-tune", boundary=boundary), part("file", line(), "x", boundary=boundary)]
        kind = f'multipart/form-data; boundary="{boundary}"'.encode().decode("latin-1")
        return Upload(whole(*parts, boundary=boundary), content_type=kind.encode("latin-1"))
    if kind == "filename":
        return Upload(whole(purpose, part("file", line(), text)))
    if kind == "header":
        extra = [f"{name}: {text[:2000]}" for name in ["A"] * source.choice([1, 15, 16, 1000])]
        return Upload(whole(purpose, part("file", line(), "x", extra=extra)))
    if kind == "parts":
        count = source.choice([1, 30, 31, 10_000])
        return Upload(whole(purpose, file, *[part(f"f{index}", text.encode()[:4097]) for index in range(count)]))
    if kind == "file":
        return Upload(whole(purpose, part("file", text.encode(), "x.jsonl")))
    if kind == "twice":
        return Upload(whole(purpose, *source.choice([[file, file], [purpose, file], [file, purpose]])))
    if kind == "cut":
        body = whole(purpose, part("file", line(size), "x.jsonl"))
        return Upload(body[: source.randrange(len(body))])
    if kind == "end":
        return Upload(whole(purpose, file) + text.encode())
    return Upload(source.randbytes(size))
