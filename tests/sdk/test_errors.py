"""Every error that `docs/api.md` promises, provoked over HTTP; and no promise without its test.

What takes a killed worker, a dead database or a minute's silence is provoked in Rust: here stands where.
"""

import io
import json
import re
import tarfile
import threading
from pathlib import Path

import httpx
import pytest
from conftest import QUICK, as_prompts, create_job, sdk, upload, wait_for, wait_for_end

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
HELLO = [{"role": "user", "content": "Hello"}]
KEY = "sk-errors-0123456789"


def tables():
    """The rows of the two tables under "Errors": of statuses, and of failed jobs."""
    section = DOCUMENT.split("\n## Errors\n")[1].split("\n## ")[0]
    tables, rows = [], []
    for line in [*section.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            tables.append(rows[2:])
            rows = []
    of_statuses, of_jobs = tables
    return of_statuses, of_jobs


def words(text):
    return re.findall(r"`([a-z_]+)`", text)


def documented_codes():
    """The (status, code) pairs of the first table; code None where it says "none"."""
    for status, _, codes in tables()[0]:
        for code in words(codes.split("none")[0] if "none" in codes.split(";")[0] else codes.split("; none")[0]):
            yield int(status), code
        if re.search(r"\bnone\b", codes):
            yield int(status), None
            # `none without a key, invalid_api_key for a wrong one`
            for code in words(codes.split("none")[1]):
                yield int(status), code


def documented_job_codes():
    return {code for row in tables()[1] for code in words(row[0])}


# --- By a request -------------------------------------------------------------------------------------------------

# (status, code): method, path, and the arguments of the request. `strict` asks the server that has a key and small limits.
REQUESTS = {
    (400, None): ("POST", "/v1/completions", {"content": b"{"}),
    (400, "missing_required_parameter"): ("POST", "/v1/completions", {"json": {"prompt": "x"}}),
    (400, "invalid_type"): ("POST", "/v1/completions", {"json": {"model": "demo", "prompt": "x", "n": "many"}}),
    (400, "invalid_value"): ("POST", "/v1/completions", {"json": {"model": "demo", "prompt": "x", "temperature": 9}}),
    (400, "unknown_parameter"): (
        "POST",
        "/v1/fine_tuning/jobs",
        {"json": {"model": "demo", "training_file": "file-x", "n_epochs": 3}},
    ),
    (400, "unsupported_parameter"): (
        "POST",
        "/v1/completions",
        {"json": {"model": "demo", "prompt": "x", "suffix": "y"}},
    ),
    (400, "unsupported_value"): (
        "POST",
        "/v1/fine_tuning/jobs",
        {"json": {"model": "demo", "training_file": "file-x", "method": {"type": "reinforcement", "reinforcement": {}}}},
    ),
    (400, "invalid_grader"): (
        "POST",
        "/v1/fine_tuning/alpha/graders/validate",
        {"json": {"grader": {"type": "python", "name": "x", "source": "y"}}},
    ),
    (400, "array_above_max_length"): (
        "POST",
        "/v1/completions",
        {"json": {"model": "demo", "prompt": "x", "stop": ["a", "b", "c", "d", "e"]}},
    ),
    (400, "max_tokens_per_request"): (
        "POST",
        "/v1/embeddings",
        {"json": {"model": "demo", "input": [[1] * 1000] * 301}},
    ),
    (400, "context_length_exceeded"): (
        "POST",
        "/v1/completions",
        {"json": {"model": "demo", "prompt": "x", "max_tokens": 5000}},
    ),
    (400, "invalid_training_file"): (
        "POST",
        "/v1/fine_tuning/jobs",
        {"json": {"model": "demo", "training_file": "file-nobody"}},
    ),
    (400, "invalid_schema"): (
        "POST",
        "/v1/chat/completions",
        {
            "json": {
                "model": "demo",
                "messages": HELLO,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wish"}}},
            }
        },
    ),
    (400, "string_above_max_length"): (
        "POST",
        "/v1/chat/completions",
        {
            "json": {
                "model": "demo",
                "messages": HELLO,
                "tools": [{"type": "function", "function": {"name": "x", "parameters": {"title": "x" * 100_000}}}],
            }
        },
    ),
    (401, None): ("GET", "/v1/models", {"strict": True}),
    (401, "invalid_api_key"): ("GET", "/v1/models", {"strict": True, "headers": {"Authorization": "Bearer sk-wrong"}}),
    (403, None): ("DELETE", "/v1/models/demo", {}),
    (404, None): ("GET", "/v1/files/file-nobody", {}),
    (404, "model_not_found"): ("POST", "/v1/completions", {"json": {"model": "nobody", "prompt": "x"}}),
    (404, "fine_tune_not_found"): ("GET", "/v1/fine_tunes/ft-nobody", {}),
    (404, "response_not_found"): ("GET", "/v1/responses/resp_nobody", {}),
    (404, "item_not_found"): ("POST", "/v1/responses", {"json": {"model": "demo", "input": [{"id": "msg_nobody"}]}}),
    (400, "previous_response_not_found"): (
        "POST",
        "/v1/responses",
        {"json": {"model": "demo", "input": "x", "previous_response_id": "resp_nobody"}},
    ),
    (400, "mutually_exclusive_parameters"): (
        "POST",
        "/v1/responses",
        {"json": {"model": "demo", "input": "x", "previous_response_id": "resp_nobody", "conversation": "conv_nobody"}},
    ),
    (404, "conversation_not_found"): ("GET", "/v1/conversations/conv_nobody", {}),
    (404, "unknown_url"): ("GET", "/v1/nowhere", {}),
    (405, "method_not_supported"): ("PUT", "/v1/completions", {}),
    (413, None): (
        "POST",
        "/v1/completions",
        {"strict": True, "headers": {"Authorization": f"Bearer {KEY}"}, "content": b" " * 3000},
    ),
    (415, None): ("POST", "/v1/files", {"json": {"purpose": "fine-tune"}}),
}

# What takes more than one request: the test of the same file that provokes it.
HERE = {
    (400, "invalid_adapter"): "test_what_is_no_adapter_is_not_loaded",
    (403, "insufficient_permissions"): "test_who_is_no_admin_may_not_load_adapters",
    (429, "rate_limit_exceeded"): "test_a_full_queue_says_when_to_come_back",
}

# What HTTP alone cannot bring about, or takes a server of its own: file and test.
ELSEWHERE = {
    (408, None): ("src/api/http/extract.rs", "a_body_that_never_comes_is_given_up"),
    (500, None): ("src/api/http/error.rs", "what_happens_inside_the_server_stays_in_the_log"),
    (503, None): ("tests/store/pool.rs", "Error::Unavailable"),
    (400, "missing_budget"): (
        "tests/sdk/test_distillation.py", "test_the_cost_is_told_before_and_the_budget_is_never_exceeded"),
    (400, "duplicate_field"): ("tests/sdk/test_files.py", "test_a_field_that_comes_twice_is_refused_by_its_name"),
    (503, "storage_read_only"): (
        "tests/hostile/test_bodies.py", "test_a_disk_that_became_read_only_is_a_503_and_deleting_still_works"),
    (507, "insufficient_storage"): (
        "tests/hostile/test_bodies.py", "test_a_full_disk_is_a_507_and_not_ready_until_there_is_room"),
    (504, "request_timeout"): ("tests/sdk/test_deadlines.py", "test_an_answer_that_takes_too_long_is_ended_with_504"),
}


@pytest.fixture(scope="module")
def strict(start_server):
    """A server with a key and the smallest limits."""
    limits = {"MAX_BODY_BYTES": 2000, "MAX_FILE_BYTES": 1000, "MAX_SEQUENCES": 1, "MAX_WAITING": 1}
    settings = {f"ATTUNE_LIMITS__{name}": str(value) for name, value in limits.items()}
    server = start_server(settings={"ATTUNE_API_KEYS": json.dumps([KEY]), **settings})
    yield server
    server.stop()


def check_error(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert error["code"] == code
    assert error["param"] is None or isinstance(error["param"], str)
    types = [row[1].strip("`") for row in tables()[0] if int(row[0]) == status]
    assert error["type"] in [kind for row in types for kind in re.findall(r"[a-z_]+", row)]
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(("status", "code"), REQUESTS)
def test_a_wrong_request_gets_its_documented_error(http, strict, status, code):
    method, path, arguments = REQUESTS[status, code]
    arguments = dict(arguments)
    url = strict.url if arguments.pop("strict", False) else str(http.base_url).rstrip("/")
    check_error(httpx.request(method, url + path, **arguments), status, code)


def test_an_upload_beyond_the_limit_is_refused(strict):
    with sdk(strict, KEY) as client:
        answer = client._client.post(
            strict.url + "/v1/files",
            headers={"Authorization": f"Bearer {KEY}"},
            files={"file": ("big.jsonl", b"x" * 5000)},
            data={"purpose": "fine-tune"},
        )
    check_error(answer, 413, None)
    assert "1000" in answer.json()["error"]["message"]


def test_what_is_no_adapter_is_not_loaded(client, http):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"{}"))
    file = client.files.create(file=("adapter.tar", archive.getvalue()), purpose="user_data")
    answer = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": file.id})
    check_error(answer, 400, "invalid_adapter")


