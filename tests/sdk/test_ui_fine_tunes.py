"""Fine-tunes on the page: a small real job from start to end, what others see of it, and texts that are no HTML."""

import html
import json
import re

import httpx
import pytest
from conftest import as_prompts, create_job, upload, wait_for, wait_for_end
from test_classification import create, finish, table
from test_ui_session import SCRIPTS, signed_in

HOSTILE = "<script>alert(1)</script>\"'&lt; \u202eshalom"


@pytest.fixture(scope="module")
def trained(tenants, tickets):
    """A job of acme's that has ended, with a validation file and names that try to be HTML."""
    with tenants.client("acme") as client:
        training = upload(client, tickets[:24], name=HOSTILE.replace("/", "") + ".jsonl")
        validation = upload(client, tickets[24:32])
        job = create_job(client, training, validation_file=validation, metadata={"note": HOSTILE}, suffix="page")
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded"
        return job


@pytest.fixture(scope="module")
def acme(tenants):
    with signed_in(tenants.server, tenants.keys["acme"]) as client:
        yield client


@pytest.fixture(scope="module")
def rival(tenants):
    with signed_in(tenants.server, tenants.keys["rival"]) as client:
        yield client


def test_the_list_has_state_progress_losses_and_cost(acme, trained):
    page = acme.get("/ui/fine-tunes").text
    row = next(row for row in page.split("<tr>") if trained.id in row)
    assert "succeeded" in row
    assert re.search(r"<progress max=\"(\d+)\" value=\"\1\"", row)
    assert "<polyline" in row
    assert "USD for tokens" in row
    assert html.escape(trained.fine_tuned_model) in row


def test_a_job_reads_without_javascript(acme, trained):
    answer = acme.get(f"/ui/fine-tunes/{trained.id}")
    assert answer.status_code == 200
    page = answer.text
    assert not SCRIPTS.search(page)
    for words in [
        "Training loss:", "Validation loss:", "Learning rate", "Gradient norm", "Tokens per second",
        "Estimate and actual", "Memory at the peak", "Answers to validation prompts", "Checkpoints", "Settings as used",
        "The job has successfully completed", "Download the adapter", "Download the result file",
    ]:
        assert words in page, words
    assert "n_epochs" in page and "<details>" in page
    assert page.count("<h1>") == 1
    for other in [f"/ui/fine-tunes/{trained.id}/points", f"/ui/fine-tunes/{trained.id}/events"]:
        assert f'href="{other}"' in page
        assert acme.get(other).status_code == 200


def test_curves_are_the_figures_of_the_events(acme, tenants, trained):
    curves = acme.get(f"/ui/fine-tunes/{trained.id}/curves?smoothing=0.5").json()
    lines = {line["name"]: line for chart in curves["charts"] for line in chart["lines"]}
    with tenants.client("acme") as client:
        events = client.fine_tuning.jobs.list_events(trained.id, limit=100)
        told = sorted((event.data["step"], event.data["train_loss"]) for event in events if event.type == "metrics")
    loss = lines["train_loss"]
    assert list(zip(loss["step"], loss["value"])) == told
    assert loss["smooth"][0] == pytest.approx(loss["value"][0])
    assert len(loss["smooth"]) == len(loss["value"])
    assert lines["learning_rate"]["smooth"] == []
    assert curves["epochs"] == 2 and curves["total_steps"] == told[-1][0]
    assert curves["checkpoints"]


def test_adapter_and_result_file_are_downloaded(acme, trained):
    adapter = acme.get(f"/ui/fine-tunes/{trained.id}/adapter")
    assert adapter.status_code == 200 and b"adapter_config.json" in adapter.content
    result = acme.get(f"/ui/fine-tunes/{trained.id}/result")
    assert result.status_code == 200 and result.text.startswith("step,")


def test_texts_of_users_stay_texts(acme, trained):
    page = acme.get(f"/ui/fine-tunes/{trained.id}").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page, "the names are shown"
    assert "<bdi>" in page, "a name that runs from right to left turns nothing else around"


def test_others_see_nothing_of_it(rival, trained):
    assert trained.id not in rival.get("/ui/fine-tunes").text
    for end in ["", "/curves", "/stream", "/points", "/events", "/adapter", "/result"]:
        assert rival.get(f"/ui/fine-tunes/{trained.id}{end}").status_code == 404, end
    for action in ["pause", "resume", "cancel"]:
        assert rival.post(f"/ui/fine-tunes/{trained.id}/{action}").status_code == 404, action
    compared = rival.get(f"/ui/fine-tunes/compare?job={trained.id}&job={trained.id}")
    assert compared.status_code == 404


