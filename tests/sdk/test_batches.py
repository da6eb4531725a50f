"""Batches: files of requests that are answered in the background, whatever happens to the server meanwhile."""

import json
import random
import re
import time
from collections import Counter

import httpx
import pytest
from conftest import ask_database, create_key, jsonl, keys_command, sdk, wait_for

CHAT, EMBEDDINGS, COMPLETIONS = "/v1/chat/completions", "/v1/embeddings", "/v1/completions"
RESPONSES = "/v1/responses"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(number, endpoint=COMPLETIONS, **body):
    given = {
        CHAT: {"messages": [{"role": "user", "content": f"Hello {number}"}], "max_tokens": 2},
        COMPLETIONS: {"prompt": f"On {number}", "max_tokens": 2, "temperature": 0},
        EMBEDDINGS: {"input": f"text {number}"},
        RESPONSES: {"input": f"Hello {number}", "max_output_tokens": 2},
    }[endpoint]
    return {"custom_id": f"r{number}", "method": "POST", "url": endpoint, "body": {"model": "demo", **given, **body}}


def create(client, lines, endpoint=COMPLETIONS, **more):
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    file = client.files.create(file=("batch.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def wait_for_batch(client, batch, within=60):
    def ended():
        now = client.batches.retrieve(batch.id)
        return now if now.status in ENDED else None

    return wait_for(ended, f"the end of {batch.id}", within)


def content(client, file):
    """The lines of a result file."""
    return [] if file is None else [json.loads(text) for text in client.files.content(file).text.splitlines()]


def fault(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES])
def test_a_batch_is_answered_as_each_request_alone_would_be(client, http, endpoint):
    lines = [line(number, endpoint, **({} if endpoint == EMBEDDINGS else {"temperature": 0})) for number in range(20)]
    batch = create(client, lines, endpoint, metadata={"team": "a"})
    assert (batch.object, batch.errors, batch.output_file_id) == ("batch", None, None)
    assert (batch.metadata, batch.completion_window) == ({"team": "a"}, "24h")
    assert batch.expires_at - batch.created_at == 24 * 3600
    done = wait_for_batch(client, batch)
    assert (done.status, done.error_file_id, done.endpoint, done.model) == ("completed", None, endpoint, "demo")
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert (done.failed_at, done.expired_at, done.cancelling_at, done.cancelled_at) == (None,) * 4
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (20, 20, 0)
    file = client.files.retrieve(done.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    results = content(client, done.output_file_id)
    assert Counter(result["custom_id"] for result in results) == Counter(one["custom_id"] for one in lines)
    assert len({result["id"] for result in results} | {result["response"]["request_id"] for result in results}) == 40
    asked = {one["custom_id"]: one["body"] for one in lines}
    tokens = 0
    for result in results:
        assert set(result) == {"id", "custom_id", "response", "error"} and result["error"] is None
        assert set(result["response"]) == {"status_code", "request_id", "body"}
        assert result["response"]["status_code"] == 200
        alone = http.post(endpoint, json=asked[result["custom_id"]]).json()
        body = result["response"]["body"]
        tokens += body["usage"]["total_tokens"]
        if endpoint == EMBEDDINGS:
            assert body["data"][0]["embedding"] == pytest.approx(alone["data"][0]["embedding"], abs=1e-4)
        elif endpoint == RESPONSES:
            texts = [one["output"][0]["content"][0]["text"] for one in (body, alone)]
            assert texts[0] == texts[1] and http.get(f"{RESPONSES}/{body['id']}").json()["output"] == body["output"]
        else:
            assert body["choices"] == alone["choices"]
    raw = http.get(f"/v1/batches/{batch.id}").json()
    assert raw["usage"]["total_tokens"] == tokens > 0
    assert set(raw["usage"]) == {
        "input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens",
    }  # fmt: skip


def test_a_response_in_the_background_has_no_answer_for_a_file(client):
    done = wait_for_batch(client, create(client, [line(0, RESPONSES), line(1, RESPONSES, background=True)], RESPONSES))
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    (failed,) = content(client, done.error_file_id)
    assert failed["custom_id"] == "r1" and "'background'" in failed["response"]["body"]["error"]["message"]


def test_lines_that_fail_go_to_the_error_file(client):
    lines = [line(0), line(1, temperature=9), line(2, stream=True), line(3, max_tokens="x")]
    done = wait_for_batch(client, create(client, lines))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 3)
    assert [one["custom_id"] for one in content(client, done.output_file_id)] == ["r0"]
    failed = {one["custom_id"]: one for one in content(client, done.error_file_id)}
    assert client.files.retrieve(done.error_file_id).purpose == "batch_output"
    for name, param in (("r1", "temperature"), ("r2", "stream"), ("r3", "max_tokens")):
        assert failed[name]["error"] is None
        assert failed[name]["response"]["status_code"] == 400
        assert failed[name]["response"]["body"]["error"]["param"] == param


def test_a_batch_of_which_every_line_fails_is_completed_without_an_output_file(client):
    lines = [{**one, "body": {**one["body"], "model": "nobody"}} for one in (line(0), line(1))]
    done = wait_for_batch(client, create(client, lines))
    assert (done.status, done.output_file_id) == ("completed", None)
    for one in content(client, done.error_file_id):
        assert one["response"]["status_code"] == 404
        assert one["response"]["body"]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"", ("empty_file", None)),
        (b'{"custom_id": \n', ("invalid_json_line", 1)),
        (jsonl([line(0)]) + b"no\n", ("invalid_json_line", 2)),
        ([line(0), line(1), line(0)], ("duplicate_custom_id", 3)),
        ([{**line(0), "custom_id": None}], ("missing_required_parameter", 1)),
        ([line(0), line(1, CHAT)], ("url_mismatch", 2)),
        ([{**line(0), "method": "GET"}], ("invalid_method", 1)),
        ([line(0), line(1, model="other")], ("model_mismatch", 2)),
        ([{**line(0), "body": None}], ("missing_required_parameter", 1)),
    ],
)
def test_a_file_with_a_wrong_line_is_no_batch(client, lines, expected):
    done = wait_for_batch(client, create(client, lines))
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.failed_at and not done.in_progress_at and done.errors.object == "list"
    assert [(one.code, one.line) for one in done.errors.data] == [expected]
    assert done.errors.data[0].message
    if expected[0] == "invalid_json_line":
        assert re.match("This line is not parseable as valid JSON. It (is|has|ends) ", done.errors.data[0].message)
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (0, 0, 0)


