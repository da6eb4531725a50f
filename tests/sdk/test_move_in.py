"""`attune move-in openai`: what an account holds is copied into a folder and from there into a server, whole, in spite of faults
and of being killed, and nothing is changed over there."""

import base64
import contextlib
import itertools
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import attunelib
import httpx
import pytest
from conftest import create_key, sdk, wait_for
from openai_account import KEY, SPECIALISTS, TRAINING_LINES, Account

pytestmark = pytest.mark.timeout(240)
# Evals that work here; of the others one runs code, one asks for the tools of stored chats.
CARRIED = {"eval_0001", "eval_0002", "eval_0004"}
numbers = itertools.count()


@pytest.fixture(scope="module")
def house(start_server):
    return start_server(settings={"ATTUNE_API_KEYS": "only-to-ask-for-keys"})


@pytest.fixture
def home(binary, house):
    """An organisation of its own on the server, with OpenAI's client to it."""
    key, _ = create_key(binary, house.data_dir, f"mover-{next(numbers)}")
    wait_for(lambda: httpx.get(house.url + "/v1/files", headers=bearer(key)).status_code == 200, "the new key")
    with sdk(house, key) as client:
        yield SimpleNamespace(url=house.url, key=key, client=client)


@pytest.fixture
def account():
    with Account() as account:
        yield account
    assert account.refused == [], "nothing may be changed over there"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def command(binary, folder, *options, account=None, home=None, url=None):
    """The command and its environment."""
    full = [str(binary), "move-in", "openai", *map(str, options)]
    if "--from" not in options:
        full += ["--folder", str(folder)]
    environment = attunelib.environment()
    environment.pop("OPENAI_API_KEY", None)
    if account:
        full += ["--openai-url", account.url, "--requests-per-minute", "60000"]
        environment |= account.environment()
    if home:
        full += ["--url", url or home.url]
        environment["ATTUNE_API_KEY"] = home.key
    return full, environment


def run(binary, folder, *options, **places):
    full, environment = command(binary, folder, *options, **places)
    return subprocess.run(full, capture_output=True, text=True, timeout=200, env=environment)


def moved(binary, folder, *options, **places):
    done = run(binary, folder, *options, **places)
    assert done.returncode == 0, done.stderr
    return done


def killed(process):
    process.kill()
    process.wait(30)


def by_old_id(objects):
    """The objects that have an old id, by it; each is there once."""
    found = {}
    for object in objects:
        old = ((object.model_extra or {}).get("metadata") or getattr(object, "metadata", None) or {}).get("openai_id")
        if old:
            assert old not in found, f"{old} is there twice"
            found[old] = object
    return found


def files_of(home):
    return by_old_id(home.client.files.list(limit=1000))


def content_of(home, file):
    return home.client.files.content(file.id).content


def check_home(home, account):
    """Everything that can be had is there, once, as it was."""
    files = files_of(home)
    for old, content in account.contents.items():
        if old == "file-notes":
            continue
        expected = base64.b64decode(content) if old == "file-result-problem" else content
        assert content_of(home, files[old]) == expected, old
    assert "file-notes" not in files and "file-deleted" not in files
    assert {files[f"file-{kind}-{name}"].purpose for kind in ("train", "valid") for name in SPECIALISTS} == {"fine-tune"}
    assert files["file-train-wants"].filename == "wants-train.jsonl"
    for job in account.jobs:
        history = json.loads(content_of(home, files[job["id"]]))
        assert history["job"] == job
        assert history["events"] == account.events[job["id"]]
        assert history["checkpoints"] == account.checkpoints[job["id"]]
    assert json.loads(content_of(home, files["ftjob-0001"]))["files"] == {
        old: files[old].id for old in ("file-train-problem", "file-valid-problem", "file-result-problem")
    }
    evals = by_old_id(home.client.evals.list(limit=100))
    assert set(evals) == CARRIED
    assert evals["eval_0001"].metadata["team"] == "support"
    for old, eval in evals.items():
        (given,) = account.evals[int(old[-4:]) - 1]["testing_criteria"][:1]
        assert eval.testing_criteria[0].name == given["name"]
        (run,) = by_old_id(home.client.evals.runs.list(eval.id)).values()
        (over_there,) = account.runs[old]
        run = wait_for(lambda run=run: ended(home, run), f"the end of {run.id}")
        assert run.status == "completed"
        counts = {"total": 8, "errored": 0, "failed": run.result_counts.failed, "passed": run.result_counts.passed}
        assert counts == over_there["result_counts"], "the same answers pass here"
    for old in account.items:
        assert (f"{old}:answers" in files) == (old.replace("run", "") in CARRIED)
    for old in ("eval_0003", "eval_0004", "eval_0005"):
        history = json.loads(content_of(home, files[old]))
        assert history["runs"][0]["output_items"] == account.items[old.replace("eval", "evalrun")]
    (training,) = [file for old, file in files.items() if old.startswith("stored:") and old.endswith(":training")]
    lines = [json.loads(line) for line in content_of(home, training).splitlines()]
    assert len(lines) == len(account.completions)
    assert [message["role"] for message in lines[0]["messages"]] == ["system", "user", "assistant"]
    assert training.purpose == "fine-tune"