def test_what_a_job_refuses_is_said_in_words(acme, trained):
    answer = acme.post(f"/ui/fine-tunes/{trained.id}/pause")
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/html")
    assert "succeeded" in answer.text


def test_jobs_are_compared_by_what_differs(acme, tenants, tickets, trained):
    with tenants.client("acme") as client:
        training = upload(client, tickets[:12])
        other = create_job(client, training, {"n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "rank": 4})
        wait_for_end(client, other.id)
    page = acme.get(f"/ui/fine-tunes/compare?job={trained.id}&job={other.id}").text
    settings = page.split("Settings that differ")[-1]
    for name in ["n_epochs", "rank", "learning_rate", "training_file"]:
        assert f">{name}<" in settings, name
    assert ">batch_size<" not in settings
    assert acme.get("/ui/fine-tunes/compare?" + "&".join(f"job=ftjob-{n}" for n in range(9))).status_code == 400


def test_figures_of_classes_are_drawn_shown_and_compared(acme, tenants, trained):
    with tenants.client("acme") as client, tenants.http("acme") as http:
        job = create(http, client, compute_classification_metrics=True, classification_positive_class=" weather")
        done = finish(http, job)
        assert done["status"] == "succeeded", done["events"][-1]
        rows = table(client, done)
    told = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        for name in rows[0] if name.startswith("classification/")
    }  # fmt: skip
    assert len(told["classification/auroc"]) == 2, "one at the end of each epoch"
    charts = {chart["id"]: chart for chart in acme.get(f"/ui/fine-tunes/{job['id']}/curves").json()["charts"]}
    lines = {line["name"]: line for line in charts["classes"]["lines"]}
    assert set(lines) == set(told)
    for name, points in told.items():
        assert lines[name]["step"] == [step for step, _ in points]
        assert lines[name]["value"] == pytest.approx([value for _, value in points], abs=1e-4), name
        assert lines[name]["smooth"] == []
    page = acme.get(f"/ui/fine-tunes/{job['id']}").text
    assert 'data-chart="classes"' in page
    shown = page.split("Validation prompts sorted into classes")[1].split("</section>")[0]
    facts = dict(re.findall(r"<dt>([^<]+)</dt>\s*<dd>([^<]+)</dd>", shown))
    assert set(facts) == {"Accuracy", "Precision", "Recall", "AUROC", "AUPRC", "F1.0"}
    for label, value in facts.items():
        expected = told["classification/" + label.lower()][-1][1]
        assert float(value) == pytest.approx(expected, abs=1e-3), label
    compared = acme.get(f"/ui/fine-tunes/compare?job={job['id']}&job={trained.id}").text
    classes = compared.split("Classification of the validation files")[1].split("</table>")[0]
    assert ">AUROC<" in classes and facts["AUROC"] in classes
    other = acme.get(f"/ui/fine-tunes/{trained.id}").text
    assert "sorted into classes" not in other and 'data-chart="classes"' not in other


def test_a_failed_job_shows_why(acme, tenants):
    with tenants.client("acme") as client:
        broken = client.files.create(file=("broken.jsonl", json.dumps({"messages": HOSTILE}).encode()), purpose="fine-tune")
        job = create_job(client, broken.id)
        job = wait_for_end(client, job.id)
        assert job.status == "failed"
    page = acme.get(f"/ui/fine-tunes/{job.id}").text
    assert html.escape(job.error.message, quote=False)[:40] in page.replace("&quot;", '"')
    assert "<script>alert" not in page


def frames(response):
    """The server-sent events of a response: name, data, id."""
    name, data, number = None, None, None
    for line in response.iter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data = line[5:].strip()
        elif line.startswith("id:"):
            number = int(line[3:])
        elif not line and name:
            yield name, json.loads(data), number
            name, data, number = None, None, None


def test_the_stream_tells_a_job_to_its_end_and_resumes(tenants, acme, tickets):
    with tenants.client("acme") as client:
        job = create_job(client, upload(client, tickets[:24]))
        steps, changes, numbers = [], [], []
        with acme.stream("GET", f"/ui/fine-tunes/{job.id}/stream", headers={"Accept": "text/event-stream"}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-accel-buffering"] == "no"
            for name, data, number in frames(response):
                numbers += [number] if number else []
                if name == "points":
                    steps += [point["data"]["step"] for point in data]
                elif name == "changed":
                    changes.append(data)
                elif name == "end":
                    assert data["why"] == "ended"
                    break
        told = [event.data["step"] for event in client.fine_tuning.jobs.list_events(job.id, limit=100) if event.type == "metrics"]
    assert sorted(set(steps)) == sorted(told)
    assert changes[-1]["status"] == "succeeded"
    assert numbers == sorted(numbers)
    # Whoever comes back after the first half is told the second one.
    half = numbers[0]
    with acme.stream("GET", f"/ui/fine-tunes/{job.id}/stream", headers={"Last-Event-ID": str(half)}) as response:
        again = [point["seq"] for name, data, _ in frames(response) if name == "points" for point in data]
    assert all(seq > half for seq in again)


def test_a_look_tells_what_has_happened_since_and_holds_no_connection(tenants, acme, tickets, trained):
    def look(job, after):
        answer = acme.get(f"/ui/fine-tunes/{job}/stream?after={after}&hold=no", headers={"Accept": "text/event-stream"})
        assert answer.status_code == 200
        return list(frames(answer))

    whole = look(trained.id, 0)
    assert [name for name, _, _ in whole][-1] == "end"
    assert [name for name, _, _ in look(trained.id, whole[-1][2])] == ["end"], "nothing is told twice"
    with tenants.client("acme") as client:
        job = create_job(client, upload(client, tickets), {"n_epochs": 10, "batch_size": 1, "learning_rate": 1e-4}).id
        steps, seen = [], 0

        def moved():
            nonlocal seen
            for name, data, number in look(job, seen):
                assert name != "end"
                seen = number or seen
                steps.extend(point["data"]["step"] for point in data if name == "points")
            return len(steps) >= 4

        try:
            # The job runs on meanwhile: a look that waited for its end would never come back.
            wait_for(moved, "four steps", every=0.5)
        finally:
            client.fine_tuning.jobs.cancel(job)
        assert wait_for_end(client, job).status == "cancelled"
    assert steps == sorted(set(steps)), "each step is told once"
    name, data, _ = look(job, seen)[-1]
    assert (name, data) == ("end", {"why": "ended"})


def test_pause_and_resume_by_forms(tenants, acme, tickets):
    with tenants.client("acme") as client:
        job = create_job(client, upload(client, tickets), {"n_epochs": 10, "batch_size": 1, "learning_rate": 1e-4})
        path = f"/ui/fine-tunes/{job.id}"
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", "the job to run")
        page = acme.get(path).text
        assert f'action="{path}/pause"' in page and f'action="{path}/cancel"' in page
        answer = acme.post(path + "/pause")
        assert (answer.status_code, answer.headers["location"]) == (303, path)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "paused", "the pause")
        assert f'action="{path}/resume"' in acme.get(path).text
        assert acme.post(path + "/resume").status_code == 303
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", "the job to go on")
        assert acme.post(path + "/cancel").status_code == 303
        assert wait_for_end(client, job.id).status == "cancelled"
        assert "/cancel" not in acme.get(path).text


def test_a_job_of_the_older_resource_is_shown_too(tenants, acme, tickets):
    with tenants.client("acme") as client, tenants.http("acme") as plain:
        file = upload(client, as_prompts(tickets[:12]))
        job = plain.post("/v1/fine-tunes", json={"training_file": file, "model": "demo", "n_epochs": 1}).json()
        page = acme.get("/ui/fine-tunes").text
        assert job["id"] in page
        shown = acme.get(f"/ui/fine-tunes/{job['id']}").text
        assert f'/ui/fine-tunes/{job["id"]}/pause' not in shown, "the resource cannot be paused"
        wait_for(lambda: plain.get(f"/v1/fine-tunes/{job['id']}").json()["status"] == "succeeded", "its end")


def test_pages_of_the_list_follow_each_other(acme, trained):
    seen, path = [], "/ui/fine-tunes?limit=1"
    while True:
        page = acme.get(path).text
        seen += re.findall(r'name="job" value="([^"]+)"', page)
        older = re.search(r'href="(/ui/fine-tunes\?after=[^"]+)"', page)
        if not older:
            break
        path = html.unescape(older[1]) + "&limit=1"
    assert trained.id in seen and len(seen) == len(set(seen))


def test_the_page_is_not_in_the_description_of_the_api(tenants):
    paths = httpx.get(tenants.url + "/openapi.json").json()["paths"]
    assert not [path for path in paths if path.startswith("/ui")]
