"""Checks of one image at a time: what it holds, and how its containers start, answer and stop."""

import attunelib

from . import images
from .images import CUDA, LABELS, RUN, STANDALONE
from .report import Failure, expect, wait_for
from .stand import LongAnswer, answers, create_job, finish, status, timed

# What Kubernetes puts into each pod of a namespace with the Services `attune` and `attune-log`.
SERVICE_LINKS = {
    "ATTUNE_SERVICE_HOST": "10.0.0.1",
    "ATTUNE_SERVICE_PORT": "8080",
    "ATTUNE_SERVICE_PORT_HTTP": "8080",
    "ATTUNE_PORT": "tcp://10.0.0.1:8080",
    "ATTUNE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "ATTUNE_PORT_8080_TCP_PROTO": "tcp",
    "ATTUNE_PORT_8080_TCP_PORT": "8080",
    "ATTUNE_PORT_8080_TCP_ADDR": "10.0.0.1",
    "ATTUNE_LOG_SERVICE_HOST": "10.0.0.2",
    "ATTUNE_LOG_PORT": "udp://10.0.0.2:53",
}
STRICT = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
MEMORY_MIB = 320
# Each token of the demo model takes 5 KiB of keys and values: these prompts of 1,000 would fill 350 MiB.
PROMPTS = 70
WORDS = 200


def configuration(engine, report, what, image):
    """The image's own description."""
    with report.check(f"{what}: user by number, health check, stop, labels") as details:
        config = engine.inspect(image)["Config"]
        expect(config["User"] == "10001:10001", f"user {config.get('User')}")
        expect("/data" in config["Volumes"] and "8080/tcp" in config["ExposedPorts"], "no volume /data or port 8080")
        expect(config["Entrypoint"] == ["tini", "--", "attune"] and config["Cmd"] == ["serve"], "another entry point")
        check = engine.inspect(image)["Healthcheck"]["Test"]
        expect(check == ["CMD", "attune", "health"], f"health check {check}")
        labels = {name.rsplit(".", 1)[-1]: value for name, value in config["Labels"].items()}
        expect(labels.get("version") == LABELS["VERSION"], f"version {labels.get('version')}")
        expect(labels.get("revision") == LABELS["REVISION"], f"revision {labels.get('revision')}")
        expect(labels.get("title") == "Attune" and labels.get("licenses"), "no title or licences")
        details.append(f"user {config['User']}")


def contents(engine, report, what, image):
    """No sources, no secrets, no build files."""
    with report.check(f"{what}: holds program, model and licences, and nothing else of the repository") as details:
        forbidden = (
            r"( -name '*.rs' -o -name 'Cargo.*' -o -name '.git*' -o -name '.env*' -o -name '*.pem' -o -name 'id_rsa*' "
            r"-o -name '*.Dockerfile' -o -path '*/models/demo/make*' -o -name 'target' )"
        ).replace("(", r"\(").replace(")", r"\)")
        script = (
            rf"find / -xdev -path /proc -prune -o -path /usr/share/bash-completion -prune -o {forbidden} "
            r"-not -path '/etc/ssl/*' -not -path '/usr/lib/*' -not -path '/usr/share/ca-certificates/*' -print; "
            r"find /usr/local /usr/share/attune /data -type f | sort"
        )
        command = ["run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", image, "-c", script]
        found = engine(*command).splitlines()
        own = ("/usr/local/bin/attune", "/usr/share/attune/models/demo/")
        strange = [path for path in found if not path.startswith(own)]
        expect(not strange, f"also holds {strange[:5]}")
        expect("/usr/local/bin/attune" in found, "no program")
        history = engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
        expect("KEY=" not in history and "PASSWORD" not in history, "a secret in the history")
        details.append(f"{len(found)} files")


def context(engine, report):
    """What `.dockerignore` lets through."""
    with report.check("docker/Dockerfile: `COPY . .` takes the sources alone") as details:
        files = images.context_files(engine)
        tops = {path.split("/")[0] for path in files}
        allowed = {
            *("Cargo.toml", "Cargo.lock", "build.rs", "README.md", "LICENSE-MIT", "LICENSE-APACHE"),
            *("src", "crates", "migrations", "openapi", "models", "tests", "benches", "docker"),
        }
        expect(tops <= allowed, f"also takes {sorted(tops - allowed)}")
        needed = {"Cargo.lock", "build.rs", "src/main.rs", "openapi/openapi.json", "docker/optional-driver"}
        expect(needed <= set(files), f"leaves out {sorted(needed - set(files))}")
        strange = [path for path in files if "/target/" in path or path.endswith((".env", ".pem")) or "/.git" in path]
        expect(not strange, f"takes {strange[:5]}")
        details.append(f"{len(files)} files")


