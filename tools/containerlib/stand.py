"""A network with a database and containers of the images under test, and what is asked of them."""

import http.client
import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import attunelib  # noqa: E402

from . import bases  # noqa: E402
from .images import ROOT, RUN  # noqa: E402
from .report import Failure, expect, wait_for  # noqa: E402

KEY = "check-key"
NETWORK = "attune-check"
PASSWORD = "secret"
# Small enough to train in seconds, large enough to change the model's answers.
QUICK = {"n_epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "rank": 4, "alpha": 8}


class Stand:
    """Starts containers and asks them; [`Engine.clean`] removes them all."""

    def __init__(self, engine):
        self.engine = engine
        engine.clean()
        engine("network", "create", NETWORK)

    def start_database(self):
        variables = {"POSTGRES_USER": "attune", "POSTGRES_DB": "attune", "POSTGRES_PASSWORD": PASSWORD}
        self.start("postgres", bases.POSTGRES, variables=variables)
        asks = ["exec", "postgres", "pg_isready", "-h", "127.0.0.1", "-U", "attune", "-d", "attune"]
        wait_for(lambda: self.engine.run(*asks).returncode == 0, "the database")

    def settings(self, more=None):
        """The variables of a container that uses the database."""
        url = f"postgres://attune:{PASSWORD}@postgres/attune"
        return {"ATTUNE_API_KEYS": json.dumps([KEY]), "ATTUNE_DATABASE_URL": url, **(more or {})}

    def start(self, name, image=RUN, command=(), variables=None, options=()):
        """Starts a container of that name, in place of an earlier one."""
        self.remove(name)
        given = [word for item in (variables or {}).items() for word in ("--env", "=".join(item))]
        self.engine("run", "--detach", "--name", name, "--network", NETWORK, *given, *options, image, *command)

    def serve(self, name="server", variables=None, options=(), image=RUN, command=("serve", "--no-worker")):
        """Starts a server and returns a client once it is ready."""
        self.start(name, image, command, self.settings(variables), options)
        return self.ready(name)

    def once(self, image, *command, variables=None, options=()):
        """Runs a container to its end; returns the finished process."""
        given = [word for item in (variables or {}).items() for word in ("--env", "=".join(item))]
        return self.engine.run("run", "--rm", "--network", NETWORK, *given, *options, image, *command)

    def remove(self, name):
        self.engine.run("rm", "--force", "--volumes", "--time", "0", name)

    def state(self, name):
        return self.engine.inspect(name)["State"]

    def client(self, name, port=8080):
        return attunelib.Client(f"http://{self.engine.address(name)}:{port}", KEY, timeout=120)

    def ready(self, name, port=8080, within=90):
        """Returns a client for the container once it says that it is ready."""

        def answers():
            state = self.state(name)
            if not state["Running"]:
                raise Failure(f"{name} ended with status {state['ExitCode']}: {self.last_words(name)}")
            return status(self.engine.address(name), "/ready", port) == 200

        wait_for(answers, f"the answer of {name} to /ready", within)
        return self.client(name, port)

    def last_words(self, name):
        return " | ".join(self.engine.logs(name).splitlines()[-2:])


def status(address, path, port=8080):
    """The status of the answer to a GET; `None` without an answer."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except attunelib.CONNECTION_FAULTS:
        return None
    finally:
        connection.close()


def answers(client, model="demo"):
    """Fails the check unless the model answers a chat."""
    text = client.chat(model, [{"role": "user", "content": "Hello"}], max_tokens=8)
    expect(isinstance(text, str), "no answer")


def create_job(client, examples=32, **settings):
    """Creates a fine-tune job on the demo model's tickets."""
    lines = (attunelib.DEMO / "tickets" / "train.jsonl").read_bytes().splitlines(keepends=True)[:examples]
    file = client.upload("tickets.jsonl", b"".join(lines))
    body = {"model": "demo", "training_file": file["id"], "hyperparameters": {**QUICK, **settings}}
    return attunelib.Job(client, client.post("/v1/fine_tuning/jobs", body))


def finish(job, within=240):
    """Waits for the job's end; returns the model's name."""
    wait_for(lambda: job.refresh() and job.is_over, "the job's end", within, 0.5)
    expect(job.state["status"] == "succeeded", f"the job {job.state['status']}: {job.state.get('error')}")
    return job.state["fine_tuned_model"]


class LongAnswer(threading.Thread):
    """A streamed answer that would run for minutes. `last` is its last event."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self.client = client
        self.events = 0
        self.last = None
        self.begun = threading.Event()

    def run(self):
        vocabulary = json.loads((ROOT / "models" / "demo" / "tokenizer.json").read_text())["model"]["vocab"]
        endless = {str(token): -100 for text, token in vocabulary.items() if text.startswith("<|")}
        body = {"model": "demo", "prompt": "On Friday", "max_tokens": 900, "n": 128, "logit_bias": endless}
        try:
            for event in self.client.stream("/v1/completions", body):
                self.events += 1
                if self.events > 5:
                    self.begun.set()
            self.last = "[DONE]"
        except attunelib.ApiError as error:
            self.last = error.body
        except attunelib.CONNECTION_FAULTS as error:
            self.last = f"cut: {error!r}"


def timed(work):
    """Returns the seconds that `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
