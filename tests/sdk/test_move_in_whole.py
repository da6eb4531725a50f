"""The whole move of an account at OpenAI: one command, killed twice, brings its models over, trains them anew, compares
them with the old ones and says how an application keeps the old names; then the application does."""

import json
import math
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import attunelib
import httpx
import pytest
from conftest import model_ids, sdk, wait_for
from openai_account import BASE, SPECIALISTS, VALIDATION_LINES, WRONG_EVERY, Account

pytestmark = pytest.mark.timeout(900)

REQUESTS, HOUR = 30_000, 0.2
# An answer's bound: half the bytes of the longest one of the file, and 32.
SPARE = 32
OPTIONS = [
    "--retrain", "--base", f"{BASE}=demo", "--compare", "--ask-old", "--requests-per-month", str(REQUESTS),
    "--price-per-hour", str(HOUR), "--set", "learning_rate=2e-3", "--set", "rank=16", "--set", "alpha=32",
]  # fmt: skip
# Chats that the old models have answered when the command is killed for the second time.
ANSWERED = 27


def start(binary, account, server, folder):
    command = [str(binary), "move-in", "openai", "--folder", str(folder), "--openai-url", account.url]
    command += ["--requests-per-minute", "60000", "--url", server.url, *OPTIONS]
    settings = attunelib.environment(account.environment())
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def jobs(client):
    """The jobs that train an old one anew, by its id; each is there once."""
    found = {}
    for job in client.fine_tuning.jobs.list(limit=100):
        old = (job.metadata or {}).get("openai_id")
        assert old not in found, f"{old} is trained twice"
        found[old] = job
    return found


def asked(account):
    return sum(command == "POST" for command, _ in account.requests)


def killed_in_training(binary, account, server, client, folder):
    """Kills the command once it waits for a job that runs."""
    process = start(binary, account, server, folder)

    def is_training():
        assert process.poll() is None, process.communicate()
        return any(job.status == "running" for job in jobs(client).values())

    wait_for(is_training, "a job that runs", within=300)
    process.kill()
    process.communicate()
    assert asked(account) == 0


def killed_in_comparing(binary, account, server, folder):
    """Kills the command while an old model is about to answer."""
    process = start(binary, account, server, folder)

    def watch():
        if asked(account) <= ANSWERED:
            account.fail("chat/completions", watch)
        else:
            process.kill()

    account.fail("chat/completions", watch)
    _, said = process.communicate(timeout=600)
    assert process.returncode == -9, said
    assert asked(account) == ANSWERED + 1


@pytest.fixture(scope="module")
def move(binary, start_server, tmp_path_factory):
    """The move, with all that it left; the server runs under the lines that it printed."""
    folder = tmp_path_factory.mktemp("move") / "account"
    server = start_server()
    with Account() as account:
        with sdk(server) as client:
            killed_in_training(binary, account, server, client, folder)
            killed_in_comparing(binary, account, server, folder)
            process = start(binary, account, server, folder)
            printed, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
            done = jobs(client)
            evals = [eval.id for eval in client.evals.list()]
        server.stop()
        assert account.refused == [], "nothing may be changed over there"
    settings = tmp_path_factory.mktemp("settings") / "attune.toml"
    settings.write_text(printed)
    server = start_server("--config", str(settings), data_dir=server.data_dir)
    with sdk(server) as client:
        yield SimpleNamespace(
            account=account, folder=folder, said=said, aliases=tomllib.loads(printed)["aliases"], jobs=done,
            evals=evals, client=client,
        )  # fmt: skip
    server.stop()


def validation(move, name):
    """The prompts of a specialist's validation file, with the answers."""
    lines = [json.loads(line)["messages"] for line in move.account.contents[f"file-valid-{name}"].splitlines()]
    return [(messages[:-1], messages[-1]["content"]) for messages in lines]


def answers(move, model, name):
    """What a model here answers to these prompts, by an application that only knows another address."""
    asked = validation(move, name)
    bound = max(len(expected.encode()) for _, expected in asked) // 2 + SPARE
    create = move.client.chat.completions.create
    told = [create(model=model, messages=prompt, temperature=0, max_completion_tokens=bound) for prompt, _ in asked]
    assert {answer.model for answer in told} == {model}
    return [answer.choices[0].message.content.strip() for answer in told]


def report(move, name):
    return (move.folder / "reports" / f"{name}.md").read_text()


def shown(text, row):
    """The counts of a row: those that pass, and all."""
    found = re.search(rf"^\| {re.escape(row)} \| [0-9.]+ \((\d+) of (\d+),", text, re.MULTILINE)
    assert found, f"{row} is not in\n{text}"
    return tuple(map(int, found.groups()))


def test_two_kills_cost_neither_a_training_nor_more_than_the_answer_on_its_way(move):
    assert set(move.jobs) == {"ftjob-0001", "ftjob-0002", "ftjob-0003"}
    assert {job.status for job in move.jobs.values()} == {"succeeded"}
    assert asked(move.account) == len(SPECIALISTS) * VALIDATION_LINES + 1
    assert len(move.evals) == 3


