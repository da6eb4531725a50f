"""Aliases: other names for models, set by the operator."""

import subprocess

import attunelib
import httpx
import openai
import pytest
from conftest import QUICK, as_prompts, create_key, model_ids, sdk, upload, wait_for, wait_for_end

pytestmark = pytest.mark.timeout(240)

ALIASES = '{ada="demo", "gpt-3.5-turbo"="demo", text-embedding-3-small="demo", "old/My model"="demo"}'
MESSAGES = [{"role": "user", "content": "Where is Kessing?"}]
# cl100k_base, which clients use for text-embedding-3-small.
TEXT, IDS = "The river runs through the old town.", [791, 15140, 8640, 1555, 279, 2362, 6424, 13]


@pytest.fixture(scope="module")
def server(start_server):
    server = start_server(settings={"ATTUNE_ALIASES": ALIASES})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    with sdk(server) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def chat(client, model):
    return client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=12)


def test_an_alias_answers_as_the_model_does_under_its_own_name(client):
    for alias in ("ada", "gpt-3.5-turbo", "old/My model"):
        answer = chat(client, alias)
        assert answer.model == alias
        assert answer.choices[0].message.content == chat(client, "demo").choices[0].message.content
    completion = client.completions.create(model="ada", prompt="On Friday", temperature=0, max_tokens=4)
    assert completion.model == "ada"
    assert completion.choices[0].text


def test_aliases_are_listed_with_what_they_stand_for(client, http):
    models = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert models["ada"]["root"] == "demo"
    assert {"demo", "gpt-3.5-turbo", "text-embedding-3-small", "old/My model"} <= set(models)
    for alias in ("ada", "old/My model"):
        assert client.models.retrieve(alias).id == alias


def test_an_alias_cannot_be_deleted(client):
    with pytest.raises(openai.PermissionDeniedError) as fault:
        client.models.delete("ada")
    assert "alias" in fault.value.message
    assert client.models.retrieve("ada").id == "ada"


def embed(client, model, inputs):
    answer = client.embeddings.create(model=model, input=inputs, encoding_format="float")
    return [item.embedding for item in answer.data], answer.usage.prompt_tokens


def test_ids_under_an_openai_embedding_name_are_those_of_its_tokenizer(client):
    by_text, by_ids = embed(client, "demo", TEXT), embed(client, "text-embedding-3-small", [IDS])
    assert by_ids == by_text
    mixed, _ = embed(client, "text-embedding-3-small", [IDS, IDS[:4]])
    assert mixed[0] == pytest.approx(by_text[0][0], abs=1e-5)
    assert embed(client, "text-embedding-3-small", TEXT) == by_text


def test_ids_under_other_names_are_the_model_s_own(client, http):
    own = http.post("/tokenize", json={"prompt": TEXT}).json()["tokens"]
    assert own != IDS
    for name in ("ada", "demo"):
        assert embed(client, name, [own]) == embed(client, "demo", TEXT)


@pytest.mark.parametrize("ids", [[100_256], [200_000], []])
def test_ids_that_the_foreign_tokenizer_does_not_have_are_refused(client, ids):
    with pytest.raises(openai.BadRequestError) as fault:
        embed(client, "text-embedding-3-small", [IDS, ids])
    assert fault.value.param == "input"


def test_an_unknown_name_is_still_unknown(client):
    with pytest.raises(openai.NotFoundError):
        chat(client, "babbage")


def test_a_fine_tune_of_an_alias_goes_by_the_alias(client, http, tickets):
    file = upload(client, as_prompts(tickets[:12]))
    answer = http.post("/v1/fine-tunes", json={"model": "ada", "training_file": file, "n_epochs": 1})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["model"] == "ada"
    path = f"/v1/fine-tunes/{job['id']}"
    done = wait_for(lambda: (job := http.get(path).json())["status"] not in ("pending", "running") and job, "the end", 120)
    assert done["status"] == "succeeded"
    assert done["model"] == "ada"
    assert done["fine_tuned_model"].startswith("ada:ft-")
    assert http.get("/v1/models/" + done["fine_tuned_model"]).json()["parent"] == "demo"
    client.models.delete(done["fine_tuned_model"])


