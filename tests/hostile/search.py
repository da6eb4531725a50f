"""Sends many requests made by chance, the same for the same seed, to a server of its own, and prints the ten that cost
the most memory and the ten that took the longest. Fails if one is above the memory of a request, has a status that its
client cannot act on, or takes too long.

    python tests/hostile/search.py --binary target/release/attune --count 10000 --seed 1
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import httpx  # noqa: E402
from bodies import headers, messages, prompts, shapes  # noqa: E402
from conftest import MIB, ONE, Memory, Tenant, attunelib, chat, timed, under  # noqa: E402
from forms import Upload, form  # noqa: E402
from schemas import schema, word  # noqa: E402

# Longest time of one request that runs alone, in seconds.
LONGEST = 60


def one_schema(source):
    return under(schema(source), n=source.choice([1, 1, 8, 128]), max_tokens=source.choice([4, 30, 300]))


def some_tools(source):
    functions = [
        {"name": f"f{index}", "strict": source.random() < 0.3, "parameters": {"type": "object", "properties": {"a": schema(source)}}}
        for index in range(source.choice([1, 4, 40]))
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    return chat(tools=tools, tool_choice=source.choice(["auto", "required"]), n=source.choice([1, 16]))


def stops(source):
    size = source.choice([10, 1000, 4096, 4097, 200_000])
    text = word(source, source.choice([1, 2, 50]), "ab")
    return chat(stop=[(text * size)[:size] for _ in range(source.choice([1, 4, 5]))], n=source.choice([1, 128]))


def bias(source):
    ids = range(source.choice([10, 1900, 20_000]))
    spelling = source.choice(["{}", "0{}", "+{}"])
    return chat(logit_bias={spelling.format(id): source.uniform(-100, 100) for id in ids}, n=source.choice([1, 128]))


KINDS = [one_schema, one_schema, one_schema, some_tools, stops, bias, prompts, prompts, messages, shapes, shapes, headers,
         form, form]  # fmt: skip
# Statuses that a client can act on.
SOUND = (200, 400, 403, 404, 413, 429, 431)


def send(tenant, made):
    """Sends a body of a chat request, or what `bodies` or `forms` make; returns the answer, `None` if the connection was
    closed."""
    if isinstance(made, Upload):
        made = made.path, made.body, {"Content-Type": made.content_type}
    path, body, extra = made if isinstance(made, tuple) else ("/v1/chat/completions", made, {})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    # The client itself refuses blanks at the ends.
    heads = {"Content-Type": "application/json", **extra}.items()
    fields = [(name, (text if isinstance(text, bytes) else text.encode("latin-1")).strip()) for name, text in heads]
    with tenant.client(600) as client:
        try:
            return client.post(path, content=content, headers=fields), len(content)
        except (httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
            # So servers end requests whose headers are too long.
            return None, len(content)


def run(server, count, seed, first):
    source, tenant, memory = random.Random(seed), Tenant(server, "none"), Memory(server.process.pid)
    tenant.post(under({"type": "null"}))
    costs, faults = [], []
    for number in range(count):
        # A source of its own, so that one request can be made again alone.
        own = random.Random(source.getrandbits(64))
        kind = own.choice(KINDS)
        if number < first:
            continue
        made = kind(own)
        memory.watch()
        (answer, size), seconds = timed(lambda: send(tenant, made))
        grown, said = memory.grown(), answer.text[:160].replace("\n", " ") if answer else "closed"
        status = answer.status_code if answer else 431
        text = f"{number} {kind.__name__} {size} bytes: {status} {said}"
        costs.append((grown, seconds, text))
        if grown > ONE or seconds > LONGEST or status not in SOUND or (answer is None and kind is not headers):
            faults.append((grown, seconds, text))
            print("FAULT", show(faults[-1]), flush=True)
    for title, place in (("memory", 0), ("time", 1)):
        print(f"the ten that took the most {title}:")
        for cost in sorted(costs, key=lambda cost: -cost[place])[:10]:
            print("  ", show(cost))
    return faults


def show(cost):
    grown, seconds, text = cost
    return f"{grown / MIB:7.1f} MiB {seconds:7.2f} s  {text}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--first", type=int, default=0, help="the number of the first request that is sent")
    given = arguments.parse_args()
    folder = attunelib.data_folder()
    server = attunelib.Server(given.binary, folder)
    try:
        server.start()
        faults = run(server, given.count, given.seed, given.first)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(f"{len(faults)} requests are above their budget" if faults else None)


if __name__ == "__main__":
    main()
