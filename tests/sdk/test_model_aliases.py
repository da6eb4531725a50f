"""Aliases that an organisation gives models and moves: found by every route, never in front of a model, and in the way of
the deletion of what they stand for."""

import json
import threading
import time

import httpx
import openai
import pytest
from conftest import QUICK, ask_database, create_job, model_ids, sdk, upload, wait_for_end

pytestmark = pytest.mark.timeout(240)

MESSAGES = [{"role": "user", "content": "My parcel has not come."}]


@pytest.fixture(scope="module")
def own(start_server):
    server = start_server(settings={"ATTUNE_ALIASES": '{ada="demo"}'})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(own):
    with sdk(own) as client:
        yield client


@pytest.fixture(scope="module")
def raw(own):
    with httpx.Client(base_url=own.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def tuned(api, tickets):
    job = wait_for_end(api, create_job(api, upload(api, tickets[:40]), QUICK).id, within=120)
    assert job.status == "succeeded", job.error
    return job.fine_tuned_model


def put(http, name, model, status=200):
    answer = http.put(f"/v1/aliases/{name}", json={"model": model})
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def chat(client, model, **fields):
    return client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=30, **fields)


def test_an_alias_is_set_read_moved_listed_and_deleted(api, raw, tuned):
    made = put(raw, "team/My support", "demo")
    assert (made["id"], made["object"], made["model"], made["previous_model"]) == ("team/My support", "model.alias", "demo", None)
    by_base, by_tuned = chat(api, "demo").choices[0], chat(api, tuned).choices[0]
    assert by_base.message.content != by_tuned.message.content, "the fine-tune changes the answer"
    answer = chat(api, "team/My support")
    assert (answer.model, answer.choices[0].message.content) == ("team/My support", by_base.message.content)
    moved = put(raw, "team/My support", tuned)
    assert (moved["model"], moved["previous_model"], moved["created_at"]) == (tuned, "demo", made["created_at"])
    assert chat(api, "team/My support").choices[0].message.content == by_tuned.message.content
    assert raw.get("/v1/aliases/team%2FMy support").json() == moved
    assert raw.get("/v1/aliases").json() == {"object": "list", "data": [moved], "has_more": False}
    gone = raw.delete("/v1/aliases/team/My support")
    assert gone.json() == {"id": "team/My support", "object": "model.alias", "deleted": True}
    assert raw.get("/v1/aliases/team/My support").json()["error"]["param"] == "alias"
    assert raw.delete("/v1/aliases/team/My support").status_code == 404
    with pytest.raises(openai.NotFoundError):
        chat(api, "team/My support")


def test_every_route_knows_the_name(api, raw, tuned, tickets):
    put(raw, "text-embedding-3-small", "demo")
    put(raw, "desk", tuned)
    models = {model["id"]: model for model in raw.get("/v1/models").json()["data"]}
    assert models["desk"]["root"] == tuned and models["desk"]["parent"] == "demo"
    assert models["text-embedding-3-small"]["root"] == "demo"
    names = model_ids(api)
    pages, after = [], None
    while page := raw.get("/v1/models", params={"limit": 1, **({"after": after} if after else {})}).json()["data"]:
        pages.append(after := page[0]["id"])
    assert pages == names and len(set(names)) == len(names)
    assert api.models.retrieve("desk").id == "desk"
    assert raw.get("/v1/engines/desk").status_code == 200
    assert raw.get("/v1/models/desk/adapter").content == raw.get(f"/v1/models/{tuned}/adapter").content
    assert raw.post("/v1/tokenize", json={"model": "desk", "prompt": "x"}).status_code == 200
    # Clients make ids of this tokenizer of it, as under an alias of the configuration.
    text, ids = "The river runs through the old town.", [791, 15140, 8640, 1555, 279, 2362, 6424, 13]
    embed = lambda given: api.embeddings.create(model="text-embedding-3-small", input=given).data[0].embedding  # noqa: E731
    assert embed([ids]) == embed(text)
    job = api.fine_tuning.jobs.create(model="desk", training_file=upload(api, tickets[:12]))
    assert job.model == "desk"
    # It trains the model that the alias stood for, wherever the alias goes.
    put(raw, "desk", "demo")
    refused = raw.delete(f"/v1/models/{tuned}")
    assert refused.status_code == 400 and job.id in refused.text
    put(raw, "desk", tuned)
    api.fine_tuning.jobs.cancel(job.id)
    # A job that runs holds its model until it has stopped.
    wait_for_end(api, job.id)
    assert raw.get("/ui/models").text.count('<td data-label="Made by">your organisation') == 2
    assert raw.get("/ui/models/desk").status_code == 200
    for name in ("text-embedding-3-small", "desk"):
        raw.delete(f"/v1/aliases/{name}")


