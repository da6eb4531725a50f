"""What a batch costs those who wait: the time to the first token of live requests, alone and beside a batch that has more lines
than it can answer. `python benches/serving --only batch` runs it alone.

Live requests come at fixed times, whether or not the ones before have ended, and about half of what the machine could answer;
phases with and without the batch follow each other, so that what disturbs the machine disturbs both."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from loading import fresh_prompt, percentile
from peers import Attune, attunelib

# Live requests of a phase, their tokens, and the time between two of them in seconds.
REQUESTS, PROMPT, NEW_TOKENS, APART = 60, 64, 16, 0.5
# Lines of the batch.
LINES, LINE_PROMPT, LINE_TOKENS = 2000, 96, 64


def first_tokens(server):
    """Milliseconds to the first token of each live request."""

    def ask(due):
        time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        return 1000 * (server.stream(fresh_prompt(PROMPT), NEW_TOKENS)[0] - start)

    begin = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(ask, [begin + number * APART for number in range(REQUESTS)]))


def create_batch(client, server):
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions",
         "body": server.body(fresh_prompt(LINE_PROMPT), LINE_TOKENS)}
        for number in range(LINES)
    ]  # fmt: skip
    file = client.upload("batch.jsonl", "\n".join(map(json.dumps, lines)).encode(), purpose="batch")
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    return client.post("/v1/batches", body)["id"]


def answered(client, batch):
    return client.get(f"/v1/batches/{batch}")["request_counts"]["completed"]


def run(binary, folder, work, rounds):
    """Measures, prints a table, and returns 0."""
    server = Attune(binary, folder, "batch", work).start()
    alone, beside, lines_beside, lines_alone = [], [], [], []
    try:
        client = attunelib.Client(server.server.url)
        first_tokens(server)
        for _ in range(rounds):
            alone += first_tokens(server)
            batch = create_batch(client, server)
            while answered(client, batch) == 0:
                time.sleep(0.1)
            before, start = answered(client, batch), time.perf_counter()
            time.sleep(10)
            middle, between = answered(client, batch), time.perf_counter()
            lines_alone.append((middle - before) / (between - start))
            beside += first_tokens(server)
            lines_beside.append((answered(client, batch) - middle) / (time.perf_counter() - between))
            client.post(f"/v1/batches/{batch}/cancel")
            while client.get(f"/v1/batches/{batch}")["status"] != "cancelled":
                time.sleep(0.1)
    finally:
        server.stop()
    print("| live requests | median, ms | p95 | p99 | lines of the batch a second |\n|---|---|---|---|---|")
    for name, times, lines in (("alone", alone, None), ("beside a batch", beside, lines_beside)):
        shown = f"{statistics.median(times):.0f} | {percentile(times, 0.95):.0f} | {percentile(times, 0.99):.0f}"
        print(f"| {name} | {shown} | {'' if lines is None else f'{statistics.mean(lines):.2f}'} |")
    print(f"| none | | | | {statistics.mean(lines_alone):.2f} |")
    print(f"\np99 beside a batch / alone: {percentile(beside, 0.99) / percentile(alone, 0.99):.2f}")
    return 0