def ended(home, run):
    read = home.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return read if read.status in ("completed", "failed", "canceled") else None


@contextlib.contextmanager
def gate(target, before_answer):
    """A way to the server at `target`. `before_answer` is called with each request that the server has done, before its answer
    goes on, and may keep it back by returning `True`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body go out together.
        wbufsize = -1

        def _pass(self):
            sent = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("transfer-encoding") == "chunked":
                pieces = []
                while length := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(length))
                    self.rfile.readline()
                self.rfile.readline()
                sent = b"".join(pieces)
            kept = ("authorization", "content-type")
            headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
            answer = behind.request(self.command, self.path, content=sent, headers=headers)
            self.close_connection = True
            if before_answer(self.command, self.path):
                return
            with contextlib.suppress(OSError):
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers["content-type"])
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)
                self.wfile.flush()

        do_GET = do_POST = _pass

        def log_message(self, *_):
            pass

    behind = httpx.Client(base_url=target, timeout=60)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        behind.close()


def test_the_list_says_what_is_there_and_what_stops_when_and_copies_nothing(binary, tmp_path, account):
    done = moved(binary, tmp_path / "m", "--list", account=account)
    rows = done.stdout.splitlines()
    assert rows[0].split() == "MODEL STOPS JOB METHOD TRAINING FILE VALIDATION FILE".split()
    for number, model in enumerate(SPECIALISTS.values(), 1):
        (row,) = [row for row in rows if row.startswith(model)]
        assert "2027-01-14" in row and f"ftjob-000{number}" in row and row.count("can be fetched") == 2
    (gone,) = [row for row in rows if "ftjob-0004" in row]
    assert "not in the list of files" in gone
    assert any("ftjob-0006" in row and "failed" in row and "Unsafe content" in row for row in rows)
    assert any("ftjob-0005" in row and "paused" in row for row in rows)
    assert "evals        5" in done.stdout and "stored chats 5" in done.stdout
    assert account.asked("/content") == 0 and account.asked("/events") == 0


def test_an_eval_that_runs_code_comes_over_where_the_server_runs_code(binary, tmp_path, account, start_server):
    server = start_server(settings={"ATTUNE_GRADERS__PYTHON": sys.executable})
    with sdk(server) as client:
        home = SimpleNamespace(url=server.url, key="any", client=client)
        done = moved(binary, tmp_path / "m", account=account, home=home)
        assert "eval_0003" not in done.stderr, done.stderr
        eval = by_old_id(client.evals.list(limit=100))["eval_0003"]
        assert eval.testing_criteria[0].source == "def grade(s, i):\n  return 1"
        (run_,) = by_old_id(client.evals.runs.list(eval.id)).values()

        def ended():
            read = client.evals.runs.retrieve(run_.id, eval_id=eval.id)
            return read if read.status != "queued" and read.status != "in_progress" else None

        counts = wait_for(ended, "the end of the run").result_counts
        assert (counts.passed, counts.total) == (8, 8)


def test_everything_is_there_once_and_a_second_run_asks_nobody(binary, tmp_path, account, home):
    done = moved(binary, tmp_path / "m", account=account, home=home)
    check_home(home, account)
    for part in ("file-deleted: not copied", "file-notes: not copied", "eval_0003: kept as history", "python",
                 "eval_0005: kept as history: a criterion asks for {{item.tools}}",
                 "ftjob-0005: kept as history: it is paused", "Unsafe content was found."):
        assert part in done.stderr, part
    ledger = json.loads((tmp_path / "m" / "carried.json").read_text())
    assert ledger["files"]["file-train-item"] == files_of(home)["file-train-item"].id
    assert set(ledger["evals"]) == CARRIED
    asked = len(account.requests)
    again = moved(binary, tmp_path / "m", account=account, home=home)
    assert len(account.requests) == asked and "--refresh" in again.stderr
    # A ledger is no more than a memory: what is on the server is found by its old id.
    (tmp_path / "m" / "carried.json").unlink()
    moved(binary, tmp_path / "m", account=account, home=home)
    check_home(home, account)
    assert json.loads((tmp_path / "m" / "carried.json").read_text()) == ledger
    everything = "".join(path.read_text(errors="replace") for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert KEY not in everything + done.stdout + done.stderr and home.key not in everything


def test_an_eval_over_stored_chats_works_on_here(binary, tmp_path, account, home):
    # Of the answers of then, one has no text, and one says in another form what was asked.
    items = account.items["evalrun_0004"]
    items[0]["sample"]["output"][0]["content"] = None
    items[1]["datasource_item"]["input"] = "a text"
    items[2]["datasource_item"] = {"metadata": None}
    done = moved(binary, tmp_path / "m", account=account, home=home)
    assert "evalrun_0004: 7 of 8 items have an answer of text, and 6 the form of the eval's items" in done.stderr
    assert "'item.input' is not of the type array" in done.stderr
    made = by_old_id(home.client.evals.list(limit=100))["eval_0004"]
    assert (made.data_source_config.type, made.data_source_config.metadata) == ("logs", {"app": "desk"})
    (run,) = by_old_id(home.client.evals.runs.list(made.id)).values()
    run = wait_for(lambda: ended(home, run), "the end of the run")
    assert run.status == "completed" and run.result_counts.total == 6 and run.result_counts.errored == 0
    judged = list(home.client.evals.runs.output_items.list(run.id, eval_id=made.id))
    asked = [item.datasource_item["input"][-1]["content"] for item in judged]
    assert asked == [item["sample"]["input"][0]["content"] for item in items[2:]]
    # And it judges what clients ask from now on, if it has the notes.
    for app in ("desk", "shop"):
        home.client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": app}], store=True, metadata={"app": app}, max_tokens=2
        )
    source = {"type": "completions", "source": {"type": "stored_completions"}}
    run = home.client.evals.runs.create(made.id, data_source=source)
    run = wait_for(lambda: ended(home, run), "the end of the run")
    assert run.status == "completed" and run.result_counts.total == 1


def test_an_eval_that_was_history_works_after_the_next_run(binary, tmp_path, account, home):
    config = account.evals[3]["data_source_config"]
    account.evals[3]["data_source_config"] = {"type": "traces"}
    done = moved(binary, tmp_path / "m", account=account, home=home)
    assert "eval_0004: kept as history: its data source has the type traces" in done.stderr
    account.evals[3]["data_source_config"] = config
    moved(binary, tmp_path / "m", "--refresh", account=account, home=home)
    check_home(home, account)


def test_what_is_new_comes_with_a_refresh(binary, tmp_path, account, home):
    moved(binary, tmp_path / "m", account=account, home=home)
    account._file("file-train-new", "new.jsonl", "fine-tune", account.contents["file-train-item"])
    job = account._job(8, training_file="file-train-new", fine_tuned_model="ft:new")
    account.jobs.insert(0, account.jobs.pop())
    paused = next(job for job in account.jobs if job["id"] == "ftjob-0005")
    paused["status"] = "succeeded"
    account.events["ftjob-0005"].insert(0, {**account.events["ftjob-0005"][0], "id": "ftevent-5-5"})
    moved(binary, tmp_path / "m", "--refresh", account=account, home=home)
    files = files_of(home)
    assert content_of(home, files["file-train-new"]) == account.contents["file-train-item"]
    assert json.loads(content_of(home, files["ftjob-0008"]))["job"] == job
    assert len(json.loads((tmp_path / "m" / "jobs" / "ftjob-0005.events.json").read_text())["data"]) == 5


def test_a_move_that_is_killed_twice_ends_whole_and_nothing_is_doubled(binary, tmp_path, account, home):
    process = None

    def start(**places):
        nonlocal process
        full, environment = command(binary, tmp_path / "m", account=account, home=home, **places)
        process = subprocess.Popen(full, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process

    # Once while it copies the account, within the content of a file.
    account.fail("/files/file-train-wants/content", lambda: killed(process))
    start()
    process.wait(120)
    assert process.returncode == -9
    asked_before = {path for _, path in account.requests if path.endswith("/content")}
    assert len(asked_before) > 1
    # And once between the server, which has the file, and the ledger, which has not.
    uploads = []

    def before_answer(method, path):
        if method == "POST" and path == "/v1/files":
            uploads.append(path)
            if len(uploads) == 5:
                killed(process)
        return False

    with gate(home.url, before_answer) as url:
        start(url=url)
        process.wait(120)
        assert process.returncode == -9
    contents = [path for _, path in account.requests if path.endswith("/content")]
    twice = {path for path in contents if contents.count(path) > 1}
    assert twice == {"/v1/files/file-train-wants/content"}, "only what was cut is fetched again"
    ledger = json.loads((tmp_path / "m" / "carried.json").read_text())
    assert len(ledger["files"]) == 4 and len(files_of(home)) == 5
    moved(binary, tmp_path / "m", account=account, home=home)
    check_home(home, account)


def test_a_list_that_was_cut_goes_on_with_its_next_page(binary, tmp_path, account):
    process = None
    account.fail("/fine_tuning/jobs\\?limit=100&after=ftjob-0002", lambda: killed(process))
    full, environment = command(binary, tmp_path / "m", "--fetch-only", account=account)
    process = subprocess.Popen(full, env=environment, stderr=subprocess.DEVNULL)
    process.wait(120)
    assert process.returncode == -9 and account.asked("/fine_tuning/jobs\\?limit=100$") == 1
    moved(binary, tmp_path / "m", "--fetch-only", account=account)
    assert account.asked("/fine_tuning/jobs\\?limit=100$") == 1, "the first pages are not asked for again"
    assert account.asked("after=ftjob-0002$") == 2
    assert len(list((tmp_path / "m" / "jobs").glob("ftjob-????.json"))) == len(account.jobs)


def test_a_list_that_was_shown_is_read_again_before_it_is_copied(binary, tmp_path, account):
    moved(binary, tmp_path / "m", "--list", account=account)
    account._file("file-train-new", "new.jsonl", "fine-tune", account.contents["file-train-item"])
    moved(binary, tmp_path / "m", "--fetch-only", account=account)
    assert (tmp_path / "m" / "files" / "file-train-new.content").read_bytes() == account.contents["file-train-item"]


def test_an_upload_whose_answer_is_lost_is_not_sent_twice(binary, tmp_path, account, home):
    lost = []

    def before_answer(method, path):
        is_lost = method == "POST" and path not in lost
        if is_lost:
            lost.append(path)
        return is_lost

    with gate(home.url, before_answer) as url:
        moved(binary, tmp_path / "m", account=account, home=home, url=url)
    assert len(lost) >= 4, "a file, an eval and its runs"
    check_home(home, account)


def test_a_folder_is_enough(binary, tmp_path, home):
    with Account() as account:
        done = moved(binary, tmp_path / "m", "--fetch-only", account=account)
        assert f"files        {len(account.files)}" in done.stderr
    # Neither the account nor a key is there any more.
    moved(binary, None, "--from", tmp_path / "m", home=home)
    check_home(home, account)
    assert (tmp_path / "m" / "files" / "file-result-problem.content").read_text().startswith("step,train_loss,")


def test_faults_of_the_account_are_waited_out(binary, tmp_path, account, home):
    for pattern, what in [
        ("/v1/models", 429), ("/v1/files\\?", 500), ("/v1/fine_tuning/jobs\\?", "cut"), ("/v1/evals\\?", 429),
        ("/file-train-item/content", "cut"), ("/file-valid-item/content", 500), ("/ftjob-0002/events", 429),
        ("/output_items", 500), ("/messages", "cut"),
        # Half a page, from a proxy that means well, is not the end of a list.
        ("/v1/files\\?", {"object": "list"}), ("/evals/eval_0001/runs\\?", {"object": "list", "data": [], "has_more": True}),
    ]:  # fmt: skip
        account.fail(pattern, what)
    done = moved(binary, tmp_path / "m", account=account, home=home)
    assert all(fault.is_used for fault in account.faults)
    assert done.stderr.count("asking again in") == len(account.faults)
    check_home(home, account)


def test_a_page_that_ends_with_what_is_deleted_meanwhile_begins_the_list_anew(binary, tmp_path, account):
    account.fail("jobs\\?limit=100&after=ftjob-0005", lambda: account.deleted.add("ftjob-0005"))
    done = moved(binary, tmp_path / "m", "--fetch-only", account=account)
    assert "read from its beginning" in done.stderr
    ids = {path.name for path in (tmp_path / "m" / "jobs").iterdir()}
    assert {f"ftjob-000{number}.json" for number in (1, 2, 3, 4, 6, 7)} <= ids


def test_a_free_account_gives_its_history_without_training_files(binary, tmp_path, home):
    with Account(free=True) as account:
        done = moved(binary, tmp_path / "m", account=account, home=home)
        assert "disabled for free accounts" in done.stderr
        files = files_of(home)
        assert "ftjob-0001" in files and "file-result-problem" in files and "file-train-problem" not in files
        # Once it is no longer a free one, they come as well.
        account.free = False
        done = moved(binary, tmp_path / "m", "--refresh", account=account, home=home)
        assert "disabled for free accounts" not in done.stderr
        assert content_of(home, files_of(home)["file-train-problem"]) == account.contents["file-train-problem"]


def test_a_part_of_the_platform_that_is_off_stops_nothing_else(binary, tmp_path, home):
    with Account() as account:
        account.off = "/v1/evals"
        done = moved(binary, tmp_path / "m", account=account, home=home)
    assert "evals: cannot be fetched" in done.stderr
    assert "file-train-item" in files_of(home) and not by_old_id(home.client.evals.list())


def test_without_a_valid_key_nothing_is_begun_and_the_key_is_not_shown(binary, tmp_path, account):
    done = run(binary, tmp_path / "m", "--fetch-only", "--openai-url", account.url)
    assert done.returncode == 1 and "OPENAI_API_KEY" in done.stderr and account.requests == []
    key = tmp_path / "key"
    key.write_text("sk-wrong-and-secret\n")
    done = run(binary, tmp_path / "m", "--fetch-only", "--openai-url", account.url, "--key-file", key)
    assert done.returncode == 1 and "401" in done.stderr and "sk-" not in done.stderr
    key.write_text(KEY + "\n")
    places = ["--openai-url", account.url, "--key-file", key, "--project", "proj_1", "--requests-per-minute", "60000"]
    moved(binary, tmp_path / "m", "--fetch-only", *places)
    assert {headers.get("openai-project") for headers in account.headers[-5:]} == {"proj_1"}
    assert len(account.contents["file-train-item"].splitlines()) == TRAINING_LINES


def test_one_run_at_a_time_uses_a_folder(binary, tmp_path, account):
    other = None

    def meanwhile():
        nonlocal other
        other = run(binary, tmp_path / "m", "--fetch-only", account=account)

    account.fail("/v1/evals\\?", meanwhile)
    moved(binary, tmp_path / "m", "--fetch-only", account=account)
    assert other.returncode == 1 and "another run uses this folder" in other.stderr
