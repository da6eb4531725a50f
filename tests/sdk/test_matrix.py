"""Every route by every kind of caller: without a key, with a wrong, a revoked, another organisation's, the owner's and an
admin's key. What belongs to `acme` must look to `rival` as if it were not there, to the last word of the answer.

The routes come from the served document: one without a row here fails the test.
"""

import json
from dataclasses import dataclass, field

import attunelib
import httpx
import pytest
from conftest import QUICK, as_prompts, create_job, jsonl, sdk, upload, wait_for, wait_for_end

pytestmark = pytest.mark.timeout(240)

# Stands in every name and content that acme can choose.
SECRET = "acmesecret"
OPEN, OTHER_LISTS = 200, 200


@dataclass(frozen=True)
class Row:
    """A request about acme's things; `{file}` and the like in path and body are replaced by their ids.

    `right`, `other` and `admin` are the statuses that the owner, another organisation and an admin (of a third one) get;
    `shows` is what the owner's answer must hold, lest the row prove nothing.
    """

    path: str
    body: dict | None = None
    form: bool = False
    right: int = 200
    other: int = 404
    admin: int | None = None
    shows: str | None = None
    is_open: bool = False

    def request(self, method, names):
        arguments = {"method": method, "url": fill(self.path, names)}
        if self.form:
            line = b'{"prompt": "a", "completion": " b"}\n'
            return {**arguments, "data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", line)}}
        return {**arguments, "json": fill(self.body, names)} if self.body is not None else arguments


def fill(part, names):
    """`part` with `{name}` replaced, in texts however deep."""
    if isinstance(part, str):
        for name, value in names.items():
            part = part.replace("{" + name + "}", value)
        return part
    if isinstance(part, dict):
        return {key: fill(value, names) for key, value in part.items()}
    return [fill(value, names) for value in part] if isinstance(part, list) else part


UPLOAD = {"filename": "a.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "text/jsonl"}
BATCH = {"input_file_id": "{batch_file}", "endpoint": "/v1/completions", "completion_window": "24h"}
HELLO = [{"role": "user", "content": "Hello"}]
ELSEWHERE = {"project_ids": ["elsewhere"]}
COMPLETION = "/v1/chat/completions/{completion}"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
JOBS, JOB, FINE_TUNES = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job}", "/v1/fine_tunes"
RESPONSES, CONVERSATIONS = "/v1/responses", "/v1/conversations"

LABEL = {
    "type": "label_model",
    "name": "label",
    "model": "{model}",
    "input": HELLO,
    "labels": ["a"],
    "passing_labels": ["a"],
}
EVAL = {"data_source_config": {"type": "custom", "item_schema": {"type": "object"}}}
CHECK = {"type": "string_check", "name": SECRET, "input": "{{item.x}}", "reference": "x", "operation": "eq"}
ITEMS = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"x": SECRET}}]}}

