"""Measures the page at `/ui`: how long the server takes for each page with 1,000 jobs of 5,000 steps, and what 200
open pages cost the engine. `make bench-ui` runs it; it ends with status 1 if a page takes 100 ms or the engine loses
2 % of its throughput.

A page's time is that of the whole answer, over one connection to a server on the same machine, with a session; each
figure is a median. For the engine's throughput the pages are opened and closed in turn, again and again: rounds with
and without them lie side by side, so that what disturbs the machine disturbs both. The same jobs make steps in all.
"""

import argparse
import http.client
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(HERE))
import attunelib  # noqa: E402
import load  # noqa: E402
import rows  # noqa: E402

KEY = "bench"
MOST_MILLISECONDS, MOST_LOST = 100, 0.02

# Every page, by the jobs that `rows.py` makes; a new one gets its line.
PAGES = {
    "fine-tunes": lambda jobs: "/ui/fine-tunes",
    "fine-tunes, 100 on a page, from the middle": lambda jobs: f"/ui/fine-tunes?limit=100&after={jobs.middle}",
    "fine-tune": lambda jobs: f"/ui/fine-tunes/{jobs.ended[0]}",
    "fine-tune, its parts that change": lambda jobs: f"/ui/fine-tunes/{jobs.ended[0]}?part=live",
    "fine-tune, its curves": lambda jobs: f"/ui/fine-tunes/{jobs.ended[0]}/curves",
    "fine-tune of 10,000 steps": lambda jobs: f"/ui/fine-tunes/{jobs.long}",
    "points": lambda jobs: f"/ui/fine-tunes/{jobs.ended[0]}/points",
    "events": lambda jobs: f"/ui/fine-tunes/{jobs.ended[0]}/events",
    "comparison of 6": lambda jobs: "/ui/fine-tunes/compare?" + "&".join(f"job={job}" for job in jobs.ended[:6]),
    "new fine-tune": lambda jobs: "/ui/fine-tunes/new",
    "playground": lambda jobs: "/ui/playground",
    "similarity": lambda jobs: "/ui/playground/texts",
    "models": lambda jobs: "/ui/models",
    "model": lambda jobs: "/ui/models/demo",
    "usage": lambda jobs: "/ui/usage",
    "costs": lambda jobs: "/ui/usage/costs",
    "operations": lambda jobs: "/ui/operations",
    "keys": lambda jobs: "/ui/operations/keys",
}


def session(server):
    """The cookie of somebody who has signed in."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/ui/sign-in", f"key={KEY}", form)
    answer = connection.getresponse()
    if answer.status != 303:
        raise RuntimeError(f"signing in: {answer.status} {answer.read()[:500]}")
    return answer.headers["set-cookie"].split(";")[0]


def first_paints(server, cookie, jobs, times):
    """Milliseconds of each page, sorted."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=600)
    figures = {}
    for name, path in PAGES.items():
        took = []
        for _ in range(times + 2):
            start = time.perf_counter()
            connection.request("GET", path(jobs), headers={"Cookie": cookie})
            answer = connection.getresponse()
            body = answer.read()
            took.append((time.perf_counter() - start) * 1000)
            if answer.status != 200:
                raise RuntimeError(f"{path(jobs)}: {answer.status} {body[:500]}")
        # The first ones find cold caches.
        figures[name] = (sorted(took[2:]), len(body))
        print(f"{name}: {statistics.median(figures[name][0]):.1f} ms, {len(body):,} bytes", flush=True)
    return figures


def cpu_seconds(server):
    """What the server and its database have computed so far."""
    total = 0.0
    children = subprocess.run(["ps", "-eo", "pid=,ppid=,cputimes="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in children.splitlines()}
    for pid in parents:
        ancestor = pid
        while ancestor and ancestor != server.process.pid:
            ancestor = parents.get(ancestor, 0)
        if ancestor:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def open_pages(server, cookie, jobs, pages, rounds, seconds):
    """Throughput with and without open pages in each round, and the share of a core that the pages take."""
    paths = [f"/ui/fine-tunes/{jobs.running[number % len(jobs.running)]}" for number in range(pages)]
    throughput, computed = {False: [], True: []}, {False: [], True: []}
    with rows.Steps(server, jobs):
        for turn in range(rounds):
            # Whichever comes first may gain by it.
            for is_open in (False, True) if turn % 2 else (True, False):
                with load.Pages(server.url, cookie, paths if is_open else []):
                    throughput[is_open].append(load.tokens_per_second(server.url, KEY, seconds))
            print(f"round {turn + 1}: {throughput[False][-1]:,.0f} tokens/s, with {pages} pages "
                  f"{throughput[True][-1]:,.0f}", flush=True)  # fmt: skip
        for _ in range(3):
            for is_open in (False, True):
                with load.Pages(server.url, cookie, paths if is_open else []) as opened:
                    before, start, heard = cpu_seconds(server), time.monotonic(), opened.heard()
                    time.sleep(seconds)
                    computed[is_open].append((cpu_seconds(server) - before) / (time.monotonic() - start))
                    if is_open and opened.heard() <= heard:
                        raise RuntimeError("the open pages hear nothing")
    return throughput, {is_open: statistics.median(shares) for is_open, shares in computed.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="measure this attune instead of building one")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5000, help="steps of each job")
    parser.add_argument("--pages", type=int, default=200, help="open pages")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=6, help="length of a round with and of one without pages")
    arguments = parser.parse_args()

    binary = arguments.binary or attunelib.build()
    data_dir = attunelib.data_folder()
    settings = {"ATTUNE_API_KEYS": f'["{KEY}"]', "ATTUNE_PRICES": "{demo={prompt=2.0,completion=10.0,training=5.0}}"}
    server = attunelib.Server(binary, data_dir, settings=settings)
    try:
        server.start()
        start = time.monotonic()
        jobs = rows.make(server, attunelib.Client(server.url, KEY), arguments.jobs, arguments.steps)
        print(f"{arguments.jobs} jobs of {arguments.steps} steps: made in {time.monotonic() - start:.0f} s", flush=True)
        cookie = session(server)
        paints = first_paints(server, cookie, jobs, 20)
        throughput, computed = open_pages(
            server, cookie, jobs, arguments.pages, arguments.rounds, arguments.seconds
        )
    finally:
        server.stop()
        shutil.rmtree(data_dir, ignore_errors=True)

    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("| page | ms, median | 95th percentile | bytes |\n|---|---|---|---|")
    for name, (took, size) in paints.items():
        print(f"| {name} | {statistics.median(took):.1f} | {took[int(0.95 * len(took))]:.1f} | {size:,} |")
    without, with_pages = (statistics.median(throughput[is_open]) for is_open in (False, True))
    lost = 1 - statistics.median(opened / closed for closed, opened in zip(throughput[False], throughput[True]))
    print(f"\nengine: {without:,.0f} tokens/s without pages, {with_pages:,.0f} with {arguments.pages}: "
          f"{lost:.1%} lost (median of {arguments.rounds} rounds side by side)")  # fmt: skip
    print(f"idle server and database: {computed[False]:.2%} of a core without pages, {computed[True]:.2%} with them")
    slow = [name for name, (took, _) in paints.items() if statistics.median(took) >= MOST_MILLISECONDS]
    faults = [f"{name} takes {MOST_MILLISECONDS} ms or more" for name in slow]
    if lost >= MOST_LOST:
        faults.append(f"open pages cost {lost:.1%} of the throughput")
    for fault in faults:
        print(f"Not kept: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