def test_an_alias_may_stand_for_a_fine_tuned_model(start_server, tickets):
    server = start_server(settings={"ATTUNE_ALIASES__ADA": "demo"})
    with sdk(server) as client:
        method = {"type": "supervised", "supervised": {"hyperparameters": {**QUICK, "n_epochs": 1}}}
        file = upload(client, tickets[:12])
        job = client.fine_tuning.jobs.create(model="ada", training_file=file, method=method)
        assert job.model == "ada"
        job = wait_for_end(client, job.id, within=120)
        assert job.status == "succeeded", job.error
        assert job.model == "ada"
        assert job.fine_tuned_model.startswith("ft:ada:")
        wanted = chat(client, job.fine_tuned_model).choices[0].message.content
    server.stop()

    tuned = job.fine_tuned_model
    aliases = f'{{desk="{tuned}", gone="ft:demo:nobody::none"}}'
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_ALIASES": aliases})
    with sdk(server) as client:
        answer = chat(client, "desk")
        assert (answer.model, answer.choices[0].message.content) == ("desk", wanted)
        assert "desk" in model_ids(client)
        assert client.models.retrieve("desk").root == tuned
        assert httpx.get(server.url + "/v1/models/desk/adapter").content.startswith(b"adapter_config.json")
        with pytest.raises(openai.PermissionDeniedError):
            client.models.delete("desk")
        # An alias of a model that the caller does not have is no model.
        assert "gone" not in model_ids(client)
        for call in (chat, lambda client, name: client.models.retrieve(name)):
            with pytest.raises(openai.NotFoundError) as fault:
                call(client, "gone")
            assert "`gone`" in fault.value.message
        go_on = client.fine_tuning.jobs.create(model="desk", training_file=file)
        assert go_on.model == "desk"
        client.fine_tuning.jobs.cancel(go_on.id)
    server.stop()


OLD = "ft:gpt-4o-mini-2024-07-18:acme:support:9aBcDeFg"


def test_a_name_that_another_service_gave_leads_to_a_model_here(binary, start_server, tickets):
    """Under the old name and that of its checkpoint every endpoint answers as the model does, for its owner alone; the
    name of a model that is here is refused."""
    server = start_server()
    data_dir = server.data_dir
    acme, _ = create_key(binary, data_dir, "acme")
    rival, _ = create_key(binary, data_dir, "rival")
    method = {"type": "supervised", "supervised": {"hyperparameters": {**QUICK, "n_epochs": 1}}}
    with sdk(server, acme) as client:
        file = upload(client, tickets[:12])
        job = wait_for_end(client, client.fine_tuning.jobs.create(model="demo", training_file=file, method=method).id)
        assert job.status == "succeeded", job.error
        wanted = chat(client, job.fine_tuned_model).choices[0].message.content
        vector = embed(client, job.fine_tuned_model, TEXT)
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    server.stop()

    old_checkpoint = OLD + ":ckpt-step-3"
    lines = {OLD: job.fine_tuned_model, old_checkpoint: checkpoint.fine_tuned_model_checkpoint}
    aliases = "{" + ",".join(f'"{old}"="{new}"' for old, new in lines.items()) + "}"
    server = start_server(data_dir=data_dir, settings={"ATTUNE_ALIASES": aliases})
    with sdk(server, acme) as client, sdk(server, rival) as other:
        for name in (OLD, old_checkpoint):
            answer = chat(client, name)
            assert (answer.model, answer.choices[0].message.content) == (name, wanted)
            assert client.responses.create(model=name, input="Where?", max_output_tokens=4).model == name
            assert client.completions.create(model=name, prompt="On", max_tokens=2).model == name
            assert embed(client, name, TEXT) == vector
            assert client.models.retrieve(name).root == lines[name]
            assert name in model_ids(client)
            with pytest.raises(openai.PermissionDeniedError):
                client.models.delete(name)
            assert name not in model_ids(other)
            with pytest.raises(openai.NotFoundError):
                chat(other, name)
        further = client.fine_tuning.jobs.create(model=OLD, training_file=file, method=method)
        assert further.model == OLD
        further = wait_for_end(client, further.id)
        assert further.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:acme::"), further
    server.stop()

    settings = attunelib.environment({"ATTUNE_ALIASES": f'{{"{job.fine_tuned_model}"="demo"}}'})
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", data_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=settings)
    assert done.returncode != 0
    assert f"aliases: `{job.fine_tuned_model}`: a fine-tuned model of this server has this name" in done.stderr


@pytest.mark.parametrize(
    "aliases",
    ['{demo="demo"}', '{ada="nothing"}', '{ada="gpt-4"}', '{ada="demo", b="ada"}', '{a="ft:x:y::z", "ft:x:y::z"="demo"}'],
)
def test_an_alias_that_leads_nowhere_or_hides_a_model_stops_the_start(binary, tmp_path, aliases):
    settings = attunelib.environment({"ATTUNE_ALIASES": aliases})
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=settings)
    assert done.returncode != 0
    assert "aliases: " in done.stderr