def starts(stand, report):
    """How a server starts, under which limits and users."""
    engine = stand.engine
    with report.check("server: starts beside Services named attune and attune-log"):
        answers(stand.serve(variables=SERVICE_LINKS))
        done = stand.once(RUN, "migrate", variables=stand.settings(SERVICE_LINKS))
        expect(done.returncode == 0, f"migrate: {done.stderr.strip()}")
    with report.check("server: read-only root, no capabilities, no new privileges"):
        answers(stand.serve(options=STRICT))
        caps = engine("exec", "server", "grep", "CapEff", "/proc/1/status").split()[1]
        expect(int(caps, 16) == 0, f"capabilities {caps}")
    for user, what in [("12345:0", "any user of group 0"), ("0:0", "root")]:
        with report.check(f"server: runs as {what} on the image's own /data"):
            answers(stand.serve(options=["--user", user, "--volume", f"attune-{user.split(':')[0]}:/data"]))
    with report.check("server: a /data that it may not write is told with user and remedy"):
        engine("volume", "create", "attune-foreign")
        point = engine("volume", "inspect", "--format", "{{.Mountpoint}}", "attune-foreign")
        options = ["--mount", f"type=bind,src={point},dst=/data"]
        done = stand.once(RUN, variables=stand.settings(), options=options)
        expect(done.returncode == 1 and "10001" in done.stderr and "chown" in done.stderr, done.stderr.strip())
    with report.check("server: without a database it ends at once and says what to set"):
        done = stand.once(RUN, variables={"ATTUNE_API_KEYS": '["k"]'})
        expect(done.returncode == 1 and "ATTUNE_DATABASE_URL" in done.stderr, done.stderr.strip()[-300:])
    with report.check("server: its log has no colours"):
        stand.serve()
        expect("\x1b[" not in engine.logs("server"), "escape codes in the log")
    with report.check("server: `attune keys create` inside it makes a key that works"):
        key = engine("exec", "server", "attune", "keys", "create", "--org", "acme")
        client = stand.client("server")
        client.key = key
        wait_for(lambda: client.get("/v1/models")["data"], "the key's first answer")


def health(stand, report):
    """The health check in each of its forms."""
    engine = stand.engine
    with report.check("health check: passes when ready, fails while the database is away"):
        stand.serve()
        expect(engine.is_healthy("server"), "a ready server is unhealthy")
        engine("stop", "--time", "5", "postgres")
        expect(not engine.is_healthy("server"), "healthy without a database")
        expect(status(engine.address("server"), "/health") == 200, "/health does not answer")
        stand.start_database() if engine.run("start", "postgres").returncode != 0 else None
        wait_for(lambda: engine.is_healthy("server"), "the health of the server")
    with report.check("health check: follows ATTUNE_LISTEN to another port"):
        stand.start("other", RUN, ("serve", "--no-worker"), stand.settings({"ATTUNE_LISTEN": "0.0.0.0:9000"}))
        stand.ready("other", 9000)
        expect(engine.is_healthy("other"), "unhealthy")
    with report.check("health check: fails where nothing listens"):
        stand.start("idle", RUN, ("60",), options=["--entrypoint", "sleep"])
        expect(not engine.is_healthy("idle"), "healthy")
    with report.check("health check: a worker that listens is healthy, and shows its metrics"):
        stand.start("worker", RUN, ("worker",), stand.settings({"ATTUNE_WORKER_LISTEN": "0.0.0.0:8080"}))
        client = stand.ready("worker")
        expect(engine.is_healthy("worker"), "unhealthy")
        expect(engine.run("exec", "worker", "attune", "health", "--worker").returncode == 0, "`attune health --worker`")
        expect(b"attune_training_running 0" in client.fetch("GET", "/metrics"), "no metrics of training")
        expect(status(engine.address("worker"), "/v1/models") == 404, "serves more than it should")
    for name in ("other", "idle", "worker"):
        stand.remove(name)


