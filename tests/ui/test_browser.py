"""Runs the tests in `*.test.js`, each file with Node.js's own test runner; a failing one shows its report."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = sorted(file.name for file in HERE.glob("*.test.js"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_there_are_tests():
    assert len(FILES) >= 4


@pytest.mark.parametrize("file", FILES)
def test_in_the_browser(file, world):
    assert CHROMIUM, "Chromium is not installed; tools/setup does that"
    known = {"url": world.url, "keys": world.keys, "jobs": world.jobs, "hostile": world.hostile, "chromium": CHROMIUM}
    # One at a time: pages wait for each other otherwise.
    command = ["node", "--test", "--test-concurrency=1", "--test-reporter=spec", file]
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, "ATTUNE_UI_WORLD": json.dumps(known)}, timeout=560,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{file}\n{done.stdout[-20000:]}", pytrace=False)
    assert "pass 0" not in done.stdout, done.stdout
