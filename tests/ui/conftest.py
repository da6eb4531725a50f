"""A real server with jobs of two organisations, for the browser of `test_browser.py`.

    python -m pytest tests/ui --binary target/debug/attune
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# Its servers, keys and helpers are those of the tests from the outside.
SDK = Path(__file__).resolve().parents[1] / "sdk"
sys.path.insert(0, str(SDK))
sys.path.insert(0, str(SDK.parents[1] / "tools"))
import attunelib  # noqa: E402

_spec = importlib.util.spec_from_file_location("sdk_conftest", SDK / "conftest.py")
sdk = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sdk)

pytest_addoption = sdk.pytest_addoption
binary = sdk.binary
start_server = sdk.start_server

# It runs a script if it becomes HTML, ends an attribute or a script, and turns around what follows from right to left.
HOSTILE = "\"'><script>window.hurt=1</script><img src=/hurt onerror=window.hurt=1>&lt;\u202eשלום"
# A name of a model has no spaces.
HOSTILE_MODEL = "\"'><svg/onload=window.hurt=1>&lt;"
# Steps of a long curve.
LONG = 10_000
SETTINGS = f"""
[[models]]
id = "demo"
path = "{attunelib.DEMO}"
[aliases]
{json.dumps(HOSTILE_MODEL)} = "demo"
[prices.demo]
prompt = 2.0
completion = 10.0
training = 5.0
"""


def sql(server, statement, **variables):
    """Runs SQL in the server's private database; `:'name'` is a variable's text."""
    # Its fifth line is the folder of the socket.
    folder = (server.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4]
    psql = shutil.which("psql") or "psql"
    command = [psql, "-h", folder, "-U", "attune", "-d", "attune", "-qAt", "-v", "ON_ERROR_STOP=1"]
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    done = subprocess.run(command, input=statement, capture_output=True, text=True, timeout=240, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def world(binary, start_server, tmp_path_factory):
    """What the tests in the browser find: the server's address, keys, and jobs of `acme`, `rival` and `mallory`.

    `trained` has ended well, with everything that a page can show of it; `other` differs from it in its settings;
    `failed` says why; `long` has many steps; `hostile`, `hostile_other` and `hostile_failed` are mallory's, with texts
    that try to be more than text; `secret` is rival's.
    """
    folder = tmp_path_factory.mktemp("ui")
    (folder / "attune.toml").write_text(SETTINGS)
    server = start_server("--config", str(folder / "attune.toml"))
    keys = {
        name: sdk.create_key(binary, server.data_dir, name, *options)[0]
        for name, options in {"acme": [], "rival": [], "mallory": [], "operators": ["--admin"]}.items()
    }
    tickets = attunelib.read_jsonl(attunelib.DEMO / "tickets" / "train.jsonl")
    jobs = {**of_acme(server, keys, tickets), **of_rival(server, keys, tickets), **of_mallory(server, keys, tickets)}
    return SimpleNamespace(server=server, url=server.url, keys=keys, jobs=jobs, hostile=[HOSTILE, HOSTILE_MODEL])


def of_acme(server, keys, tickets):
    with sdk.sdk(server, keys["acme"]) as client:
        training = sdk.upload(client, tickets[:64], name="letters.jsonl")
        validation = sdk.upload(client, tickets[64:72], name="held-out.jsonl")
        trained = sdk.create_job(
            client, training, validation_file=validation, suffix="tickets", metadata={"ticket": "ATT-1"}
        )
        settings = {"n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "rank": 4, "alpha": 8}
        other = sdk.create_job(client, training, settings, suffix="slower")
        broken = client.files.create(file=("broken.jsonl", b'{"messages": "nothing"}\n'), purpose="fine-tune")
        failed = sdk.create_job(client, broken.id)
        long = sdk.create_job(client, training, settings, suffix="long")
        jobs = {"trained": trained.id, "other": other.id, "failed": failed.id, "long": long.id}
        assert sdk.wait_for_end(client, failed.id, 300).status == "failed"
        for name in ["trained", "other", "long"]:
            assert sdk.wait_for_end(client, jobs[name], 300).status == "succeeded", name
    # What only jobs of the older resource are asked to measure.
    sql(
        server,
        """
        update job_events set data = data || :'classes' where kind = 'metrics' and data->>'full_valid_loss' is not null
           and job = (select key from jobs where id = :'job');
        insert into job_events (job, attempt, message, data)
        select key, attempt, 'Classification: accuracy=0.750', jsonb_build_object('step', 1) || :'classes'
          from jobs where id = :'job';
        """,
        job=jobs["trained"],
        classes=json.dumps({"classification/accuracy": 0.75, "classification/auroc": None}),
    )
    sql(
        server,
        """
        delete from job_events where kind = 'metrics' and job = (select key from jobs where id = :'job');
        insert into job_events (job, attempt, kind, message, data)
        select key, 1, 'metrics', '', jsonb_build_object('step', n, 'total_steps', :steps, 'elapsed_seconds', n * 0.5,
               'train_loss', 3 / sqrt(n) + 0.2 * abs(sin(n)), 'learning_rate', 0.001, 'gradient_norm', 1 + sin(n),
               'tokens_per_second', 900 + 50 * sin(n), 'train_mean_token_accuracy', 1 - 1 / sqrt(n + 1))
          from jobs cross join generate_series(1, :steps) as n where id = :'job' order by n;
        """,
        job=jobs["long"],
        steps=LONG,
    )
    return jobs


def of_rival(server, keys, tickets):
    with sdk.sdk(server, keys["rival"]) as client:
        secret = sdk.create_job(client, sdk.upload(client, tickets[:12], name="rivals-secret.jsonl"), suffix="secret")
        assert sdk.wait_for_end(client, secret.id, 300).status == "succeeded"
    return {"secret": secret.id}


def of_mallory(server, keys, tickets):
    """Whatever the API takes is sent to it; what it does not take, but older rows or workers might hold, is written."""
    method = {"type": "supervised", "supervised": {"hyperparameters": sdk.QUICK}}
    jobs = {}
    with sdk.sdk(server, keys["mallory"]) as client:
        # A slash would end the name of a file; forms write a quotation mark in another way.
        name = HOSTILE[1:].replace("/", "\\") + ".jsonl"
        training = sdk.upload(client, tickets[:12], name=name)
        for job in ["hostile", "hostile_other", "hostile_failed"]:
            jobs[job] = client.fine_tuning.jobs.create(
                model=HOSTILE_MODEL, training_file=training, validation_file=training, method=method, seed=len(jobs),
                metadata={HOSTILE[:64]: HOSTILE}, suffix="mallory",
            ).id  # fmt: skip
        for job in jobs.values():
            assert sdk.wait_for_end(client, job, 300).status == "succeeded"
    answers = [dict.fromkeys(["prompt", "expected", "base", "fine_tuned"], HOSTILE)]
    sql(
        server,
        """
        update jobs set fine_tuned_model = :'text' where id = :'hostile';
        update jobs set spec = jsonb_set(spec, '{suffix}', to_jsonb(:'text'::text)) where id in (:'hostile', :'failed');
        update jobs set status = 'failed', fine_tuned_model = null,
               error = jsonb_build_object('code', 'server_error', 'message', :'text', 'param', :'text')
         where id = :'failed';
        insert into job_events (job, attempt, level, kind, message, data)
        select key, 1, 'error', 'message', :'text', jsonb_build_object('answers', :'answers'::jsonb)
          from jobs where id in (:'hostile', :'failed');
        """,
        text=HOSTILE,
        answers=json.dumps(answers),
        hostile=jobs["hostile"],
        failed=jobs["hostile_failed"],
    )
    return jobs