# By the method and path of the document.
ROWS = {
    "GET /health": Row("/health", is_open=True),
    "GET /ready": Row("/ready", is_open=True),
    "GET /metrics": Row("/metrics", is_open=True),
    "POST /v1/completions": Row(
        "/v1/completions", {"model": "{model}", "prompt": "On", "max_tokens": 2}, shows="model"
    ),
    "POST /v1/chat/completions": Row(
        "/v1/chat/completions", {"model": "{model}", "messages": HELLO, "max_tokens": 2}, shows="model"
    ),
    "GET /v1/chat/completions": Row("/v1/chat/completions", other=OTHER_LISTS, shows="completion"),
    "GET /v1/chat/completions/{completion_id}": Row(COMPLETION, shows="completion"),
    "POST /v1/chat/completions/{completion_id}": Row(COMPLETION, {"metadata": {}}, shows="completion"),
    "DELETE /v1/chat/completions/{completion_id}": Row(
        "/v1/chat/completions/{spare_completion}", shows="spare_completion"
    ),
    "GET /v1/chat/completions/{completion_id}/messages": Row(COMPLETION + "/messages", shows="completion"),
    "POST /v1/responses": Row(RESPONSES, {"model": "{model}", "input": "x", "max_output_tokens": 2}, shows="model"),
    "POST /v1/responses/input_tokens": Row(RESPONSES + "/input_tokens", {"model": "{model}", "input": "x"}),
    "POST /v1/responses/compact": Row(
        RESPONSES + "/compact", {"model": "{model}", "input": "x", "max_output_tokens": 30}
    ),
    "GET /v1/responses/{response_id}": Row(RESPONSES + "/{response}", shows="response"),
    # Somebody waited for it.
    "POST /v1/responses/{response_id}/cancel": Row(RESPONSES + "/{response}/cancel", right=400),
    "GET /v1/responses/{response_id}/input_items": Row(RESPONSES + "/{response}/input_items", shows="item"),
    "DELETE /v1/responses/{response_id}": Row(RESPONSES + "/{spare_response}", shows="spare_response"),
    "POST /v1/conversations": Row(CONVERSATIONS, {"items": [{"id": "{conversation_item}"}]}),
    "GET /v1/conversations/{conversation_id}": Row(CONVERSATIONS + "/{conversation}", shows="conversation"),
    "POST /v1/conversations/{conversation_id}": Row(
        CONVERSATIONS + "/{conversation}", {"metadata": {}}, shows="conversation"
    ),
    "DELETE /v1/conversations/{conversation_id}": Row(
        CONVERSATIONS + "/{spare_conversation}", shows="spare_conversation"
    ),
    "GET /v1/conversations/{conversation_id}/items": Row(
        CONVERSATIONS + "/{conversation}/items", shows="conversation_item"
    ),
    "POST /v1/conversations/{conversation_id}/items": Row(
        CONVERSATIONS + "/{conversation}/items", {"items": [{"role": "user", "content": "x"}]}
    ),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": Row(
        CONVERSATIONS + "/{conversation}/items/{conversation_item}", shows="conversation_item"
    ),
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": Row(
        CONVERSATIONS + "/{conversation}/items/{spare_item}", shows="conversation"
    ),
    "POST /v1/embeddings": Row("/v1/embeddings", {"model": "{model}", "input": "x"}, shows="model"),
    "POST /v1/score": Row("/v1/score", {"model": "{model}", "text_1": "x", "text_2": "y"}, shows="model"),
    "POST /v1/rerank": Row("/v1/rerank", {"model": "{model}", "query": "x", "documents": ["y"]}, shows="model"),
    # The model has no head that classifies.
    "POST /v1/classify": Row("/v1/classify", {"model": "{model}", "input": "x"}, right=400),
    "POST /v1/tokenize": Row("/v1/tokenize", {"model": "{model}", "prompt": "x"}),
    "POST /v1/detokenize": Row("/v1/detokenize", {"model": "{model}", "tokens": [5]}),
    "GET /v1/models": Row("/v1/models", other=OTHER_LISTS, shows="model"),
    "GET /v1/models/{model}": Row("/v1/models/{model}", shows="model"),
    "DELETE /v1/models/{model}": Row("/v1/models/{spare_model}", shows="spare_model"),
    "GET /v1/models/{model}/adapter": Row("/v1/models/{model}/adapter"),
    "GET /v1/aliases": Row("/v1/aliases", other=OTHER_LISTS, shows="alias"),
    "GET /v1/aliases/{alias}": Row("/v1/aliases/{alias}", shows="alias"),
    # Anybody may give the name to a model of their own.
    "PUT /v1/aliases/{alias}": Row("/v1/aliases/{alias}", {"model": "{model}"}, shows="model"),
    "DELETE /v1/aliases/{alias}": Row("/v1/aliases/{spare_alias}", shows="spare_alias"),
    # For admins only, whose organisation has no such file and no such adapter.
    "GET /v1/lora_adapters": Row("/v1/lora_adapters", right=403, other=403, admin=200),
    "POST /v1/load_lora_adapter": Row(
        "/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "{file}"}, right=403, other=403, admin=404
    ),
    "POST /v1/unload_lora_adapter": Row(
        "/v1/unload_lora_adapter", {"lora_name": "{model}"}, right=403, other=403, admin=404
    ),
    "GET /v1/engines": Row("/v1/engines", other=OTHER_LISTS, shows="model"),
    "GET /v1/engines/{engine}": Row("/v1/engines/{model}", shows="model"),
    "POST /v1/engines/{engine}/{request}": Row(
        "/v1/engines/{model}/completions", {"prompt": "On", "max_tokens": 2}, shows="model"
    ),
    "GET /v1/files": Row("/v1/files", other=OTHER_LISTS, shows="file"),
    "POST /v1/files": Row("/v1/files", form=True, other=OTHER_LISTS),
    "POST /v1/files/from_stored_completions": Row("/v1/files/from_stored_completions", {}, other=400),
    "GET /v1/files/{file_id}": Row("/v1/files/{file}", shows="file"),
    "GET /v1/files/{file_id}/content": Row("/v1/files/{file}/content"),
    "DELETE /v1/files/{file_id}": Row("/v1/files/{spare_file}", shows="spare_file"),
    "GET /v1/fine_tunes": Row(FINE_TUNES, other=OTHER_LISTS, shows="fine_tune"),
    "POST /v1/fine_tunes": Row(FINE_TUNES, {"model": "demo", "training_file": "{file}"}, other=400, shows="file"),
    "GET /v1/fine_tunes/{fine_tune_id}": Row(FINE_TUNES + "/{fine_tune}", shows="fine_tune"),
    "POST /v1/fine_tunes/{fine_tune_id}/cancel": Row(FINE_TUNES + "/{fine_tune_to_cancel}/cancel"),
    "GET /v1/fine_tunes/{fine_tune_id}/events": Row(FINE_TUNES + "/{fine_tune}/events", shows="fine_tune"),
    "DELETE /v1/fine_tunes/{fine_tune_id}": Row(FINE_TUNES + "/{fine_tune}"),
    "GET /v1/fine_tuning/jobs": Row(JOBS, other=OTHER_LISTS, shows="job"),
    "POST /v1/fine_tuning/jobs": Row(JOBS, {"model": "demo", "training_file": "{file}"}, other=400, shows="file"),
    "POST /v1/fine_tuning/jobs/estimate": Row(
        JOBS + "/estimate", {"model": "demo", "training_file": "{file}"}, other=400, shows="file"
    ),
    "GET /v1/fine_tuning/jobs/{fine_tuning_job_id}": Row(JOB, shows="job"),
    "POST /v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel": Row(JOBS + "/{job_to_cancel}/cancel"),
    "POST /v1/fine_tuning/jobs/{fine_tuning_job_id}/pause": Row(JOBS + "/{job_to_pause}/pause"),
    "POST /v1/fine_tuning/jobs/{fine_tuning_job_id}/resume": Row(JOBS + "/{job_to_resume}/resume"),
    "GET /v1/fine_tuning/jobs/{fine_tuning_job_id}/events": Row(JOB + "/events", shows="model"),
    "GET /v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints": Row(JOB + "/checkpoints", shows="checkpoint"),
    "GET /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": Row(PERMISSIONS, shows="permission"),
    "POST /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": Row(
        PERMISSIONS, ELSEWHERE, shows="permission"
    ),
    "DELETE /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions/{permission_id}": Row(
        PERMISSIONS + "/{permission}", shows="permission"
    ),
    "POST /v1/fine_tuning/alpha/graders/run": Row(
        "/v1/fine_tuning/alpha/graders/run", {"grader": LABEL, "model_sample": "x"}, other=400, shows="model"
    ),
    "POST /v1/fine_tuning/alpha/graders/validate": Row(
        "/v1/fine_tuning/alpha/graders/validate", {"grader": LABEL}, other=400, shows="model"
    ),
    "GET /v1/evals": Row("/v1/evals", other=OTHER_LISTS, shows="eval"),
    "POST /v1/evals": Row(
        "/v1/evals", {**EVAL, "testing_criteria": [LABEL]}, right=201, other=400, shows="model"
    ),
    "GET /v1/evals/{eval_id}": Row("/v1/evals/{eval}", shows="eval"),
    "POST /v1/evals/{eval_id}": Row("/v1/evals/{eval}", {"name": "x"}, shows="eval"),
    "DELETE /v1/evals/{eval_id}": Row("/v1/evals/{spare_eval}", shows="spare_eval"),
    "GET /v1/evals/{eval_id}/comparison": Row("/v1/evals/{eval}/comparison?first={run}&second={run}", shows="run"),
    "GET /v1/evals/{eval_id}/runs": Row("/v1/evals/{eval}/runs", shows="run"),
    "POST /v1/evals/{eval_id}/runs": Row("/v1/evals/{eval}/runs", {"data_source": ITEMS}, right=201, shows="eval"),
    "GET /v1/evals/{eval_id}/runs/{run_id}": Row("/v1/evals/{eval}/runs/{run}", shows="run"),
    "POST /v1/evals/{eval_id}/runs/{run_id}": Row("/v1/evals/{eval}/runs/{run}", shows="run"),
    "DELETE /v1/evals/{eval_id}/runs/{run_id}": Row("/v1/evals/{eval}/runs/{spare_run}", shows="spare_run"),
    "GET /v1/evals/{eval_id}/runs/{run_id}/output_items": Row(
        "/v1/evals/{eval}/runs/{run}/output_items", shows="output_item"
    ),
    "GET /v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}": Row(
        "/v1/evals/{eval}/runs/{run}/output_items/{output_item}", shows="output_item"
    ),
    "POST /v1/uploads": Row("/v1/uploads", UPLOAD, other=OTHER_LISTS),
    "POST /v1/uploads/{upload_id}/parts": Row("/v1/uploads/{upload}/parts", form=True, right=400),
    "POST /v1/uploads/{upload_id}/complete": Row("/v1/uploads/{upload}/complete", {"part_ids": ["{part}"]}),
    "POST /v1/uploads/{upload_id}/cancel": Row("/v1/uploads/{spare_upload}/cancel", shows="spare_upload"),
    "GET /v1/batches": Row("/v1/batches", other=OTHER_LISTS, shows="batch"),
    "POST /v1/batches": Row("/v1/batches", BATCH, other=400, shows="batch_file"),
    "GET /v1/batches/{batch_id}": Row("/v1/batches/{batch}", shows="batch"),
    # It has ended.
    "POST /v1/batches/{batch_id}/cancel": Row("/v1/batches/{batch}/cancel", right=400),
    "GET /v1/usage": Row("/v1/usage", other=OTHER_LISTS),
}