def test_what_cannot_become_a_batch_is_refused_by_name(client, http):
    file = client.files.create(file=("batch.jsonl", jsonl([line(0)])), purpose="batch").id
    other = client.files.create(file=("other.jsonl", jsonl([line(0)])), purpose="user_data").id
    good = {"input_file_id": file, "endpoint": COMPLETIONS, "completion_window": "24h"}
    for change, param in [
        ({"input_file_id": "file-nobody"}, "input_file_id"),
        ({"input_file_id": other}, "input_file_id"),
        ({"input_file_id": None}, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "output_expires_after.anchor"),
    ]:
        assert fault(http.post("/v1/batches", json={**good, **change}))["param"] == param, change
    form = {"data": {"purpose": "batch"}, "files": {"file": ("batch.txt", b"{}\n")}}
    assert fault(http.post("/v1/files", **form))["message"] == "Invalid file format for Batch API. Must be .jsonl"
    assert fault(http.get("/v1/batches/batch_nobody"), 404)["message"] == "No such Batch object: batch_nobody"


def test_the_files_of_a_batch_may_expire(client):
    lines = [line(0), {**line(1), "body": {"model": "demo", "prompt": "x", "temperature": 9}}]
    batch = create(client, lines, output_expires_after={"anchor": "created_at", "seconds": 7200})
    done = wait_for_batch(client, batch)
    for id in (done.output_file_id, done.error_file_id):
        file = client.files.retrieve(id)
        assert file.expires_at == file.created_at + 7200
    lasting = wait_for_batch(client, create(client, [line(0)]))
    assert client.files.retrieve(lasting.output_file_id).expires_at is None


def test_expired_files_of_a_batch_go_and_its_input_stays_while_it_runs(start_server, endless):
    server = start_server()
    after = {"anchor": "created_at", "seconds": 3600}
    with sdk(server) as client:
        batch = create(client, [line(0)], output_expires_after=after)
        output = wait_for_batch(client, batch).output_file_id
        long = [line(number, max_tokens=900, logit_bias=endless) for number in range(400)]
        file = client.files.create(file=("batch.jsonl", jsonl(long)), purpose="batch", expires_after=after).id
        running = client.batches.create(input_file_id=file, endpoint=COMPLETIONS, completion_window="24h")
        wait_for(lambda: client.batches.retrieve(running.id).status == "in_progress", "the batch")
    ask_database(server, "update files set expires_at = now() - interval '1 second' where expires_at is not null")
    # Every start looks for what has expired.
    server.stop()
    server.start()
    with sdk(server) as client:
        wait_for(lambda: output not in [file.id for file in client.files.list()], "the end of the output file")
        assert client.batches.retrieve(running.id).status == "in_progress"
        assert client.files.retrieve(file).id == file
        client.batches.cancel(running.id)
        wait_for_batch(client, running)
    server.stop()


