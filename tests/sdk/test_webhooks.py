"""Webhooks: what a receiver on the loopback address gets, and what happens when it does not take it."""

import base64
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attunelib
import httpx
import pytest
from conftest import QUICK, create_job, sdk, upload, wait_for, wait_for_end
from openai import InvalidWebhookSignatureError
from test_outages import socket_dir

pytestmark = pytest.mark.timeout(240)
SECRET = "whsec_" + base64.b64encode(b"a key that only the two know").decode()
# An attempt whose server was killed is repeated once its lease has run out.
LEASE = 30


class Receiver:
    """Takes webhooks. `answers` are the statuses of the next ones, 200 after that; a callable holds its answer back."""

    def __init__(self, port=0):
        self.requests, self.answers, self.lock = [], [], threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.lock:
                    receiver.requests.append((self.path, dict(self.headers.items()), body))
                    answer = receiver.answers.pop(0) if receiver.answers else 200
                status = answer() if callable(answer) else answer
                self.send_response(status)
                if status in (301, 302, 307, 308):
                    self.send_header("location", receiver.url + "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def about(self, subject):
        """The requests about the job, in their order."""
        with self.lock:
            seen = list(self.requests)
        return [request for request in seen if json.loads(request[2])["data"]["id"] == subject]

    def wait_for(self, subject, count=1, within=60):
        wait_for(lambda: len(self.about(subject)) >= count, f"webhook number {count} of {subject}", within)
        return self.about(subject)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


def settings(*webhooks, **more):
    tables = [
        "{" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in webhook.items()) + "}" for webhook in webhooks
    ]
    return {"ATTUNE_WEBHOOKS": f"[{', '.join(tables)}]", **more}


def cancelled_job(client, tickets):
    """The id of a job that was cancelled while it waited: nobody runs jobs here."""
    job = create_job(client, upload(client, tickets[:10]))
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    return job.id


def unwrapped(client, request, secret=SECRET):
    _, headers, body = request
    return client.webhooks.unwrap(body, headers, secret=secret)


def webhook_id(request):
    return {name.lower(): value for name, value in request[1].items()}["webhook-id"]


def test_a_finished_and_a_failed_job_are_told_signed_and_once(start_server, receiver, tickets):
    server = start_server(settings=settings({"url": receiver.url + "/hook", "secret": SECRET}))
    with sdk(server) as client:
        done = wait_for_end(client, create_job(client, upload(client, tickets[:12]), {**QUICK, "n_epochs": 1}).id)
        assert done.status == "succeeded", done.error
        failed = wait_for_end(client, create_job(client, upload(client, tickets[:3])).id)
        assert failed.status == "failed"
        for job, kind in ((done, "succeeded"), (failed, "failed")):
            (request,) = receiver.wait_for(job.id)
            event = unwrapped(client, request)
            assert (event.type, event.data.id, event.object) == (f"fine_tuning.job.{kind}", job.id, "event")
            assert event.id.startswith("evt_") and abs(event.created_at - job.finished_at) <= 2
            path, headers, body = request
            headers = {name.lower(): value for name, value in headers.items()}
            assert path == "/hook" and headers["webhook-id"].startswith("wh_")
            assert headers["content-type"] == "application/json" and headers["user-agent"].startswith("Attune/")
            with pytest.raises(InvalidWebhookSignatureError):
                client.webhooks.unwrap(body + b" ", headers, secret=SECRET)
            with pytest.raises(InvalidWebhookSignatureError):
                unwrapped(client, request, secret="whsec_" + base64.b64encode(b"another key").decode())
        assert len(receiver.requests) == 2


def test_ends_of_batches_of_runs_and_of_responses_are_told(start_server, receiver):
    server = start_server("--no-worker", settings=settings({"url": receiver.url, "secret": SECRET}))
    body = {"model": "demo", "prompt": "On", "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    item = {"item": {"x": "a"}, "sample": {"output_text": "a"}}
    check = {"type": "string_check", "name": "same", "input": "{{item.x}}", "reference": "a", "operation": "eq"}
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [item]}}
    with sdk(server) as client:
        told = {}
        for lines, kind in ((json.dumps(line), "completed"), ("no JSON", "failed")):
            file = client.files.create(file=("batch.jsonl", lines.encode()), purpose="batch")
            batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
            told[batch.id] = f"batch.{kind}"
        config = {"type": "custom", "item_schema": {"type": "object"}}
        evaluation = client.evals.create(data_source_config=config, testing_criteria=[check])
        told[client.evals.runs.create(evaluation.id, data_source=source).id] = "eval.run.succeeded"
        asked = {"model": "demo", "input": "Hello", "max_output_tokens": 2}
        told[client.responses.create(**asked, background=True).id] = "response.incomplete"
        waited_for = client.responses.create(**asked)
        for subject, kind in told.items():
            (request,) = receiver.wait_for(subject)
            assert unwrapped(client, request).type == kind
        assert not receiver.about(waited_for.id)