# Ways to another's things beside the plain one.
SIDE_DOORS = {
    "POST, a model to go on with": Row(JOBS, {"model": "{model}", "training_file": "{file}"}, other=404),
    "POST, a file to measure on": Row(
        JOBS, {"model": "demo", "training_file": "{own_file}", "validation_file": "{file}"}, other=400
    ),
    "POST, a file of the older resource": Row(
        FINE_TUNES, {"model": "demo", "training_file": "{own_file}", "validation_file": "{file}"}, other=400
    ),
    "POST, an estimate of a model to go on with": Row(
        JOBS + "/estimate", {"model": "{model}", "training_file": "{own_file}"}, other=404, shows="model"
    ),
    "POST, an estimate with a file to measure on": Row(
        JOBS + "/estimate", {"model": "demo", "training_file": "{own_file}", "validation_file": "{file}"}, other=400,
        shows="file",
    ),
    "POST, an alias": Row("/v1/embeddings", {"model": "{alias}", "input": "x"}, shows="alias"),
    "POST, an eval to run at the end": Row(
        JOBS, {"model": "demo", "training_file": "{own_file}", "eval": {"id": "{eval}", "data_source": ITEMS}}, other=400,
    ),
    "POST, a checkpoint": Row("/v1/embeddings", {"model": "{checkpoint}", "input": "x"}, shows="checkpoint"),
    "GET, a checkpoint": Row("/v1/models/{checkpoint}", shows="checkpoint"),
    "GET, a checkpoint's adapter": Row("/v1/models/{checkpoint}/adapter"),
    "DELETE, a permission of a checkpoint of one's own": Row(
        "/v1/fine_tuning/checkpoints/{model}/permissions/{permission}", right=404
    ),
    "POST, a response to go on from": Row(
        RESPONSES, {"model": "demo", "input": "x", "previous_response_id": "{response}", "max_output_tokens": 2},
        other=400, shows="response",
    ),
    "POST, a conversation to go on from": Row(
        RESPONSES, {"model": "demo", "input": "x", "conversation": "{conversation}", "max_output_tokens": 2},
        shows="conversation",
    ),
    "POST, an item of a conversation": Row(
        RESPONSES, {"model": "demo", "input": [{"id": "{conversation_item}"}], "max_output_tokens": 2}
    ),
    "GET, a page after an item of a conversation": Row(
        CONVERSATIONS + "/{conversation}/items?after={conversation_item}"
    ),
    "POST, an item of a response": Row(
        RESPONSES, {"model": "demo", "input": [{"id": "{item}"}], "max_output_tokens": 2}
    ),
    "GET, a page after an item": Row(RESPONSES + "/{response}/input_items?after={item}"),
    "GET, a page after a file": Row("/v1/files?after={file}", other=200),
    "GET, a page after a stored answer": Row("/v1/chat/completions?after={completion}", other=200),
    "GET, a page after a job": Row(JOBS + "?after={job}", other=200),
    "GET, jobs with a note": Row(JOBS + "?metadata[" + SECRET + "]=" + SECRET, other=200, shows="job"),
    "GET, a stream of events": Row(FINE_TUNES + "/{fine_tune}/events?stream=true", shows="fine_tune"),
    "GET, a job by the other resource": Row(FINE_TUNES + "/{job}", right=404),
    "POST, a stream": Row(
        "/v1/completions", {"model": "{model}", "prompt": "x", "max_tokens": 2, "stream": True}, shows="model"
    ),
    "GET, another's usage": Row("/v1/usage?organization=acme", right=200, other=403, admin=200),
    "GET, without the prefix": Row("/files/{file}", shows="file"),
}