def test_batches_are_listed_newest_first_in_pages(client, http):
    made = [create(client, [line(0)]).id for _ in range(3)]
    for batch in made:
        wait_for(lambda batch=batch: client.batches.retrieve(batch).status == "completed", batch)
    assert [batch.id for batch in client.batches.list(limit=3).data] == made[::-1]
    page = http.get("/v1/batches", params={"limit": 1, "after": made[2]}).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[1]], True)
    assert (page["first_id"], page["last_id"], page["object"]) == (made[1], made[1], "list")
    assert set(made) <= {batch.id for batch in client.batches.list(limit=2)}
    assert http.get("/v1/batches", params={"after": "batch_nobody"}).json()["data"] == []


def test_a_cancelled_batch_keeps_its_answers_and_tells_of_the_others(client, http, endless):
    lines = [line(0)] + [line(number, max_tokens=200, logit_bias=endless) for number in range(1, 400)]
    batch = create(client, lines)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, "the first answer")
    assert fault(http.delete(f"/v1/files/{batch.input_file_id}"))["message"].count(batch.id)
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at
    done = wait_for_batch(client, batch)
    assert done.status == "cancelled" and done.cancelled_at and not done.completed_at
    counts = done.request_counts
    assert counts.total == 400 == counts.completed + counts.failed and counts.completed > 0 and counts.failed > 0
    answered, others = content(client, done.output_file_id), content(client, done.error_file_id)
    assert len(answered) == counts.completed
    assert sorted(one["custom_id"] for one in answered + others) == sorted(one["custom_id"] for one in lines)
    assert {(one["response"], one["error"]["code"]) for one in others} == {(None, "batch_cancelled")}
    assert client.batches.cancel(batch.id).status == "cancelled"
    assert client.files.delete(batch.input_file_id).deleted
    completed = wait_for_batch(client, create(client, [line(0)]))
    assert "completed" in fault(http.post(f"/v1/batches/{completed.id}/cancel"))["message"]


def test_a_batch_expires_with_what_it_has(client, server, endless):
    lines = [line(0)] + [line(number, max_tokens=200, logit_bias=endless) for number in range(1, 400)]
    batch = create(client, lines)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, "the first answer")
    ask_database(server, f"update batches set expires_at = now() where id = '{batch.id}'")
    done = wait_for_batch(client, batch)
    assert done.status == "expired" and done.expired_at
    answered, others = content(client, done.output_file_id), content(client, done.error_file_id)
    assert sorted(one["custom_id"] for one in answered + others) == sorted(one["custom_id"] for one in lines)
    assert {(one["response"], one["error"]["code"]) for one in others} == {(None, "batch_expired")}
    assert done.request_counts.failed == len(others) > 0


