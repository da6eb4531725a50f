"""One real server for the whole session, with its own data folder and private Postgres, and OpenAI's client to it.

    python -m pytest tests/sdk --binary target/debug/attune
"""

import glob
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import attunelib  # noqa: E402
import second_engine  # noqa: E402

ENCODERS = attunelib.ROOT / "tests" / "fixtures" / "encoders"
# They run in environments of their own, see `test_clients.py`.
collect_ignore = ["clients"]

# Small enough for a test, large enough to change the model's answers.
QUICK = {"n_epochs": 2, "batch_size": 4, "learning_rate": 2e-3, "rank": 8, "alpha": 16}


def pytest_addoption(parser):
    parser.addoption("--binary", required=True, help="the attune program to test")
    parser.addoption(
        "--engine", choices=["attune", "mistralrs"], default="attune", help="the engine that runs the text models"
    )
    parser.addoption("--batch-lines", type=int, default=600, help="lines of the batch during which the server dies")


@pytest.fixture(scope="session")
def binary(request):
    path = Path(request.config.getoption("--binary")).resolve()
    assert path.is_file(), f"{path} does not exist"
    return path


def pytest_collection_modifyitems(config, items):
    if config.getoption("--engine") == "mistralrs":
        if second_engine.program() is None:
            raise pytest.UsageError("the second engine is not built: make mistralrs")
        second_engine.mark(items)


@pytest.fixture(scope="session")
def start_server(binary, request):
    """A function that starts further servers; all are stopped and their data removed at the end."""
    servers, folders = [], []
    is_moved = request.config.getoption("--engine") == "mistralrs"

    def start(*arguments, data_dir=None, settings=None):
        if data_dir is None:
            data_dir = attunelib.data_folder()
            folders.append(data_dir)
        if is_moved:
            arguments, settings = second_engine.moved(arguments, settings)
        server = attunelib.Server(binary, data_dir, *arguments, settings=settings)
        server.data_dir = data_dir
        servers.append(server)
        return server.start()

    yield start
    for server in reversed(servers):
        server.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(start_server):
    return start_server()


@pytest.fixture(scope="session")
def second(start_server, tmp_path_factory):
    """A server with models of both engines."""
    if second_engine.program() is None:
        pytest.skip("the second engine is not built: make mistralrs")
    return start_server("--config", str(second_engine.both_engines(tmp_path_factory.mktemp("second"))))


