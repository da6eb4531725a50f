"""What a model of the second engine cannot do: each with the answer that the table in `second_engine.py` has."""

import json

import adapterlib
import attunelib
import httpx
import pytest
from conftest import jsonl, model_ids, sdk
from second_engine import CANNOT, TESTS, complete, program

CASES = [(what, path, body) for what, refusal in CANNOT.items() for path, body in refusal.asks]


@pytest.fixture(scope="module")
def there(second, tickets):
    """What the words in the table's requests stand for."""
    content = jsonl(tickets[:16])
    with sdk(second) as client:
        file = client.files.create(file=("lines.jsonl", content), purpose="fine-tune")
    folder = adapterlib.put(second.data_dir / "peft" / "one", 1)
    return {"MODEL": "demo-2", "FILE": file.id, "FOLDER": folder}


def filled(body, there):
    """A request of the table with what there is in place of the words."""
    if isinstance(body, dict):
        return {key: filled(value, there) for key, value in body.items()}
    if isinstance(body, list):
        return [filled(value, there) for value in body]
    return there.get(body, body)


@pytest.mark.parametrize(("what", "path", "body"), CASES, ids=[f"{what}-{path}" for what, path, _ in CASES])
def test_what_it_cannot_do_is_refused_by_name(second, there, what, path, body):
    refusal = CANNOT[what]
    body = filled(body, there)
    answer = httpx.post(second.url + path.replace("MODEL", there["MODEL"]), json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert refusal.message in error["message"] and error["param"].split(".")[-1] == refusal.param, error


def test_the_same_is_done_by_the_own_engine(second, there):
    """So that a refusal is the engine's and not the request's."""
    there = {**there, "MODEL": "demo"}
    for what, path, body in CASES:
        body = filled(body, there)
        answer = httpx.post(second.url + path.replace("MODEL", "demo"), json=body, timeout=60)
        assert answer.status_code in ([400] if what == "labels" else [200, 201]), answer.text


def test_every_need_of_a_test_has_a_refusal():
    assert TESTS.keys() <= CANNOT.keys()


def test_a_context_is_as_long_as_the_model_says(second):
    body = {"model": "starcoder2", "prompt": [5, 9], "max_tokens": 400}
    answer = httpx.post(f"{second.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "maximum context length is 256" in answer.text, answer.text


def test_nothing_is_found_in_a_cache_of_prompts(second):
    for _ in range(2):
        usage = complete(second, "demo-2", "The same beginning. " * 20, max_tokens=2)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_specialist_whose_base_has_moved_there_is_refused_and_can_be_deleted(start_server, request):
    """It was made while Attune's own engine ran the base model."""
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    if request.config.getoption("--engine") == "mistralrs":
        pytest.skip("the base model must be with Attune's own engine first")
    server = start_server()
    folder = adapterlib.put(server.data_dir / "peft" / "one", 1)
    loaded = httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "mine", "lora_path": folder}, timeout=60)
    assert loaded.status_code == 200, loaded.text
    complete(server, "mine", "Hello", max_tokens=2)
    server.stop()
    models = f'[{{id="demo", path={json.dumps(str(attunelib.DEMO))}, engine="mistralrs"}}]'
    settings = {"ATTUNE_MODELS": models, "ATTUNE_SECOND_ENGINE": str(found)}
    server = start_server(data_dir=server.data_dir, settings=settings)
    body = {"model": "mine", "prompt": "Hello", "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "does not give adapters beside the model" in answer.text, answer.text
    with sdk(server) as client:
        assert "mine" in model_ids(client)
        client.models.delete("mine")
        assert "mine" not in model_ids(client)
    complete(server, "demo", "Hello", max_tokens=2)