def test_another_organisations_batch_is_none(tenants):
    with tenants.client("acme") as acme, tenants.http("rival") as rival:
        batch = create(acme, [line(0)])
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = rival.request(method, f"/v1/batches/{batch.id}{path}")
            assert fault(answer, 404)["message"] == f"No such Batch object: {batch.id}"
        assert rival.get("/v1/batches").json()["data"] == []
        body = {"input_file_id": batch.input_file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        assert fault(rival.post("/v1/batches", json=body))["param"] == "input_file_id"
        done = wait_for_batch(acme, batch)
        assert rival.get(f"/v1/files/{done.output_file_id}").status_code == 404
        assert len(content(acme, done.output_file_id)) == 1


def test_the_limits_of_a_key_delay_lines_and_fail_none(binary, start_server):
    server = start_server()
    create_key(binary, server.data_dir, "operators", "--admin")
    # As many at once, and then one a second.
    key, _ = create_key(binary, server.data_dir, "slow", "--rpm", "60")
    with sdk(server, key) as client:
        batch = create(client, [line(number) for number in range(64)])
        done = wait_for_batch(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 64)
        assert done.completed_at - done.in_progress_at >= 2, "they did not wait"
    # What a minute's tokens never suffice for is told so.
    key, _ = create_key(binary, server.data_dir, "small", "--tpm", "10")
    with sdk(server, key) as client:
        done = wait_for_batch(client, create(client, [line(0), line(1, prompt="word " * 100)]))
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
        (failed,) = content(client, done.error_file_id)
        assert (failed["custom_id"], failed["response"]["status_code"]) == ("r1", 429)
    server.stop()


def test_a_batch_goes_on_without_its_key(binary, start_server, endless):
    server = start_server()
    create_key(binary, server.data_dir, "operators", "--admin")
    first, first_id = create_key(binary, server.data_dir, "acme")
    second, _ = create_key(binary, server.data_dir, "acme")
    lines = [line(number, max_tokens=50, logit_bias=endless) for number in range(200)]
    with sdk(server, first) as client:
        batch = create(client, lines)
    revoked = keys_command(binary, server.data_dir, "revoke", first_id)
    assert revoked.returncode == 0, revoked.stderr
    with sdk(server, second) as client:
        done = wait_for_batch(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 200)
        assert len(content(client, done.output_file_id)) == 200
        # Its use is counted for the key that created it.
        wait_for(
            lambda: any(
                row["key"] == first_id and row["requests"] == 200
                for row in httpx.get(
                    server.url + "/v1/usage?group_by=key", headers={"Authorization": f"Bearer {second}"}
                ).json()["data"]
            ),
            "the use of the batch",
        )
    server.stop()


@pytest.mark.timeout(600)
def test_ten_deaths_lose_no_line_and_answer_none_twice(start_server, request, endless):
    count, deaths = request.config.getoption("--batch-lines"), 10
    chance = random.Random(20261201)
    lines = [line(number, max_tokens=10 + number % 50, logit_bias=endless) for number in range(count)]

    def answered(client, batch):
        return client.batches.retrieve(batch.id).request_counts.completed

    def is_whole(server, client, batch):
        done = wait_for_batch(client, batch, within=300)
        assert (done.status, done.error_file_id) == ("completed", None)
        results = content(client, done.output_file_id)
        assert Counter(one["custom_id"] for one in results) == Counter(one["custom_id"] for one in lines)
        assert {one["response"]["status_code"] for one in results} == {200}
        assert done.request_counts.completed == count
        assert client.files.retrieve(done.output_file_id).bytes == len(client.files.content(done.output_file_id).read())
        # Nothing is left of what ended halfway.
        files = [file for file in client.files.list(purpose="batch_output") if batch.id in file.filename]
        assert [file.id for file in files] == [done.output_file_id]
        assert ask_database(server, "select count(*) from batch_results") == "0"

    server, batch, died, told = start_server(), None, 0, 0
    while died < deaths:
        with sdk(server) as client:
            # However fast it is: a batch that has ended is followed by another one.
            if batch is None or client.batches.retrieve(batch.id).status in ENDED:
                if batch is not None:
                    is_whole(server, client, batch)
                batch, told = create(client, lines), 0
            # Between the results of lines, at any moment.
            wanted = min(told + count // (deaths + 4), count)
            wait_for(lambda: answered(client, batch) >= wanted, "more answers", every=0.02)  # noqa: B023
            time.sleep(chance.uniform(0, 0.1))
            told = answered(client, batch)
        server.kill()
        # One after the last line proves nothing.
        died += told < count
        server = start_server(data_dir=server.data_dir)
        with sdk(server) as client:
            now = client.batches.retrieve(batch.id)
            assert now.request_counts.completed >= told, "results that were told are never lost"
            told = now.request_counts.completed
            if now.status not in ENDED:
                assert (now.output_file_id, now.error_file_id) == (None, None)
    with sdk(server) as client:
        is_whole(server, client, batch)
    server.stop()


def test_a_batch_whose_input_is_lost_from_the_disk_fails_and_keeps_what_was_answered(client, server):
    batch = create(client, [line(0), line(1)])
    assert wait_for_batch(client, batch).status == "completed"
    # As it was with one of the lines answered, but for the file.
    (lost,) = (server.data_dir / "blobs").rglob(batch.input_file_id)
    lost.unlink()
    answer = json.dumps({"custom_id": "r0"})
    ask_database(
        server,
        f"insert into batch_results (batch, line, succeeded, content) select key, 1, true, '{answer}' from batches"
        f" where id = '{batch.id}'; update batches set status = 'in_progress', completed = 1, completed_at = null,"
        f" finalizing_at = null, output_file = null where id = '{batch.id}'",
    )
    failed = wait_for_batch(client, batch)
    assert (failed.status, failed.completed_at) == ("failed", None) and failed.failed_at
    (why,) = failed.errors.data
    assert (why.code, why.param) == ("invalid_input_file", "input_file_id")
    assert (failed.request_counts.completed, failed.request_counts.failed) == (1, 1)
    assert content(client, failed.output_file_id) == [{"custom_id": "r0"}] and failed.error_file_id is None
