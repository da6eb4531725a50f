"""Runs the compose file as it is: a job trained in the worker's container and served from the server's."""

import shutil
import subprocess
import sys
from pathlib import Path

from .images import ROOT, RUN
from .report import Skip, expect, wait_for
from .stand import KEY, PASSWORD, answers, create_job, finish

FILE = ROOT / "docker" / "compose.yaml"
SERVICES = ("postgres", "server", "worker")
# The newest that was tried.
PODMAN_COMPOSE = "podman-compose==1.6.0"


def install(engine):
    """The path of podman-compose: installed, or from PyPI in the cache; `None` if it cannot be had."""
    found = shutil.which("podman-compose")
    if found is not None:
        return found
    place = engine.folder / "podman-compose"
    if not (place / "bin" / "podman-compose").is_file():
        shutil.rmtree(place, ignore_errors=True)
        pip = [place / "bin" / "pip", "install", "-q", PODMAN_COMPOSE]
        for command in ([sys.executable, "-m", "venv", place], pip):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                shutil.rmtree(place, ignore_errors=True)
                return None
    return str(place / "bin" / "podman-compose")


class Compose:
    """The compose file, run by podman-compose."""

    def __init__(self, stand, path):
        self.stand = stand
        self.path = path

    def __call__(self, *arguments, timeout=240):
        environment = {**self.stand.engine.environment, "ATTUNE_API_KEY": KEY, "POSTGRES_PASSWORD": PASSWORD}
        wrapper = Path(__file__).with_name("podman-with-health")
        command = [self.path, "--podman-path", wrapper, "-f", FILE, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        expect(done.returncode == 0, f"podman-compose {arguments[0]}: {' | '.join(done.stderr.splitlines()[-3:])}")
        return done.stdout

    def container(self, service):
        """The name of the service's container."""
        labels = ["--filter", f"label=com.docker.compose.service={service}"]
        return self.stand.engine("ps", "--all", "--format", "{{.Names}}", *labels)

    def client(self):
        return self.stand.ready(self.container("server"))

    def worker_is_healthy(self):
        """True while the worker's own health check passes."""
        return self.stand.engine.is_healthy(self.container("worker"))


def all_checks(stand, report, path):
    """The compose file from its first start to its end."""
    stand.engine("tag", RUN, "localhost/attune:latest")
    with report.check("compose: `up` waits for the database, and starts each service once") as details:
        if path is None:
            raise Skip("podman-compose is not installed, and cannot be installed from PyPI")
        compose = Compose(stand, path)
        version = subprocess.run([compose.path, "--version"], capture_output=True, text=True, timeout=60).stdout
        compose("up", "--detach", "--no-build")
        answers(compose.client())
        for service in SERVICES:
            restarts = stand.engine.inspect(compose.container(service))["RestartCount"]
            expect(restarts == 0, f"{service} was restarted {restarts} times")
        details.append(" ".join(version.split()[:3]))
    if report.last != "ok":
        return
    with report.check("compose: the health checks of server and worker pass"):
        expect(stand.engine.is_healthy(compose.container("server")), "the server's")
        wait_for(compose.worker_is_healthy, "the worker's health", 60)
    with report.check("compose: a job is trained in the worker's container and served from the server's") as details:
        client = compose.client()
        model = finish(create_job(client))
        question = [{"role": "user", "content": "Where is my parcel?"}]
        before = client.chat(model, question, max_tokens=20)
        expect("job claimed" in stand.engine.logs(compose.container("worker")), "the worker did not train it")
        expect("job claimed" not in stand.engine.logs(compose.container("server")), "the server trained it")
        details.append(model)
    with report.check("compose: a worker that is restarted in the middle of a job goes on with it") as details:
        job = create_job(client, examples=256, n_epochs=3)
        wait_for(lambda: any("Step" in event["message"] for event in job.new_events()), "the first step", 120)
        worker = compose.container("worker")
        stand.engine("stop", "--time", "60", worker)
        code = stand.state(worker)["ExitCode"]
        expect(code == 0, f"the worker ended with status {code}")
        stand.engine("start", worker)
        finish(job)
        resumed = [event["message"] for event in job.new_events() if event["message"].startswith("Resumed")]
        details.extend(resumed or ["from its beginning"])
    with report.check("compose: models survive `down` and `up`"):
        compose("down")
        compose("up", "--detach", "--no-build")
        again = compose.client().chat(model, question, max_tokens=20)
        expect(again == before, f"{before!r} became {again!r}")
    compose("down", "--volumes")