def test_jobs_keep_their_settings_and_say_where_they_are_from(move):
    for number, (name, model) in enumerate(SPECIALISTS.items(), 1):
        job = move.jobs[f"ftjob-{number:04}"]
        settings = job.method.supervised.hyperparameters
        assert (settings.n_epochs, settings.batch_size, job.seed) == (3, 4, 41 + number)
        assert (job.model, job.user_provided_suffix) == ("demo", name)
        assert settings.learning_rate_multiplier != 1.8
        assert job.metadata["openai_model"] == model
        assert job.metadata["openai_learning_rate_multiplier"] == "1.8"
        assert move.aliases[model] == job.fine_tuned_model


def test_an_application_gets_right_answers_under_the_old_names(move):
    right = 0
    for name, model in SPECIALISTS.items():
        told = answers(move, model, name)
        expected = [answer for _, answer in validation(move, name)]
        right += sum(map(str.__eq__, told, expected))
        assert model in model_ids(move.client)
        assert move.client.models.retrieve(model).root == move.aliases[model]
    assert right >= 0.7 * len(SPECIALISTS) * VALIDATION_LINES, f"{right} answers are right"


def test_the_old_checkpoints_have_their_names_too(move):
    prompt, _ = validation(move, "problem")[0]
    for name, model in SPECIALISTS.items():
        for old, here in ((80, -2), (40, -3)):
            old_name = f"{model}:ckpt-step-{old}"
            job = next(job for job in move.jobs.values() if job.user_provided_suffix == name)
            listed = list(move.client.fine_tuning.jobs.checkpoints.list(job.id))
            steps = sorted(checkpoint.step_number for checkpoint in listed)
            assert move.aliases[old_name] == f"{job.fine_tuned_model}:ckpt-step-{steps[here]}"
            answer = move.client.chat.completions.create(model=old_name, messages=prompt, max_tokens=4)
            assert answer.model == old_name


@pytest.mark.parametrize("name", SPECIALISTS)
def test_a_report_tells_what_counting_again_tells(move, name):
    text, model = report(move, name), SPECIALISTS[name]
    expected = [answer for _, answer in validation(move, name)]
    known = move.account.answers[model]
    old = [known[prompt[-1]["content"]] for prompt, _ in validation(move, name)]
    new, base = answers(move, model, name), answers(move, "demo", name)

    def count(told, against):
        return sum(map(str.__eq__, told, against)), VALIDATION_LINES

    assert shown(text, "the old model") == count(old, expected)
    assert count(old, expected)[0] == VALIDATION_LINES - VALIDATION_LINES // WRONG_EVERY
    assert shown(text, "the new model, after") == count(new, expected)
    assert shown(text, "the local base, before") == count(base, expected)
    assert shown(text, "old and new agree") == count(new, old)
    assert f"| model | `{model}` | `{move.aliases[model]}` |" in text
    assert "| stops | 2027-01-14 | - |" in text
    assert "learning\\_rate\\_multiplier | 1.8 | auto" in text
    job = next(job for job in move.jobs.values() if job.user_provided_suffix == name)
    before = next(old for old in move.account.jobs if old["fine_tuned_model"] == model)["trained_tokens"]
    assert f"| trained tokens | {before:,} | {job.trained_tokens:,} |" in text


def test_the_costs_are_those_of_the_stored_chats(move):
    # 58 tokens of prompt and 2 of answer, at 0.30 and 1.20 USD for a million.
    request = (58 * 0.30 + 2 * 1.20) / 1e6
    text = report(move, "problem")
    assert "30,000 requests per month, 58 tokens of prompt and 2 of answer each" in text
    assert f"- Over there: {REQUESTS * request:.2f} USD a month" in text
    assert "- A machine of one's own at 0.20 USD an hour, all day: 144.00 USD a month" in text
    assert f"- Break-even: {math.ceil(24 * HOUR / request) * 30:,} requests per month" in text


def test_what_is_not_here_is_named_with_its_reason(move):
    index = (move.folder / "reports" / "index.md").read_text()
    assert f"- `ft:{BASE}:acme::Jj7kK8lL`: its training file file-deleted is missing" in index
    for name, model in SPECIALISTS.items():
        assert f"| `{model}` | [{name}.md]({name}.md) |" in index
    assert tomllib.loads((move.folder / "reports" / "aliases.toml").read_text())["aliases"] == move.aliases
    assert "about 20 prompts" not in move.said, "everything was answered before"


