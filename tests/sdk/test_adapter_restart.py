"""What a server finds of its adapters when it starts again: the registry in the database, the files by their hash."""

import adapterlib
import httpx
import pytest
from conftest import sdk, wait_for
from test_adapter_tiers import listed, load, same, unload, vector

NAMES = ["whole", "weights changed", "weights cut", "weights gone", "configuration changed"]


def flip_last_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


# By the name of the adapter: which file, and what becomes of it.
DAMAGE = {
    "weights changed": ("adapter_model.safetensors", flip_last_bit),
    "weights cut": ("adapter_model.safetensors", lambda content: content[: len(content) // 2]),
    "weights gone": ("adapter_model.safetensors", None),
    "configuration changed": ("adapter_config.json", lambda content: content.replace(b'"lora_alpha": 1', b'"lora_alpha": 9')),
}


@pytest.fixture(scope="module")
def restarted(start_server):
    """A server that was stopped, robbed of its good files, and started again: HTTP to it, the server itself, and each
    adapter's vector, generation, path and the bytes that were damaged."""
    server = start_server()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        known = {}
        for seed, name in enumerate(NAMES):
            path = adapterlib.put(server.data_dir / "made" / str(seed), seed)
            assert load(http, name, path).status_code == 200
            (generation,) = [one["generation"] for one in listed(http)["data"] if one["models"] == [name]]
            known[name] = {"vector": vector(http, name), "generation": generation, "path": path}
    server.stop()
    for name, (file, change) in DAMAGE.items():
        place = server.data_dir / "blobs" / "adapters" / known[name]["generation"] / file
        content = place.read_bytes()
        known[name] |= {"place": place, "content": content}
        if change is None:
            place.unlink()
        else:
            assert change(content) != content
            place.write_bytes(change(content))
    server = start_server(data_dir=server.data_dir)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http, server, known
    server.stop()


def test_every_name_is_there_again_and_nothing_is_in_memory_before_it_is_asked_for(restarted):
    http, server, known = restarted
    with sdk(server) as client:
        models = {model.id: model for model in client.models.list()}
    assert set(NAMES) <= set(models)
    assert all((models[name].root, models[name].parent) == ("demo", "demo") for name in NAMES)
    assert listed(http)["data"] == []


def test_what_was_not_touched_is_the_same(restarted):
    http, _, known = restarted
    assert same(vector(http, "whole"), known["whole"]["vector"])


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_adapter_is_refused_named_in_the_log_and_mended(restarted, name):
    http, server, known = restarted
    failed = listed(http)["loads"]["failed"]
    for _ in range(2):
        for path, body in (
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/completions", {"prompt": "x", "stream": True}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ):
            refused = http.post(path, json={"model": name, **body})
            # The server's fault, not that of whoever asks, and none of it is run.
            assert refused.status_code == 500, refused.text
            assert refused.json()["error"]["type"] == "server_error"
            assert known[name]["generation"] not in refused.text, "what is inside the server stays in the log"
    wanted = "are missing" if name == "weights gone" else "do not match its hash"
    said = f"the files of adapter {known[name]['generation']} {wanted}"
    wait_for(lambda: any(said in line for line in list(server.log)), f"{said}, in the log")
    now = listed(http)
    assert now["loads"]["failed"] >= failed + 6
    assert known[name]["generation"] not in {one["generation"] for one in now["data"]}
    assert now["device"]["reserved_bytes"] == now["active_leases"] == 0
    # Others are not disturbed.
    assert same(vector(http, "whole"), known["whole"]["vector"])
    # It can be loaded once more from where it came, without a restart; or the file is put back.
    if name == "weights changed":
        known[name]["place"].write_bytes(known[name]["content"])
    else:
        loaded = load(http, name, known[name]["path"], load_inplace=True)
        assert loaded.status_code == 200, loaded.text
        assert known[name]["place"].read_bytes() == known[name]["content"]
    assert same(vector(http, name), known[name]["vector"])
    assert unload(http, name).status_code == 200
