"""Measures training side by side with transformers, PEFT and TRL, on random weights of SmolLM2-135M's shape, and prints a
table for each kind of chats: f32, LoRA of rank 16 on all linear layers. All take turns, each in a new process, so that what
disturbs the machine disturbs all of them; each figure is a median. `make bench-training` runs it.

Tokens are those of the chats, padding not counted: the same number for all, which is checked. CPU seconds are those of the
training process, of all its threads, while it trains, and memory is the most that it has resident meanwhile; both are looked
at from outside, in the same way for all.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "serving"))
import checkpoint  # noqa: E402
import data  # noqa: E402
from trainers import attunelib, in_process, with_attune  # noqa: E402

BATCH, FEWEST_STEPS = 4, 3
SETTINGS = {
    "n_epochs": 1, "batch_size": BATCH, "rank": 16, "alpha": 32, "learning_rate": 2e-4, "learning_rate_multiplier": 1,
    "target_modules": list(dict.fromkeys(name.split(".")[1] for name in checkpoint.LAYERS)), "lr_scheduler": "linear",
    "warmup_ratio": 0, "weight_decay": 0, "max_grad_norm": 1, "lora_dropout": 0, "use_rslora": False,
}  # fmt: skip
SIDES = ("attune", "plain", "trl")


def write_model(folder):
    """The checkpoint, with the benchmark's chat template."""
    if not (folder / "complete").exists():
        checkpoint.write_folder(folder, checkpoint.tensors())
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": data.TEMPLATE}))
        (folder / "complete").touch()
    return folder


def trainers(sides, binary, work):
    """What trains on a file of chats, by its name in the table."""
    model, told = write_model(work / "model"), work / "settings.json"
    told.write_text(json.dumps({**SETTINGS, "seed": 1}))

    def plain(threads):
        return lambda chats: in_process("plain.py", work / "plain.log", model, chats, told, threads)

    def trl(mode):
        out = str(work / f"out-{mode}")
        return lambda chats: in_process("peer.py", work / f"{mode}.log", model, chats, mode, PEER_OUT=out)

    made = {}
    if "attune" in sides:
        made["Attune"] = lambda chats: with_attune(binary, model, chats, SETTINGS)
    if "plain" in sides:
        made["transformers + PEFT, a plain loop, one thread"] = plain(1)
        made[f"transformers + PEFT, a plain loop, {os.cpu_count()} threads"] = plain(os.cpu_count())
    if "trl" in sides:
        made[f"transformers + PEFT + TRL, its defaults (batch {BATCH}, padded)"] = trl("padded")
        made["transformers + PEFT + TRL, packed at 1,024"] = trl("packed")
    return made


def measured(made, chats, tokens, rounds):
    """What each trainer took in each round."""
    figures = {name: [] for name in made}
    for turn in range(rounds):
        for name, train in made.items():
            trained = train(chats)
            if trained.tokens != tokens:
                raise RuntimeError(f"{name} trained on {trained.tokens} tokens, the chats have {tokens}")
            figures[name].append(trained)
            print(f"round {turn + 1}: {name}: {trained.in_words()}", flush=True)
    return figures


def median(figures, of):
    """The median of each trainer's figure."""
    return {name: statistics.median(map(of, trained)) for name, trained in figures.items()}


def report(kind, count, tokens, rounds, figures):
    """The table: medians, and each trainer's beside the first one's."""
    print(
        f"\nSmolLM2-135M's shape, f32, LoRA of rank {SETTINGS['rank']} on all linear layers, {count} {kind} chats with "
        f"{tokens:,} tokens (mean {tokens / count:.0f}), {os.cpu_count()} cores, {platform.machine()}, medians of {rounds}\n"
    )
    print("| trainer | tokens/s | the first's beside it | tokens a CPU second | the first's beside it | peak resident MiB "
          "| beside the first's |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    speed = median(figures, lambda trained: trained.tokens / trained.seconds)
    thrift = median(figures, lambda trained: trained.tokens / trained.cpu_seconds)
    peak = median(figures, lambda trained: trained.peak)
    first = next(iter(figures))
    for name in figures:
        print(
            f"| {name} | {speed[name]:,.1f} | {speed[first] / speed[name]:.2f} | {thrift[name]:,.1f} | "
            f"{thrift[first] / thrift[name]:.2f} | {peak[name] / 2**20:,.0f} | {peak[name] / max(peak[first], 1):.2f} |"
        )
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="measure this attune instead of building one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (default 3)")
    parser.add_argument("--steps", type=int, help=f"steps of {BATCH} chats (default: by the kind of chats)")
    parser.add_argument("--only", choices=SIDES, action="append", help="one side; may be given again")
    parser.add_argument("--chats", choices=data.KINDS, action="append", help="one kind of chats; may be given again")
    parser.add_argument("--work", type=Path, help="keep the made checkpoint here")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps must be {FEWEST_STEPS} or more: a training file needs ten examples")
    work = arguments.work or attunelib.data_folder()
    work.mkdir(parents=True, exist_ok=True)
    sides = arguments.only or SIDES
    try:
        made = trainers(sides, arguments.binary or ("attune" in sides and attunelib.build()), work)
        for kind in arguments.chats or data.KINDS:
            of_kind = data.KINDS[kind]
            examples = data.chats(of_kind, BATCH * (arguments.steps or of_kind.steps))
            tokens = sum(map(data.tokens, examples))
            chats = data.write(work / f"{kind}.jsonl", examples)
            report(kind, len(examples), tokens, arguments.rounds, measured(made, chats, tokens, arguments.rounds))
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