def memory(stand, report):
    """The cache of keys and values within the container's limit."""
    with report.check(f"server: --memory {MEMORY_MIB}m is kept to while its cache fills") as details:
        client = stand.serve(options=["--memory", f"{MEMORY_MIB}m", "--memory-swap", f"{MEMORY_MIB}m"])
        limited = stand.engine.inspect("server")["HostConfig"]["Memory"] == MEMORY_MIB << 20
        expect(limited, "the engine sets no limit")
        for number in range(PROMPTS):
            prompt = " ".join(f"{number}.{word}" for word in range(WORDS))
            body = {"model": "demo", "prompt": prompt[:1000], "max_tokens": 1}
            try:
                client.post("/v1/completions", body)
            except attunelib.CONNECTION_FAULTS:
                code = wait_for(lambda: stand.state("server")["ExitCode"], "the server's end")
                raise Failure(f"it ended with status {code} at prompt {number}") from None
        cached = [line for line in client.fetch("GET", "/metrics").decode().splitlines() if "kv_blocks_cached" in line]
        details.append(cached[-1] if cached else "")


def stops(stand, report):
    """A stop within Docker's ten seconds, with an answer running."""
    with report.check("server: `stop` ends a running answer by an error event within 10 s, and charges it") as details:
        client = stand.serve(options=["--volume", "attune-stop:/data"])
        before = completion_tokens(client)
        answer = LongAnswer(client)
        answer.start()
        expect(answer.begun.wait(30), f"the answer does not begin: {answer.last}")
        seconds = timed(lambda: stand.engine("stop", "--time", "10", "server"))
        code = stand.state("server")["ExitCode"]
        expect(code == 0 and seconds < 10, f"status {code} after {seconds:.1f} s")
        answer.join(10)
        expect(answer.last and "stopping" in answer.last, f"the stream's last event: {answer.last}")
        stand.engine("start", "server")
        tokens = completion_tokens(stand.ready("server")) - before
        expect(tokens >= answer.events - 1, f"{tokens} tokens charged of {answer.events} events")
        details.append(f"{seconds:.1f} s, {tokens} tokens charged")
    with report.check("server: an idle one stops at once") as details:
        seconds = timed(lambda: stand.engine("stop", "--time", "10", "server"))
        expect(stand.state("server")["ExitCode"] == 0 and seconds < 5, f"{seconds:.1f} s")
        details.append(f"{seconds:.1f} s")


def completion_tokens(client):
    return sum(row["completion_tokens"] for row in client.get("/v1/usage")["data"])


def standalone(stand, report):
    """One `run` is the whole product."""
    with report.check("standalone: one `run` serves a model") as details:
        options = ["--volume", "attune-standalone:/data", "--stop-timeout", "40"]
        variables = {"ATTUNE_API_KEYS": '["check-key"]'}
        seconds = timed(lambda: stand.start("alone", STANDALONE, variables=variables, options=options))
        seconds += timed(lambda: answers(stand.ready("alone")))
        details.append(f"{seconds:.1f} s")
    with report.check("standalone: a fine-tuned model survives a restart") as details:
        client = stand.client("alone")
        model = finish(create_job(client))
        question = [{"role": "user", "content": "Where is my parcel?"}]
        before = client.chat(model, question, max_tokens=20)
        stand.engine("stop", "--time", "40", "alone")
        expect(stand.state("alone")["ExitCode"] == 0, f"status {stand.state('alone')['ExitCode']}")
        stand.engine("start", "alone")
        after = stand.ready("alone").chat(model, question, max_tokens=20)
        expect(after == before, f"{before!r} became {after!r}")
        details.append(model)
    stand.remove("alone")


def cuda(stand, report, program):
    """The CUDA image's run stage, without a GPU and without a driver."""
    with report.check("docker/Dockerfile.cuda: migrate, keys and health run without a GPU (the program is the CPU's)"):
        settings = stand.settings()
        for command in (["migrate"], ["keys", "list"]):
            done = stand.once(CUDA, *command, variables=settings)
            expect(done.returncode == 0, f"{command}: {done.stderr.strip()}")
        answers(stand.serve("cuda", image=CUDA))
        expect(stand.engine.is_healthy("cuda"), "unhealthy")
        stand.remove("cuda")
    with report.check("docker/Dockerfile.cuda: the library in the driver's place starts without it, and gives way to it"):
        mount = ["--entrypoint", "/probe/ask", "--volume", f"{program}:/probe:ro"]
        without = stand.once(CUDA, options=mount)
        expect(without.stdout.split() == ["34", "34"], f"without a driver: {without.stdout}{without.stderr}")
        # As NVIDIA's container runtime does: the library is mounted beside the system's.
        place = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
        driver = [*mount, "--volume", f"{program}/libcuda.so.1:{place}:ro"]
        found = stand.once(CUDA, options=driver)
        expect(found.stdout.split() == ["0", "34"], f"with an older driver: {found.stdout}{found.stderr}")