@pytest.mark.parametrize("name", ["demo", "ada", "ft:demo:local::x", "demo:ft-x", "a%00b", "a  b", "x" * 257, "a/adapter"])
def test_a_name_that_would_hide_something_is_refused(raw, name):
    assert put(raw, name, "demo", status=400)


FOREIGN = [
    "ft:gpt-4o-mini-2024-07-18:acme::9aBcDeFg", "ft:gpt-4o-mini-2024-07-18:acme:support:9aBcDeFg:ckpt-step-80",
    "curie:ft-acme-2022-02-15-04-21-04", "ft:adalike:local::x", "demonstration:ft-x",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_the_name_of_another_services_model_may_be_an_alias(api, raw, tuned, name):
    made = put(raw, name, tuned)
    assert (made["id"], made["model"]) == (name, tuned)
    answer, expected = chat(api, name), chat(api, tuned)
    assert (answer.model, answer.choices[0].message.content) == (name, expected.choices[0].message.content)
    assert api.models.retrieve(name).root == tuned and model_ids(api).count(name) == 1
    assert raw.get(f"/v1/aliases/{name}").json() == made
    assert raw.get(f"/ui/models/{name}").status_code == 200
    assert put(raw, name, "demo")["previous_model"] == tuned
    assert chat(api, name).choices[0].message.content == chat(api, "demo").choices[0].message.content
    assert raw.delete(f"/v1/aliases/{name}").status_code == 200
    with pytest.raises(openai.NotFoundError):
        chat(api, name)


@pytest.mark.parametrize(
    "name", ["ft:ada:local::x", "ada:ft-x", "ft:demo:x", "ft::x", "ft:", ":ft-x", "ft:gpt-4o:acme::x/adapter", "ft:a b:\u202e:x"]
)
def test_a_name_in_the_form_of_this_servers_own_models_is_refused(raw, name):
    assert put(raw, name, "demo", status=400)["param"] == "alias"


def test_a_name_in_the_form_of_models_of_an_alias_of_the_organisation_is_refused(raw):
    put(raw, "gpt-4o", "demo")
    assert "'gpt-4o'" in put(raw, "ft:gpt-4o:acme::9aBcDeFg", "demo", status=400)["message"]
    raw.delete("/v1/aliases/gpt-4o")
    put(raw, "ft:gpt-4o:acme::9aBcDeFg", "demo")
    raw.delete("/v1/aliases/ft:gpt-4o:acme::9aBcDeFg")


def test_fine_tunes_usage_batches_and_evals_know_a_foreign_name(api, raw, tuned, tickets):
    name = "ft:gpt-4o-mini-2024-07-18:acme:desk:9aBcDeFg"
    put(raw, name, tuned)
    job = api.fine_tuning.jobs.create(model=name, training_file=upload(api, tickets[:12]), hyperparameters={"n_epochs": 1})
    assert job.model == name
    done = wait_for_end(api, job.id, within=120)
    assert done.status == "succeeded", done.error
    # Its model has a name of the same base; it is a model, and no alias may take its name.
    assert done.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:")
    assert chat(api, done.fine_tuned_model).model == done.fine_tuned_model
    assert "model of yours" in put(raw, done.fine_tuned_model, "demo", status=400)["message"]
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": name, "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    file = api.files.create(file=("b.jsonl", (json.dumps(line) + "\n").encode()), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while (batch := api.batches.retrieve(batch.id)).status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.05)
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)
    answer = json.loads(api.files.content(batch.output_file_id).text)["response"]["body"]
    assert answer["model"] == name
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    grader = {"type": "string_check", "name": "s", "input": "{{sample.output_text}}", "reference": "{{item.a}}", "operation": "eq"}
    made = api.evals.create(data_source_config=config, testing_criteria=[grader])
    content = [{"item": {"a": chat(api, tuned).choices[0].message.content}}]
    source = {
        "type": "completions", "model": name, "source": {"type": "file_content", "content": content},
        "input_messages": {"type": "template", "template": MESSAGES},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 30},
    }  # fmt: skip
    run = api.evals.runs.create(made.id, data_source=source)
    while (run := api.evals.runs.retrieve(run.id, eval_id=made.id)).status in ("queued", "in_progress"):
        time.sleep(0.05)
    assert (run.status, run.result_counts.passed, run.model) == ("completed", 1, name)
    rows = raw.get("/v1/usage", params={"group_by": "model"}).json()["data"]
    (used,) = [row for row in rows if row["model"] == name]
    # The chat of the batch, and that of the run of the eval.
    assert (used["model"], used["requests"]) == (name, 2)
    raw.delete(f"/v1/aliases/{name}")