def test_the_reports_can_be_made_again_of_the_folder_alone(binary, move):
    """Without the account all figures are there still: nothing is trained and nobody is asked again."""
    before, reports = asked(move.account), {name: report(move, name) for name in SPECIALISTS}
    url = str(move.client.base_url)
    command = [str(binary), "move-in", "openai", "--from", str(move.folder), "--url", url, *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=attunelib.environment())
    assert done.returncode == 0, done.stderr
    assert asked(move.account) == before
    assert {name: report(move, name) for name in SPECIALISTS} == reports
    assert tomllib.loads(done.stdout)["aliases"] == move.aliases
    assert Path(move.folder, "reports", "index.md").is_file()


def test_what_cannot_be_done_is_said_and_the_rest_is_done(binary, start_server, tmp_path):
    """A line that cannot be learned is named with its number, a job without a validation file is compared on prompts that were
    not trained on, a job that trained another model further does so here, and an old model that is gone leaves the answers of
    its file."""
    server = start_server()
    with Account() as account, sdk(server) as client:
        lines = {name: account.contents[f"file-train-{name}"].splitlines()[:40] for name in SPECIALISTS}
        picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        seen = {"messages": [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "a cat"}]}
        lines["wants"][7] = json.dumps(seen).encode()
        for name, kept in lines.items():
            account.contents[f"file-train-{name}"] = b"\n".join(kept) + b"\n"
        next(job for job in account.jobs if job["id"] == "ftjob-0001")["validation_file"] = None
        next(job for job in account.jobs if job["id"] == "ftjob-0003")["model"] = SPECIALISTS["problem"]
        gone = SPECIALISTS["item"]
        account.answers.pop(gone)
        folder = tmp_path / "account"
        options = ["--retrain", "--base", "demo", "--compare", "--set", "n_epochs=1", "--max-prompts", "3"]
        command = [str(binary), "move-in", "openai", "--folder", str(folder), "--openai-url", account.url]
        command += ["--requests-per-minute", "60000", "--url", server.url, *options]
        settings = attunelib.environment(account.environment())

        def run(*more):
            done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=400, env=settings)
            assert done.returncode == 0, done.stderr
            return done

        told = run().stderr
        assert asked(account) == 0, "nobody is paid without being asked"
        assert re.search(rf"{re.escape(gone)}: 3 prompts, about \d+ tokens there and \d+ back, about 0.0\d+ USD, by ", told), told
        assert "--ask-old asks them" in told
        run("--ask-old")
        assert set(jobs(client)) == {"ftjob-0001", "ftjob-0003"}
        first, further = (jobs(client)[id] for id in ("ftjob-0001", "ftjob-0003"))
        assert (first.model, further.model) == ("demo", first.fine_tuned_model)
        index = (folder / "reports" / "index.md").read_text()
        skipped = next(line for line in index.splitlines() if SPECIALISTS["wants"] in line)
        assert "file-train-wants has lines that cannot be learned here: line 8 " in skipped

        held = (folder / "reports" / "problem.md").read_text()
        assert "10 % of the prompts of the training file, 4 of 40 lines, were held back" in held
        assert shown(held, "the old model")[1] == 3
        job = jobs(client)["ftjob-0001"]
        trained = client.files.content(job.training_file).content.splitlines()
        asked_about = client.files.content(job.validation_file).content.splitlines()
        assert (len(trained), len(asked_about)) == (36, 4)
        assert sorted(trained + asked_about) == sorted(lines["problem"])

        without = (folder / "reports" / "item.md").read_text()
        assert "| the old model | not asked |" in without
        assert "the old model no longer answers" in without
        assert shown(without, "the new model, after")[1] == 3
        before = asked(account)
        run("--ask-old")
        assert asked(account) == before, "an old model that is gone is not asked again"
        assert len(jobs(client)) == 2

        # The old names, without a restart; a name that the server refuses is told.
        lines = tomllib.loads(run().stdout)["aliases"]
        again = [str(binary), "move-in", "openai", "--from", str(folder), "--url", server.url, "--set-aliases"]
        for _ in range(2):
            done = subprocess.run(again, capture_output=True, text=True, timeout=200, env=attunelib.environment())
            assert done.returncode == 0, done.stderr
            assert f"{len(lines)} of {len(lines)} old names stand for the new models" in done.stderr
            assert tomllib.loads(done.stdout)["aliases"] == lines
        listed = httpx.get(f"{server.url}/v1/aliases").json()["data"]
        assert {alias["id"]: alias["model"] for alias in listed} == lines
        question = [{"role": "user", "content": "x"}]
        assert client.chat.completions.create(model=gone, messages=question, max_tokens=1).model == gone
    server.stop()
    # Where the old base's name means something on the server, its models' names do too.
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_ALIASES": f'{{"{BASE}"="demo"}}'})
    again[-2] = server.url
    done = subprocess.run(again, capture_output=True, text=True, timeout=200, env=attunelib.environment())
    assert done.returncode == 0, done.stderr
    assert f"0 of {len(lines)} old names stand" in done.stderr
    assert all(f"{old}: it does not stand for" in done.stderr for old in lines), done.stderr
    server.stop()