@dataclass
class Acme:
    """Acme's things by the names that rows give them, and what stands where there is nothing."""

    names: dict = field(default_factory=dict)
    nothing: dict = field(default_factory=dict)

    def secrets(self):
        return {SECRET, *self.names.values()}


@pytest.fixture(scope="module")
def acme(tenants, tickets):
    """Two trained models, a finished and many waiting jobs, files: all of acme's, in the hands of one busy worker."""
    lines = [*tickets[:11], {"messages": [*tickets[11]["messages"][:1], {"role": "assistant", "content": SECRET}]}]
    things = {}
    with sdk(tenants.server, tenants.keys["acme"]) as client, tenants.http("acme") as http:
        things["file"] = upload(client, lines, f"{SECRET}.jsonl")
        things["spare_file"] = upload(client, lines, f"{SECRET}-2.jsonl")
        old = upload(client, as_prompts(lines), f"{SECRET}-3.jsonl")

        def fine_tune(**settings):
            body = {"model": "demo", "training_file": old, "suffix": SECRET, "batch_size": 4, **settings}
            answer = http.post(FINE_TUNES, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["id"]

        def job(**settings):
            notes = {"suffix": SECRET, "metadata": {SECRET: SECRET}}
            return create_job(client, things["file"], {**QUICK, "n_epochs": 1}, **notes, **settings)

        for name in ("model", "spare_model"):
            done = wait_for_end(client, job().id, within=120)
            assert done.status == "succeeded", done.error
            things[name], things["job_of_" + name] = done.fine_tuned_model, done.id
        for name in ("upload", "spare_upload"):
            things[name] = client.uploads.create(**{**UPLOAD, "filename": f"{SECRET}.jsonl"}).id
        things["part"] = client.uploads.parts.create(things["upload"], data=b"{}").id
        batch = {"custom_id": SECRET, "method": "POST", "url": "/v1/completions", "body": {"model": "demo", "prompt": "x"}}
        file = (f"{SECRET}.jsonl", jsonl([batch]))
        things["batch_file"] = client.files.create(file=file, purpose="batch").id
        things["batch"] = client.batches.create(**fill(BATCH, things), metadata={SECRET: SECRET}).id
        wait_for(lambda: client.batches.retrieve(things["batch"]).status == "completed", "the end of the batch")
        things["job"] = things.pop("job_of_model")
        things["checkpoint"] = (
            client.fine_tuning.jobs.checkpoints.list(things["job"]).data[0].fine_tuned_model_checkpoint
        )
        granted = http.post(f"/v1/fine_tuning/checkpoints/{things['checkpoint']}/permissions", json=ELSEWHERE).json()
        things["permission"] = granted["data"][0]["id"]
        for name in ("completion", "spare_completion"):
            said = [{"role": "user", "content": SECRET}]
            stored = client.chat.completions.create(model="demo", messages=said, max_tokens=60, temperature=0, store=True)
            assert stored.choices[0].finish_reason == "stop"
            things[name] = stored.id
        for name in ("eval", "spare_eval"):
            answer = http.post("/v1/evals", json={**EVAL, "name": SECRET, "testing_criteria": [CHECK]})
            assert answer.status_code == 201, answer.text
            things[name] = answer.json()["id"]
        runs = f"/v1/evals/{things['eval']}/runs"
        for name in ("run", "spare_run"):
            things[name] = http.post(runs, json={"name": SECRET, "data_source": ITEMS}).json()["id"]
            wait_for(lambda: http.get(f"{runs}/{things[name]}").json()["status"] == "completed", "the end of the run")
        things["output_item"] = http.get(f"{runs}/{things['run']}/output_items").json()["data"][0]["id"]
        for name in ("alias", "spare_alias"):
            things[name] = f"{SECRET}-{name}-1234"
            assert http.put(f"/v1/aliases/{things[name]}", json={"model": "demo"}).status_code == 200
        things["fine_tune"] = fine_tune(n_epochs=1)

        for name in ("response", "spare_response"):
            body = {"model": "demo", "input": SECRET, "max_output_tokens": 2, "metadata": {SECRET: SECRET}}
            things[name] = http.post(RESPONSES, json=body).json()["id"]
        for name in ("conversation", "spare_conversation"):
            items = [{"role": "user", "content": SECRET}] * 2
            things[name] = http.post(CONVERSATIONS, json={"items": items, "metadata": {SECRET: SECRET}}).json()["id"]
        page = http.get(f"{CONVERSATIONS}/{things['conversation']}/items").json()
        things["conversation_item"], things["spare_item"] = page["first_id"], page["last_id"]
        things["item"] = http.get(f"{RESPONSES}/{things['response']}/input_items").json()["first_id"]

        def has_ended():
            return http.get(f"{FINE_TUNES}/{things['fine_tune']}").json()["status"] == "succeeded"

        wait_for(has_ended, "the end of the fine-tune")
        # From here on the worker is busy, and what comes after waits.
        busy = create_job(client, upload(client, [*tickets, *tickets]), {**QUICK, "n_epochs": 50})
        wait_for(lambda: client.fine_tuning.jobs.retrieve(busy.id).status == "running", "a busy worker")
        things["fine_tune_to_cancel"] = fine_tune()
        for name in ("job_to_cancel", "job_to_pause", "job_to_resume"):
            things[name] = job().id
        client.fine_tuning.jobs.pause(things["job_to_resume"])
        nothing = {name: nobody(value) for name, value in things.items()}
        yield Acme(things, nothing)
        for page in (JOBS, FINE_TUNES):
            for left in http.get(page).json()["data"]:
                http.post(f"{page}/{left['id']}/cancel")


def nobody(name):
    """A name of the same form that nobody has."""
    if ":" in name:
        return name.rsplit(":", 1)[0] + ":" + "0" * 8
    return name[: -len("0000")] + "0000"


@pytest.fixture(scope="module")
def own_files(tenants, tickets):
    """A training file for each organisation, so that only another's things can be at fault."""
    files = {}
    for name in ("acme", "rival", "admin"):
        with sdk(tenants.server, tenants.keys[name]) as client:
            files[name] = upload(client, tickets[:12])
    return files


def test_every_route_of_the_document_has_its_row(tenants):
    document = httpx.get(tenants.url + "/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes == set(ROWS)


@pytest.mark.parametrize("route", [*ROWS, *SIDE_DOORS])
def test_a_route_answers_each_caller_with_what_is_its_own(tenants, acme, own_files, route):
    row = ROWS.get(route) or SIDE_DOORS[route]
    method = route.split()[0].strip(",")
    wrong = "sk-wrong-" + "0" * 40

    def ask(key, caller="acme", names=None):
        names = {"own_file": own_files[caller], **(acme.names if names is None else names)}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.request(**at(tenants.url, row.request(method, names)), headers=headers, timeout=60)

    # Without a key that holds there is nothing to see, not even whether there is anything.
    for key in (None, wrong, tenants.keys["revoked"]):
        answer = ask(key)
        if row.is_open:
            assert answer.status_code == OPEN
        else:
            assert answer.status_code == 401, f"with the key {key}: {answer.text}"
            assert answer.json()["error"]["code"] == (key and "invalid_api_key")
            assert key is None or key not in answer.text
        assert_silent(answer, acme, row, method)
    revoked, guessed = ask(tenants.keys["revoked"]), ask(wrong)
    assert masked(revoked) == masked(guessed) or row.is_open, "a revoked key must look as if it had never been one"

    # The other organisations: as if it were not there.
    for caller, status in (("rival", row.other), ("admin", row.other if row.admin is None else row.admin)):
        status = OPEN if row.is_open else status
        answer = ask(tenants.keys[caller], caller)
        assert answer.status_code == status, f"{caller}: {answer.text}"
        if not (caller == "admin" and "organization=acme" in row.path):
            assert_silent(answer, acme, row, method)
        if answer.status_code >= 400:
            missing = ask(tenants.keys[caller], caller, acme.nothing)
            assert missing.status_code == answer.status_code
            assert without(missing, acme.nothing) == without(answer, acme.names), "another's thing must look like none"

    # The owner comes last: some rows delete.
    answer = ask(tenants.keys["acme"])
    assert answer.status_code == (OPEN if row.is_open else row.right), answer.text
    if row.shows:
        assert acme.names[row.shows] in answer.text


def at(url, request):
    return {**request, "url": url + request["url"]}


def assert_silent(answer, acme, row, method):
    """Nothing of acme's is in the answer but what the request itself named."""
    asked = json.dumps(row.request(method, acme.names), default=str)
    said = answer.text + str(answer.headers)
    # The name of a model holds the secret as well; a request that named it may be told it again.
    for name in acme.names.values():
        if name in asked:
            said = said.replace(name, "")
    leaked = [secret for secret in acme.secrets() if secret in said and (secret != SECRET or SECRET not in row.path)]
    assert not leaked, f"{leaked} in {answer.text}"


def without(answer, names):
    """The error with the names of things blanked."""
    text = answer.text
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "…")
    return text


def masked(answer):
    """A 401 without the masked key that it repeats."""
    if answer.status_code != 401:
        return answer.status_code
    error = answer.json()["error"]
    return error["type"], error["code"], error["param"], error["message"].split(":")[0]


def test_the_owner_keeps_all_that_others_tried_to_take(tenants, acme):
    """After everyone's attempts the model, the file and the job are as they were."""
    owner = attunelib.Client(tenants.url, tenants.keys["acme"])
    assert owner.get("/v1/models/" + acme.names["model"])["id"] == acme.names["model"]
    assert owner.get("/v1/files/" + acme.names["file"])["filename"] == f"{SECRET}.jsonl"
    assert owner.get("/v1/fine_tuning/jobs/" + acme.names["job"])["status"] == "succeeded"