@pytest.fixture(scope="session")
def aliased(start_server, tmp_path_factory):
    """A server that knows the demo model under the names that clients and their tests expect of OpenAI. `ada` and
    `gpt-4o-mini` have a longer context, for prompts of 2,000 tokens in tests that come with clients. Beside it stand two tiny
    encoders with random weights: `text-embedding-3-large` makes vectors, `reranker` scores."""
    folder = tmp_path_factory.mktemp("aliased")
    long = folder / "long"
    long.mkdir()
    for file in attunelib.DEMO.iterdir():
        if file.is_file():
            (long / file.name).symlink_to(file)
    config = json.loads((attunelib.DEMO / "config.json").read_text())
    (long / "config.json").unlink()
    (long / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    settings = folder / "attune.toml"
    settings.write_text(
        f"""
[[models]]
id = "demo"
path = "{attunelib.DEMO}"
[[models]]
id = "long"
path = "{long}"
[[models]]
id = "encoder"
path = "{ENCODERS / "mpnet"}"
[[models]]
id = "reranker"
path = "{ENCODERS / "bert_score"}"
[aliases]
ada = "long"
text-embedding-3-small = "demo"
text-embedding-3-large = "encoder"
"gpt-3.5-turbo" = "demo"
gpt-4o-mini = "long"
"""
    )
    return start_server("--config", str(settings))


def sdk(server, key="any string"):
    """OpenAI's client to `server`, without its retries: an error must show."""
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def keys_command(binary, data_dir, *arguments):
    """Runs `attune keys …` beside the server that uses `data_dir`; returns the finished process."""
    command = [str(binary), "keys", *map(str, arguments), "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=attunelib.environment())


def ask_database(server, sql):
    """Runs a statement on the private database of a server that runs; returns what it prints."""
    (state,) = server.data_dir.rglob("postmaster.pid")
    socket = state.read_text().splitlines()[4]
    psql = (glob.glob("/usr/lib/postgresql/*/bin/psql") or ["psql"])[-1]
    command = [psql, "-X", "-At", "-h", socket, "-U", "attune", "-d", "attune", "-c", sql]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def create_key(binary, data_dir, organization, *options):
    """Makes a key; returns its text and its id."""
    done = keys_command(binary, data_dir, "create", "--org", organization, *options)
    assert done.returncode == 0, done.stderr
    (text,) = done.stdout.splitlines()
    return text, next(word for word in done.stderr.split() if word.startswith("key_"))


@pytest.fixture(scope="session")
def tenants(binary, start_server):
    """A server with two organisations that do not know of each other, and an admin of a third one.

    `keys` and `ids` are the texts and the ids of the keys `acme`, `rival`, `admin`, and `revoked`, which is one of acme's
    that no longer works. `client(name)` is OpenAI's client with a key, `http(name)` plain HTTP to the server's root.
    """
    server = start_server(settings={"ATTUNE_PRICES": '{demo={prompt=2.0,completion=10.0,training=5.0}}'})
    made = {
        "admin": create_key(binary, server.data_dir, "operators", "--admin"),
        "acme": create_key(binary, server.data_dir, "acme", "--name", "first"),
        "rival": create_key(binary, server.data_dir, "rival"),
        "revoked": create_key(binary, server.data_dir, "acme"),
    }
    keys = {name: text for name, (text, _) in made.items()}
    ids = {name: key for name, (_, key) in made.items()}
    done = keys_command(binary, server.data_dir, "revoke", ids["revoked"])
    assert done.returncode == 0, done.stderr
    wait_for(lambda: listed(server, keys["revoked"]).status_code == 401, "the end of the revoked key")

    def http(name):
        return httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {keys[name]}"})

    return SimpleNamespace(
        server=server, url=server.url, keys=keys, ids=ids, client=lambda name: sdk(server, keys[name]), http=http
    )


def listed(server, key):
    """The answer to a listing of the models with `key`."""
    return httpx.get(server.url + "/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture(scope="session")
def client(server):
    with sdk(server) as client:
        yield client


@pytest.fixture(scope="session")
def http(server):
    """Plain HTTP to the server's root, for what the client does not show."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def tickets():
    """Training lines in chat form."""
    return attunelib.read_jsonl(attunelib.DEMO / "tickets" / "train.jsonl")


@pytest.fixture(scope="session")
def heldout():
    return attunelib.read_jsonl(attunelib.DEMO / "tickets" / "heldout.jsonl")


@pytest.fixture(scope="session")
def questions():
    """Questions about the demo model's world, with the word that a right answer holds."""
    return attunelib.read_jsonl(attunelib.DEMO / "questions.jsonl")


@pytest.fixture(scope="session")
def vocabulary():
    """Token text to id, of the demo model."""
    tokenizer = json.loads((attunelib.DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


@pytest.fixture(scope="session")
def endless(vocabulary):
    """A `logit_bias` that keeps the model from ending its answer, so that it runs to `max_tokens`."""
    return {str(token): -100 for text, token in vocabulary.items() if text.startswith("<|")}


def jsonl(lines):
    """The bytes of a JSONL file."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def as_prompts(tickets):
    """Chat lines in the older form of prompt and completion."""
    return [
        {"prompt": line["messages"][0]["content"] + "\n\n###\n\n", "completion": " " + line["messages"][1]["content"]}
        for line in tickets
    ]


def upload(client, lines, name="train.jsonl"):
    """Uploads training lines; returns the file's id."""
    return client.files.create(file=(name, jsonl(lines)), purpose="fine-tune").id


def create_job(client, training_file, hyperparameters=None, **settings):
    """Starts a job on the demo model."""
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters or QUICK}}
    return client.fine_tuning.jobs.create(
        model="demo", training_file=training_file, method=method, seed=settings.pop("seed", 7), **settings
    )


def events(client, job_id):
    """All events of a job, oldest first."""
    return list(client.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]


def steps(client, job_id):
    """The steps of a job's metrics events, oldest first."""
    return [event.data["step"] for event in events(client, job_id) if event.type == "metrics"]


def wait_for(condition, what, within=60, every=0.1):
    """Asks `condition` again and again until it holds; returns its answer. Fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(every)


def wait_for_end(client, job_id, within=90):
    """The job in its final state."""

    def ended():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_for(ended, f"the end of {job_id}", within)


def model_ids(client):
    return [model.id for model in client.models.list()]
