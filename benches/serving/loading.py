"""What loading adapters costs those who are being answered: the time between tokens of streams, alone and while ten requests
a second want an adapter that is on the device, in host memory, on the disk, or from elsewhere. `python benches/serving
--only loading` runs it alone.

The cases of a round follow each other, so that what disturbs the machine disturbs all of them. The CPU time of a load is that
of the whole process while nothing else is asked, less that of the same requests to adapters on the device."""

import itertools
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import checkpoint
from peers import Attune

# Streams, their prompts and their new tokens.
STREAMS, PROMPT, NEW_TOKENS = 8, 32, 256
LOADS_A_SECOND = 10
# The device has room for eight adapters of 19.5 MB: the streams' requests need none.
DEVICE_MIB = "160"
# Adapters that the host tier holds where it is on.
IN_HOST = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Starts of prompts, so that no cache has met one.
NUMBERS = itertools.count()


def percentile(values, share):
    """The value below which `share` of the sorted values lie."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def fresh_prompt(length):
    """A prompt of `length` tokens that no cache has met."""
    number, digits = next(NUMBERS), []
    for _ in range(length):
        number, digit = divmod(number, len(LETTERS))
        digits.append(LETTERS[digit])
    return "".join(digits)


class Loads:
    """Calls `load` with 0, 1, 2 … ten times a second until it is left; a slow call does not delay the next."""

    def __init__(self, load):
        self.load, self.seconds, self.stop = load, [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def call(self, turn):
        start = time.perf_counter()
        self.load(turn)
        self.seconds.append(time.perf_counter() - start)

    def run(self):
        with ThreadPoolExecutor(2 * LOADS_A_SECOND) as pool:
            begin, calls = time.perf_counter(), []
            for turn in itertools.count():
                if self.stop.wait(max(0.0, begin + turn / LOADS_A_SECOND - time.perf_counter())):
                    break
                calls.append(pool.submit(self.call, turn))
            for call in calls:
                call.result()

    def __enter__(self):
        self.begin = time.perf_counter()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.a_second = len(self.seconds) / (time.perf_counter() - self.begin)


def gaps(server):
    """Milliseconds between the tokens of the streams, the first of each left out: it waits for the others' prompts."""
    with ThreadPoolExecutor(STREAMS) as pool:
        times = list(pool.map(lambda _: server.stream(fresh_prompt(PROMPT), NEW_TOKENS), range(STREAMS)))
    return [1000 * (later - earlier) for stream in times for earlier, later in itertools.pairwise(stream[1:])]


def cpu_seconds(pid):
    """CPU time of all threads of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_ms(server, load, count=40):
    """CPU milliseconds of one call, one after the other."""
    load(0)
    before = cpu_seconds(server.server.process.pid)
    for turn in range(1, count + 1):
        load(turn)
    return 1000 * (cpu_seconds(server.server.process.pid) - before) / count


class Turns:
    """Names of adapters, the next one with each call, over all rounds: one comes back after all others had their turn."""

    def __init__(self, server, first, count):
        self.server, self.turns, self.first, self.count = server, itertools.count(), first, count

    def __call__(self, _):
        self.server.complete(fresh_prompt(4), 1, f"loading-{self.first + next(self.turns) % self.count}")


def register(server, count):
    """Loads `count` adapters of rank 16 on all linear layers, which differ in one number."""
    folder = server.data / "loading"
    checkpoint.write_adapter(folder, 1)
    with open(folder / "adapter_model.safetensors", "r+b") as weights:
        for number in range(count):
            change(weights, number)
            server.load_adapter(f"loading-{number}", folder, replace=True)


def change(weights, number):
    """Sets the last bytes of the file to those of a number that no other adapter has."""
    weights.seek(-2, os.SEEK_END)
    weights.write(number.to_bytes(2, "little"))
    weights.flush()


class Imports:
    """Loads an adapter from one of a few folders, each time with other content, in place of the one before."""

    def __init__(self, server, folders=4):
        self.server, self.numbers = server, itertools.count(5000)
        self.turns = [threading.Lock() for _ in range(folders)]
        for number in range(folders):
            checkpoint.write_adapter(server.data / f"imported-{number}", 2)

    def __call__(self, _):
        number = next(self.numbers)
        name = f"imported-{number % len(self.turns)}"
        folder = self.server.data / name
        with self.turns[number % len(self.turns)], open(folder / "adapter_model.safetensors", "r+b") as weights:
            change(weights, number)
            self.server.load_adapter(name, folder, replace=True)


def measure(server, cases, rounds, table):
    """Runs the cases in turn and adds their figures to the table."""
    times = {name: [] for name in cases}
    waits = {name: [] for name in cases}
    rates = {name: [] for name in cases}
    cost = {name: cpu_ms(server, load) for name, load in cases.items() if load}
    gaps(server)
    for _ in range(rounds):
        for name, load in cases.items():
            if load is None:
                times[name].append(gaps(server))
                continue
            with Loads(load) as loads:
                times[name].append(gaps(server))
            waits[name] += loads.seconds
            rates[name].append(loads.a_second)
    alone = next(iter(cases))
    for name in cases:
        middle = statistics.median(percentile(one, 0.5) for one in times[name])
        high = statistics.median(percentile(one, 0.99) for one in times[name])
        ratio = statistics.median(
            percentile(one, 0.99) / percentile(other, 0.99) for one, other in zip(times[name], times[alone], strict=True)
        )
        row = [name, f"{middle:.1f}", f"{high:.1f}", f"{ratio:.2f}"]
        if waits[name]:
            seconds = waits[name]
            row += [f"{statistics.median(rates[name]):.1f}", f"{1000 * statistics.median(seconds):.0f}",
                    f"{1000 * max(seconds):.0f}", f"{cost[name]:.1f}"]  # fmt: skip
        table.append(row + [""] * (8 - len(row)))
        print("| " + " | ".join(table[-1]) + " |", flush=True)


def run(binary, model, work, adapters, rounds):
    """Measures all cases and prints the table."""
    print("| case | between tokens, ms, median | 99th percentile | times alone | a second | answer, ms, median | longest "
          "| CPU ms |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    table = []
    for host_mib, source in (("0", "on the disk"), (str(25 * IN_HOST), "in host memory")):
        settings = {"ATTUNE_LIMITS__ADAPTER_DEVICE_MIB": DEVICE_MIB, "ATTUNE_LIMITS__ADAPTER_HOST_MIB": host_mib}
        server = Attune(binary, model, "loading", work, settings=settings).start()
        try:
            if source == "on the disk":
                register(server, adapters)
            count = adapters if source == "on the disk" else min(adapters, IN_HOST)
            wanted = Turns(server, 0, count)
            # As in a server that has run for a while: each has been loaded before.
            for _ in range(count):
                wanted(0)
            cases = {f"alone ({source})": None, "adapter on the device": Turns(server, 0, 4),
                     f"adapter {source}": wanted}  # fmt: skip
            if source == "on the disk":
                cases["adapter from elsewhere"] = Imports(server)
            measure(server, cases, rounds, table)
        finally:
            server.stop()