def test_what_is_not_taken_comes_again_under_the_same_id(start_server, receiver, tickets):
    receiver.answers = [500, 302, 200]
    # A secret without the prefix is taken as it is.
    server = start_server("--no-worker", settings=settings({"url": receiver.url, "secret": "plain text"}))
    with sdk(server) as client:
        first = cancelled_job(client, tickets)
        requests = receiver.wait_for(first, 3)
        second = cancelled_job(client, tickets)
        receiver.wait_for(second)
        assert len(requests) == len(receiver.about(first)) == 3
        assert len({webhook_id(request) for request in requests}) == 1
        assert {path for path, _, _ in receiver.requests} == {"/"}, "a redirect must not be followed"
        for request in requests:
            event = unwrapped(client, request, secret=base64_of("plain text"))
            assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", first)


def base64_of(text):
    """The secret as the client reads one whose bytes are those of `text`."""
    return "whsec_" + base64.b64encode(text.encode()).decode()


def test_a_webhook_survives_the_death_of_the_server_that_sends_it(start_server, receiver, tickets):
    arrived, release = threading.Event(), threading.Event()

    def hold():
        arrived.set()
        release.wait(60)
        return 200

    receiver.answers = [hold]
    server = start_server("--no-worker", settings=settings({"url": receiver.url, "secret": SECRET}))
    with sdk(server) as client:
        job = cancelled_job(client, tickets)
    assert arrived.wait(30), "the webhook was not sent"
    server.kill()
    release.set()
    server.start()
    with sdk(server) as client:
        first, second = receiver.wait_for(job, 2, within=2 * LEASE)
        assert webhook_id(first) == webhook_id(second)
        assert unwrapped(client, second).data.id == job


def test_a_receiver_that_is_away_gets_its_webhooks_when_it_is_back(start_server, receiver, tickets):
    port = receiver.http.server_port
    server = start_server("--no-worker", settings=settings({"url": receiver.url, "secret": SECRET}))
    receiver.close()
    with sdk(server) as client, httpx.Client(base_url=server.url) as http:
        job = cancelled_job(client, tickets)
        failed = 'attune_webhooks_total{outcome="failed"}'
        wait_for(lambda: failed in http.get("/metrics").text, "an attempt that failed")
        back = Receiver(port)
        try:
            (request,) = back.wait_for(job)
            assert unwrapped(client, request).data.id == job
        finally:
            back.close()


def test_two_servers_share_the_work_and_send_nothing_twice(start_server, receiver, tickets):
    wanted = settings({"url": receiver.url, "secret": SECRET})
    owner = start_server("--no-worker", settings=wanted)
    url = f"postgres://attune@localhost/attune?host={socket_dir(owner.data_dir)}"
    other = start_server("--no-worker", settings={**wanted, "ATTUNE_DATABASE_URL": url})
    with sdk(owner) as client:
        jobs = [cancelled_job(client, tickets) for _ in range(12)]
        for job in jobs:
            receiver.wait_for(job)
        last = cancelled_job(client, tickets)
        receiver.wait_for(last)
    assert len(receiver.requests) == len(jobs) + 1
    other.stop()


def test_an_endpoint_gets_the_events_that_it_wants(start_server, receiver, tickets):
    webhooks = [
        {"url": receiver.url + "/ends", "secret": SECRET, "events": ["fine_tuning.job.cancelled"]},
        {"url": receiver.url + "/good", "secret": SECRET, "events": ["fine_tuning.job.succeeded"]},
        {"url": receiver.url + "/others", "secret": SECRET, "organization": "elsewhere"},
    ]
    server = start_server("--no-worker", settings=settings(*webhooks))
    with sdk(server) as client:
        for _ in range(2):
            receiver.wait_for(cancelled_job(client, tickets))
    assert {path for path, _, _ in receiver.requests} == {"/ends"}


@pytest.mark.parametrize(
    "webhook, says",
    [
        ({"url": "hiddenhost", "secret": SECRET}, "url must"),
        ({"url": "https://hiddenhost/", "secret": "whsec_hidden?"}, "secret must"),
        ({"url": "https://hiddenhost/", "secret": "hidden", "events": ["job.done"]}, "job.done"),
        ({"url": "https://hiddenhost/", "secret": "hidden", "key": "hidden"}, "webhooks"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_shows_no_secret(binary, webhook, says):
    folder = attunelib.data_folder()
    command = [str(binary), "serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder)]
    done = subprocess.run(
        command, env=attunelib.environment(settings(webhook)), cwd=attunelib.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert says in done.stderr and "hidden" not in done.stderr, done.stderr