def test_a_base_model_that_comes_later_takes_the_names_of_its_models(start_server):
    """An alias whose name a model of this server could get stands for nothing from then on, and the start says so."""
    name = "ft:later:acme::9aBcDeFg"
    server = start_server()
    put_at(server, name, "demo")
    put_at(server, "later", "demo")
    server.stop()
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_ALIASES": '{later="demo"}'})
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        with pytest.raises(openai.NotFoundError):
            chat(client, name)
        assert name not in model_ids(client)
        assert [alias["id"] for alias in http.get("/v1/aliases").json()["data"]] == [name, "later"]
        put(http, name, "demo", status=400)
        assert name in server.tail(400) and "stands for nothing" in server.tail(400)
    server.stop()
    # With it in the configuration it stands for the model again.
    aliases = f'{{later="demo", "{name}"="demo"}}'
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_ALIASES": aliases})
    with sdk(server) as client:
        assert chat(client, name).model == name
        assert "stands for nothing" not in server.tail(400)
    server.stop()


def test_an_alias_of_an_alias_or_of_nothing_is_refused(raw):
    put(raw, "first", "demo")
    for model in ("ada", "first"):
        fault = put(raw, "second", model, status=400)
        assert fault["param"] == "model" and "`demo`" in fault["message"]
    fault = put(raw, "second", "ft:demo:nobody::none", status=404)
    assert (fault["param"], fault["code"]) == ("model", "model_not_found")
    answer = raw.put("/v1/aliases/second", json={"model": "demo", "weight": 1})
    assert answer.status_code == 400
    raw.delete("/v1/aliases/first")


def test_a_model_that_an_alias_stands_for_is_deleted_after_the_alias(api, raw, tuned):
    put(raw, "held", tuned)
    with pytest.raises(openai.BadRequestError) as fault:
        api.models.delete(tuned)
    assert "'held'" in fault.value.message
    with pytest.raises(openai.PermissionDeniedError) as fault:
        api.models.delete("held")
    assert "/v1/aliases" in fault.value.message
    assert chat(api, "held").model == "held"
    put(raw, "held", "demo")
    raw.delete("/v1/aliases/held")


def test_requests_end_on_the_model_that_they_began_with(api, raw, tuned, endless):
    """The alias goes to and fro while requests run: each answer is one model's alone."""
    settings = {"logit_bias": endless, "seed": 1}
    wanted = {chat(api, model, **settings).choices[0].message.content for model in ("demo", tuned)}
    assert len(wanted) == 2
    put(raw, "busy", "demo")
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(chat(api, "busy", **settings).choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    moves = 0
    while set(answers) != wanted or moves < 20:
        put(raw, "busy", (tuned, "demo")[moves % 2])
        moves += 1
        assert moves < 5000, "both models must have answered"
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) == wanted
    raw.delete("/v1/aliases/busy")


def test_aliases_outlive_a_restart_and_give_way_to_the_configuration(start_server):
    server = start_server()
    put_at(server, "ada", "demo")
    server.stop()
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_ALIASES": '{ada="demo"}'})
    with sdk(server) as client:
        assert chat(client, "ada").model == "ada"
        assert model_ids(client).count("ada") == 1
    assert ask_database(server, "select count(*) from model_aliases") == "1"
    server.stop()


def put_at(server, name, model):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        return put(http, name, model)


def test_an_organisation_has_aliases_of_its_own(tenants):
    with tenants.http("acme") as acme, tenants.http("rival") as rival:
        put(acme, "mine", "demo")
        assert rival.get("/v1/aliases").json()["data"] == []
        for answer in (rival.get("/v1/aliases/mine"), rival.delete("/v1/aliases/mine")):
            assert answer.status_code == 404
        refused = rival.post("/v1/completions", json={"model": "mine", "prompt": "x", "max_tokens": 1})
        assert refused.status_code == 404
        put(rival, "mine", "demo")
        assert acme.delete("/v1/aliases/mine").status_code == 200
        assert rival.get("/v1/aliases/mine").status_code == 200
        rival.delete("/v1/aliases/mine")
        name = "ft:gpt-4o-mini-2024-07-18:acme::9aBcDeFg"
        put(acme, name, "demo")
        body = {"model": name, "prompt": "x", "max_tokens": 1}
        assert acme.post("/v1/completions", json=body).status_code == 200
        assert rival.post("/v1/completions", json=body).status_code == 404
        assert rival.get("/v1/aliases").json()["data"] == [] and rival.get(f"/v1/models/{name}").status_code == 404
        assert name not in [model["id"] for model in rival.get("/v1/models").json()["data"]]
        acme.delete(f"/v1/aliases/{name}")
    with tenants.http("admin") as admin:
        put(admin, "held", "demo")
        body = {"lora_name": "held", "lora_path": "nowhere"}
        answer = admin.post("/v1/load_lora_adapter", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "lora_name", answer.text
        admin.delete("/v1/aliases/held")