def test_who_is_no_admin_may_not_load_adapters(tenants):
    with tenants.http("acme") as http:
        answer = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "x"})
    check_error(answer, 403, "insufficient_permissions")


def test_a_full_queue_says_when_to_come_back(strict, endless):
    """One place to run and one to wait: of six at once, some must be refused, and those at once."""
    bias = dict(list(endless.items())[:40])
    body = {"model": "demo", "prompt": "On", "max_tokens": 900, "logit_bias": bias, "stream": True}
    refused, release, lock = [], threading.Event(), threading.Lock()

    def ask():
        head = {"Authorization": f"Bearer {KEY}"}
        with httpx.stream("POST", strict.url + "/v1/completions", json=body, headers=head, timeout=60) as answer:
            if answer.status_code != 200:
                answer.read()
                with lock:
                    refused.append(answer)
                return
            release.wait(30)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: refused, "a refusal", within=30)
    finally:
        release.set()
        for thread in threads:
            thread.join()
    for answer in refused:
        check_error(answer, 429, "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) >= 1


# --- By a job that fails --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(client, tickets):
    """A finished fine-tuned model to go on with."""
    job = wait_for_end(client, create_job(client, upload(client, tickets[:12]), {**QUICK, "n_epochs": 1}).id)
    assert job.status == "succeeded", job.error
    yield job.fine_tuned_model
    ids = [model.id for model in client.models.list()]
    if job.fine_tuned_model in ids:
        client.models.delete(job.fine_tuned_model)


def few_examples(client, tickets, **_):
    return create_job(client, upload(client, tickets[:3]))


def broken_line(client, tickets, **_):
    return create_job(client, upload(client, [*tickets[:12], {"messages": []}]))


def blown_up(client, tickets, **_):
    return create_job(client, upload(client, tickets[:12]), {**QUICK, "learning_rate": 1e30})


def another_rank(client, tickets, learned):
    method = {"type": "supervised", "supervised": {"hyperparameters": {**QUICK, "rank": 4}}}
    return client.fine_tuning.jobs.create(model=learned, training_file=upload(client, tickets[:12]), method=method)


JOBS = {
    "invalid_n_examples": (few_examples, "training_file"),
    "invalid_training_file": (broken_line, "training_file"),
    "non_finite_loss": (blown_up, "learning_rate_multiplier"),
    "invalid_request": (another_rank, "rank"),
}

JOBS_HERE = {
    # The older resource shows no code, but tells the message.
    "invalid_classes": "test_classes_that_do_not_fit_fail_a_fine_tune",
    "insufficient_memory": "test_a_job_that_does_not_fit_into_memory_fails_as_its_estimate_does",
}

JOBS_IN_RUST = {
    # A file and a model that a job needs cannot be deleted over HTTP.
    "file_not_found": ("tests/jobs/runs.rs", "a_fault_of_the_request_fails_the_job_with_a_message_that_helps"),
    "model_not_found": ("tests/jobs/runs.rs", "a_fault_of_the_request_fails_the_job_with_a_message_that_helps"),
    # The older resource tells it in an event alone.
    "invalid_classes": ("tests/jobs/classification.rs", "other_classes_than_were_asked_for_fail_the_job_before_it_trains"),
    "teacher_unavailable": (
        "tests/sdk/test_distillation.py", "test_a_wrong_key_fails_the_job_until_it_is_resumed"),
    "server_error": ("tests/jobs/queue/life.rs", "another_fault_is_tried_again_three_times_in_all"),
    "worker_lost": ("tests/jobs/queue/leases.rs", "a_job_that_kills_every_worker_fails_after_three"),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("code", JOBS)
def test_a_job_fails_with_its_documented_code(client, tickets, learned, code):
    start, param = JOBS[code]
    job = wait_for_end(client, start(client=client, tickets=tickets, learned=learned).id)
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == (code, param), job.error
    assert job.error.message
    assert job.fine_tuned_model is None


def test_classes_that_do_not_fit_fail_a_fine_tune(client, http, tickets):
    file = upload(client, as_prompts(tickets[:12]))
    body = {"model": "demo", "training_file": file, "validation_file": file, "compute_classification_metrics": True}
    job = http.post("/v1/fine_tunes", json={**body, "classification_n_classes": 3}).json()

    def ended():
        now = http.get(f"/v1/fine_tunes/{job['id']}").json()
        return now if now["status"] in ("succeeded", "failed", "cancelled") else None

    done = wait_for(ended, "the end of the fine-tune")
    assert done["status"] == "failed"
    assert "12 different completion" in done["events"][-1]["message"], done["events"]
    assert done["fine_tuned_model"] is None


def test_a_job_that_does_not_fit_into_memory_fails_as_its_estimate_does(start_server, tickets):
    server = start_server(settings={"ATTUNE_TRAINING__MEMORY_LIMIT_MIB": "1"})
    with sdk(server) as client:
        file = upload(client, tickets[:12])
        body = {"model": "demo", "training_file": file}
        refused = httpx.post(server.url + "/v1/fine_tuning/jobs/estimate", json=body, timeout=60)
        job = wait_for_end(client, create_job(client, file).id)
        assert client.completions.create(model="demo", prompt="On", max_tokens=2).usage.completion_tokens > 0
    server.stop()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "insufficient_memory", "max_seq_length")
    assert (job.status, job.error.code, job.error.param) == ("failed", "insufficient_memory", "max_seq_length")
    for part in ("MiB of memory", "max_seq_length", "rank", "quantize"):
        assert part in job.error.message and part in error["message"], job.error.message


# --- Nothing is promised without its test ---------------------------------------------------------------------------


def test_every_documented_error_is_provoked_and_every_provoked_one_documented():
    assert set(documented_codes()) == {*REQUESTS, *HERE, *ELSEWHERE}
    assert documented_job_codes() == {*JOBS, *JOBS_HERE, *JOBS_IN_RUST}
    assert {*HERE.values(), *JOBS_HERE.values()} <= set(globals())


def test_every_code_in_the_source_is_documented():
    """The code is what follows the field at fault, or stands alone."""
    spellings = r'invalid_code\(\s*[^,()]+,\s*"([a-z_]+)"|\.code\("([a-z_]+)"\)|\bfault\(\s*"([a-z_]+)"'
    written = set()
    for file in (ROOT / "src").rglob("*.rs"):
        if "test" not in file.stem:
            code = file.read_text(encoding="utf-8").split("#[cfg(test)]")[0]
            written |= {word for found in re.findall(spellings, code) for word in found if word}
    assert len(written) > 15
    assert written <= {code for _, code in documented_codes()} | documented_job_codes()


@pytest.mark.parametrize(("file", "test"), [*ELSEWHERE.values(), *JOBS_IN_RUST.values()])
def test_what_is_provoked_elsewhere_has_its_test_there(file, test):
    assert test in (ROOT / file).read_text(encoding="utf-8")
