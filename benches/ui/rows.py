"""Jobs with many steps, written into a server's private database: copies of one that the server has really run."""

import functools
import re
import shutil
import subprocess
import threading
from types import SimpleNamespace

import attunelib

RUNNING = 20
LONG = 10_000
SETTINGS = {"n_epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "rank": 8}
# What a worker tells of a step.
STEP = """jsonb_build_object('step', n, 'total_steps', :steps, 'elapsed_seconds', n * 0.5,
    'remaining_seconds', (:steps - n) * 0.5, 'train_loss', 3 / sqrt(n) + 0.2 * abs(sin(n)),
    'train_mean_token_accuracy', 1 - 1 / sqrt(n + 1), 'learning_rate', 0.001, 'gradient_norm', 1 + abs(sin(n)),
    'tokens_per_second', 900 + 50 * sin(n))"""
COPY = """
insert into jobs (id, api, organization, status, spec, resolved, attempt, fine_tuned_model, trained_tokens,
                  result_files, created_at, updated_at, claimed_at, finished_at, lease_owner, lease_expires_at)
select 'ftjob-' || :'kind' || lpad(copy::text, 8, '0'), api, organization, :'status', spec, resolved, attempt,
       case when :'status' = 'succeeded' then fine_tuned_model || copy end, trained_tokens, result_files,
       created_at - copy * interval '1 minute', updated_at, claimed_at,
       case when :'status' = 'succeeded' then finished_at end,
       case when :'status' = 'running' then 'bench' end,
       case when :'status' = 'running' then now() + interval '1 day' end
  from jobs cross join generate_series(1, :copies) as copy where id = :'template';
"""
# What was told before the first step, or else since.
MESSAGES = """
insert into job_events (job, attempt, at, level, kind, message, data, change, detail)
select copy.key, event.attempt, event.at, event.level, event.kind, event.message, event.data, event.change, event.detail
  from jobs as copy join jobs as template on template.id = :'template'
  join job_events as event on event.job = template.key and event.kind <> 'metrics'
 where copy.id like 'ftjob-' || :'kind' || '%'
   and (event.seq < (select min(seq) from job_events where job = template.key and kind = 'metrics')) = :first
 order by event.seq;
"""
# One job after the other, as workers train.
METRICS = """
insert into job_events (job, attempt, kind, message, data)
select key, 1, 'metrics', '', """ + STEP + """
  from generate_series(1, :told) as n cross join jobs where id like 'ftjob-' || :'kind' || '%' order by id, n;
"""


@functools.cache
def socket_folder(server):
    """The folder of the database's socket, which a server tells when it starts; its log forgets old lines."""
    (folder,) = {found[1] for line in server.log if (found := re.search(r"socket in ([^)\s]+)", line))}
    return folder


def psql(server):
    """The command that talks to the server's private database."""
    program = shutil.which("psql") or "psql"
    return [program, "-h", socket_folder(server), "-U", "attune", "-d", "attune", "-qAt", "-v", "ON_ERROR_STOP=1"]


def sql(server, statement, **variables):
    """Runs statements; `:'name'` is a variable's text."""
    command = psql(server)
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    # Rows that are written this way notify nobody.
    statement = "set session_replication_role = replica;" + statement
    done = subprocess.run(command, input=statement, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout.split()


def make(server, client, count, steps):
    """Makes the jobs; the newest first: `ended`, `running`, which still make steps, and a `long` one."""
    lines = (attunelib.DEMO / "tickets" / "train.jsonl").read_bytes().splitlines(keepends=True)
    training = client.upload("train.jsonl", b"".join(lines[:40]))
    validation = client.upload("valid.jsonl", b"".join(lines[40:52]))
    method = {"type": "supervised", "supervised": {"hyperparameters": SETTINGS}}
    body = {"model": "demo", "training_file": training["id"], "validation_file": validation["id"], "method": method}
    job = attunelib.Job(client, client.post("/v1/fine_tuning/jobs", body))
    wait = threading.Event()
    while not job.is_over:
        wait.wait(0.2)
        job.refresh()
    if job.state["status"] != "succeeded":
        raise RuntimeError(f"the first job: {job.state}")
    kinds = {"ended": (count, "succeeded", steps, steps), "running": (RUNNING, "running", 10 * steps, steps // 2),
             "long": (1, "succeeded", LONG, LONG)}  # fmt: skip
    ids = {}
    for kind, (copies, status, total, told) in kinds.items():
        statements = COPY + MESSAGES.replace(":first", "true") + METRICS
        if status == "succeeded":
            statements += MESSAGES.replace(":first", "false")
        names = {"template": job.state["id"], "kind": kind, "status": status}
        sql(server, statements, **names, copies=copies, steps=total, told=told)
        ids[kind] = [f"ftjob-{kind}{number:08}" for number in range(1, copies + 1)]
    sql(server, "analyze jobs; analyze job_events;")
    return SimpleNamespace(
        ended=ids["ended"], middle=ids["ended"][count // 2], running=ids["running"], long=ids["long"][0],
        total=10 * steps, next=steps // 2,
    )  # fmt: skip


class Steps:
    """A step of each running job every second, as workers would write them."""

    def __init__(self, server, jobs):
        self.server, self.jobs = server, jobs
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        process = subprocess.Popen(psql(self.server), stdin=subprocess.PIPE, text=True, cwd="/")
        step = STEP.replace(":steps", str(self.jobs.total))
        while not self.over.wait(1):
            self.jobs.next += 1
            process.stdin.write(
                f"insert into job_events (job, attempt, kind, message, data) select key, 1, 'metrics', '', {step} "
                f"from jobs cross join (values ({self.jobs.next})) as steps (n) where id like 'ftjob-running%';\n"
            )
            process.stdin.flush()
        process.stdin.close()
        process.wait()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(30)
