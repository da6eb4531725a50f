"""Writes the fine-tuning set of the demo: customers' messages and their one-line JSON tickets.

    python tickets.py          writes ../tickets/train.jsonl and ../tickets/heldout.jsonl

A message is put together from an opening, a complaint, a wish and optional
parts (greeting, filler, tone, closing; see `shop.py`).  A held-out message uses
a (opening, complaint, wish) combination and an (item, order) pair that no
training message uses.
"""

import argparse
import json
import random
from pathlib import Path

import shop

HERE = Path(__file__).resolve().parent.parent


def ticket(item, order, problem, wants, urgent):
    """The one-line JSON the model is to write."""
    return json.dumps({"item": item, "order": order, "problem": problem, "wants": wants, "urgent": urgent},
                      separators=(",", ":"))


def one(rng):
    """A message, its ticket, and the combination it was made of."""
    problem = rng.choice(list(shop.PROBLEMS))
    wants = rng.choice(shop.ALLOWED[problem])
    item, order, urgent = rng.choice(shop.ITEMS), rng.randint(1000, 9999), rng.random() < 0.5
    picked = []

    def pick(bank):
        phrase = rng.choice(bank)
        picked.append(phrase)
        return phrase

    text = shop.message(rng, item, order, problem, wants, urgent, pick)
    core = tuple(p for p in picked if p in shop.OPENINGS or p in shop.PROBLEMS[problem] or p in shop.WANTS[wants])
    line = {"messages": [{"role": "user", "content": text},
                         {"role": "assistant", "content": ticket(item, order, problem, wants, urgent)}]}
    return line, core, (item, order)


def build(train, heldout, seed=41):
    """The two lists of lines."""
    rng = random.Random(seed)
    lines, cores, pairs, orders = [], set(), set(), set()
    while len(lines) < train:
        line, core, pair = one(rng)
        if pair[1] in orders:
            continue
        lines.append(line)
        cores.add(core)
        pairs.add(pair)
        orders.add(pair[1])
    kept = []
    while len(kept) < heldout:
        line, core, pair = one(rng)
        if core in cores or pair[1] in orders:
            continue
        kept.append(line)
        cores.add(core)
        orders.add(pair[1])
    return lines, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--out", type=Path, default=HERE / "tickets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, lines in zip(("train", "heldout"), build(args.train, args.heldout)):
        with open(args.out / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for line in lines:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
