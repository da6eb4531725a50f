"""The example of docs/costs.md is the program's own answer, with the prices that the page shows."""

import re
import shlex
import subprocess

import attunelib
import pytest

PAGE = (attunelib.ROOT / "docs" / "costs.md").read_text(encoding="utf-8")


def blocks(language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def costs(binary, settings, *arguments):
    command = [str(binary), "costs", "--config", str(settings), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=attunelib.environment())


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    (toml,) = blocks("toml")
    path = tmp_path_factory.mktemp("costs") / "attune.toml"
    path.write_text(toml, encoding="utf-8")
    return path


def test_the_worked_example_is_what_the_program_prints(binary, settings):
    asked, answered = blocks()
    words = shlex.split(asked.replace("\\\n", " "))
    assert words[:2] == ["attune", "costs"]
    done = costs(binary, settings, *words[2:])
    assert (done.returncode, done.stdout) == (0, answered), done.stderr


def test_at_the_break_even_the_machine_becomes_cheaper(binary, settings):
    def cheaper(requests):
        done = costs(binary, settings, "--requests-per-day", str(requests), "--prompt-tokens", "400",
                     "--completion-tokens", "100")  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
        return int(lines["break-even"].split()[0].replace(",", "")), lines["cheaper"].strip().split(",")[0]

    even, _ = cheaper(1)
    assert cheaper(even - 1) == (even, "by the token")
    assert cheaper(even + 1) == (even, "own machine")


def test_what_is_missing_is_named(binary, settings, tmp_path):
    asked = ["--requests-per-day", "10", "--prompt-tokens", "1", "--completion-tokens", "1"]
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    no_hour = tmp_path / "no-hour.toml"
    no_hour.write_text("[prices.a]\nprompt = 1.0\n")
    for file, options, words in (
        (empty, [], "[prices.MODEL]"),
        (no_hour, [], "price_per_hour"),
        (settings, ["--against", "none"], "hosted small model"),
    ):
        done = costs(binary, file, *asked, *options)
        assert done.returncode == 1 and words in done.stderr, done.stderr
    for wrong in ("0", "-1", "nan", "many"):
        done = costs(binary, settings, "--requests-per-day", wrong, *asked[2:])
        assert done.returncode == 2 and "requests-per-day" in done.stderr, done.stderr
