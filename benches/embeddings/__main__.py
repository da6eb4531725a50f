"""Measures embeddings side by side with sentence-transformers, ONNX Runtime and infinity, on the real all-MiniLM-L6-v2, and
prints a table for each part. All stand at the same time and take turns, so that what disturbs the machine disturbs all of them;
each figure is a median. `make bench-embeddings` runs it; docs/performance.md keeps a table.

  speed     192 texts of mixed lengths, and one short query at a time
  adapters  the same texts spread over 1,024 LoRA adapters, beside the base alone
  tune      a fine-tune on pairs of texts and what it finds, beside sentence-transformers' trainer with the same settings

Tokens are the model's, padding and truncation not counted. CPU seconds are those of the process that embeds, looked at from
outside in the same way for all.
"""

import argparse
import os
import platform
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tools"))
import attunelib  # noqa: E402
import real_models  # noqa: E402

PARTS = ("speed", "adapters", "tune")


def run(part, arguments, model, work):
    """Runs one part. Each imports what only it needs."""
    if part == "speed":
        import speed

        speed.run(arguments.binary, model, work, arguments.rounds)
    elif part == "adapters":
        import adapters

        adapters.run(arguments.binary, model, work, arguments.adapters, arguments.rounds)
    else:
        import tune

        tune.run(arguments.binary, model, work, arguments.pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="measure this attune instead of building one")
    parser.add_argument("--peers-only", action="store_true", help="leave Attune out, and with it what needs Attune")
    parser.add_argument("--rounds", type=int, default=5, help="times that each figure is taken (default 5)")
    parser.add_argument("--adapters", type=int, default=1024, help="loaded adapters (default 1024)")
    parser.add_argument("--pairs", type=int, default=1600, help="pairs to learn from (default 1600)")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--work", type=Path, help="keep what is made here")
    arguments = parser.parse_args()
    work = arguments.work or attunelib.data_folder()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.peers_only:
        arguments.binary = None
    elif arguments.binary is None:
        arguments.binary = attunelib.build()
    model = real_models.MINILM.fetch()
    print(f"{real_models.MINILM.name}, {os.cpu_count()} cores, {platform.machine()}, medians of {arguments.rounds}", flush=True)
    try:
        for part in arguments.only or PARTS:
            run(part, arguments, model, work)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
