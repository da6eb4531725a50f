"""Many adapters in little memory: answers stay right, memory stays within its budgets, and nothing disturbs anybody."""

import contextlib
import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import adapterlib
import httpx
import openai
import pytest
from conftest import create_key, sdk, wait_for

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
ONE_BY_ONE = {"MAX_SEQUENCES": "1"}
# Two of these fit one MiB, three do not.
WIDE = 45
assert 2 * adapterlib.device_bytes(WIDE) <= MIB < 3 * adapterlib.device_bytes(WIDE)


def load(http, name, path, **settings):
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **settings})


def unload(http, name):
    return http.post("/v1/unload_lora_adapter", json={"lora_name": name})


def vector(http, model):
    """What the model makes of a text: another adapter, another vector."""
    answer = http.post("/v1/embeddings", json={"model": model, "input": "A letter from the harbour"})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["embedding"]


def distance(one, two):
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def same(one, two):
    return distance(one, two) < 1e-5


def listed(http):
    answer = http.get("/v1/lora_adapters")
    assert answer.status_code == 200, answer.text
    return answer.json()


def metrics(http):
    """The adapters' numbers of `/metrics`, by name and labels."""
    lines = http.get("/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("attune_adapter")
    }


@contextlib.contextmanager
def small(start_server, **settings):
    """A server with room for little, and HTTP to it."""
    limits = {"ADAPTER_DEVICE_MIB": "1", **settings}
    server = start_server(settings={f"ATTUNE_LIMITS__{name}": value for name, value in limits.items()})
    with httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=64)) as http:
        yield server, http
    server.stop()


@contextlib.contextmanager
def answering(server, model, endless):
    """A request that holds the model's adapter until the end of the block; gives the answer's stream. Its thirty answers
    come one after the other (`ONE_BY_ONE`), which takes longer than anything that happens meanwhile."""
    with sdk(server) as client:
        stream = client.completions.create(
            model=model, prompt="On Friday", n=30, max_tokens=900, temperature=0.8, logit_bias=endless, stream=True
        )
        next(stream)
        yield stream
        stream.close()


@contextlib.contextmanager
def waiting(server, model, endless):
    """A request for the model that nobody reads the answer of, as long as that of `answering`."""
    asked = {"model": model, "prompt": "On Friday", "n": 30, "max_tokens": 900, "logit_bias": endless}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield


def test_five_adapters_in_room_for_two_answer_the_same_in_any_order(start_server):
    with small(start_server, ADAPTER_HOST_MIB="2") as (server, http):
        wanted = {}
        for seed in range(5):
            path = adapterlib.put(server.data_dir / "made" / str(seed), seed, WIDE)
            assert load(http, f"a{seed}", path).status_code == 200
            wanted[f"a{seed}"] = vector(http, f"a{seed}")
        base = vector(http, "demo")
        names = [*wanted, "demo"]
        assert all(distance(wanted.get(one, base), wanted[two]) > 1e-3 for one in names for two in wanted if one != two)
        order = random.Random(3)
        for name in (order.choice(names) for _ in range(40)):
            assert same(vector(http, name), wanted.get(name, base)), name
            now = listed(http)
            assert now["device"]["bytes"] + now["device"]["reserved_bytes"] <= now["device"]["max_bytes"] == MIB
            assert now["host"]["bytes"] <= now["host"]["max_bytes"] == 2 * MIB
        # And many at once, each with the adapter that it asked for.
        with ThreadPoolExecutor(12) as pool:
            asked = [order.choice(names) for _ in range(60)]
            for name, got in zip(asked, pool.map(lambda name: vector(http, name), asked), strict=True):
                assert same(got, wanted.get(name, base)), name
        now = listed(http)
        assert now["device"]["evictions"] > 10 and now["host"]["evictions"] > 0
        assert now["loads"]["from_disk"] > 0 and now["loads"]["from_host"] > 0 and now["loads"]["failed"] == 0
        assert metrics(http)['attune_adapter_evictions_total{tier="device"}'] == now["device"]["evictions"]


def test_where_running_requests_fill_the_memory_others_are_told_when_to_come_back(start_server, endless):
    with small(start_server, **ONE_BY_ONE) as (server, http):
        for seed in range(3):
            path = adapterlib.put(server.data_dir / "made" / str(seed), seed, WIDE)
            assert load(http, f"a{seed}", path).status_code == 200
        with answering(server, "a0", endless), waiting(server, "a1", endless):

            def held():
                return [one["models"] for one in listed(http)["data"] if one["active_leases"]]

            wait_for(lambda: held() == [["a0"], ["a1"]] or held() == [["a1"], ["a0"]], "two adapters in use")
            refused = http.post("/v1/embeddings", json={"model": "a2", "input": "x"})
            assert refused.status_code == 429, refused.text
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            # Who needs no room is not held up.
            vector(http, "a0"), vector(http, "demo")
            now = listed(http)
            assert now["active_leases"] >= 2 and now["device"]["generations"] == 2
        vector(http, "a2")


def test_an_adapter_that_no_limit_allows_is_refused_and_leaves_nothing(start_server):
    with small(start_server, MAX_ADAPTER_RANK="128") as (server, http):
        for rank, said in ((110, "adapter_device_mib"), (129, "max_adapter_rank")):
            path = adapterlib.put(server.data_dir / "made" / str(rank), rank, rank)
            refused = load(http, "wide", path)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lora_path"), refused.text
            assert said in refused.json()["error"]["message"]
        assert http.get("/v1/models/wide").status_code == 404
        now = listed(http)
        assert (now["data"], now["max_rank"]) == ([], 128)
        assert not list((server.data_dir / "blobs").glob("adapters/*/*"))


def test_unloading_drains_and_the_metrics_show_it(start_server, endless):
    with small(start_server, **ONE_BY_ONE) as (server, http):
        path = adapterlib.put(server.data_dir / "made" / "a", 1, WIDE)
        assert load(http, "draining", path).status_code == 200
        (one,) = listed(http)["data"]
        assert (one["models"], one["rank"], one["tier"]) == (["draining"], WIDE, "device")
        assert (one["active_leases"], one["retired"]) == (0, False)
        with answering(server, "draining", endless) as stream:
            assert listed(http)["data"][0]["active_leases"] >= 1
            assert unload(http, "draining").status_code == 200
            assert http.post("/v1/embeddings", json={"model": "draining", "input": "x"}).status_code == 404
            assert "draining" not in {model["id"] for model in http.get("/v1/models").json()["data"]}
            (one,) = listed(http)["data"]
            assert one["retired"] and one["models"] == [] and one["host_bytes"] == 0
            now = metrics(http)
            assert now["attune_adapters_retired"] == 1 and now["attune_adapter_leases"] >= 1
            assert now['attune_adapter_bytes{tier="device"}'] == adapterlib.device_bytes(WIDE)
            # A request in flight goes on with what it began with.
            assert len([next(stream) for _ in range(20)]) == 20
        wait_for(lambda: not listed(http)["data"], "the end of the retired generation")
        now = metrics(http)
        assert now["attune_adapters_retired"] == now["attune_adapter_leases"] == 0
        assert now['attune_adapter_bytes{tier="device"}'] == 0
        assert now['attune_adapters{tier="device"}'] == now['attune_adapters{tier="host"}'] == 0


def test_every_metric_of_adapters_is_there_and_documented(start_server):
    document = (adapterlib.attunelib.ROOT / "docs" / "operations.md").read_text()
    with small(start_server) as (server, http):
        for seed in range(3):
            path = adapterlib.put(server.data_dir / "made" / str(seed), seed, WIDE)
            assert load(http, f"a{seed}", path).status_code == 200
        vector(http, "a0")
        names = {name.split("{")[0] for name in metrics(http)}
        for name in (
            "attune_adapters",
            "attune_adapter_bytes",
            "attune_adapter_budget_bytes",
            "attune_adapter_leases",
            "attune_adapters_retired",
            "attune_adapters_loading",
            "attune_adapter_loads_total",
            "attune_adapter_load_seconds_count",
            "attune_adapter_evictions_total",
        ):
            assert name in names
            assert name.removesuffix("_count") in document
        assert metrics(http)['attune_adapter_loads_total{source="host"}'] == 1


def test_fifty_bad_loads_disturb_no_good_request(start_server):
    with small(start_server) as (server, http):
        folder = server.data_dir / "made"
        good = [f"good{seed}" for seed in range(3)]
        for seed, name in enumerate(good):
            assert load(http, name, adapterlib.put(folder / name, seed, WIDE)).status_code == 200
        wanted = {name: vector(http, name) for name in good}
        whole = adapterlib.weights(9, 2)
        header = int.from_bytes(whole[:8], "little")
        bad = {
            "truncated": {"adapter_model.safetensors": whole[:-100]},
            "no weights": {"adapter_model.safetensors": b""},
            "huge header": {"adapter_model.safetensors": (2**62).to_bytes(8, "little") + whole[8:]},
            "not a number": {"adapter_model.safetensors": whole[: 8 + header] + b"\xff\xff\xff\x7f" + whole[12 + header :]},
            "other place": {"adapter_model.safetensors": whole.replace(b"q_proj", b"z_proj")},
            "rank": {"adapter_config.json": adapterlib.config(3)},
            "zero rank": {"adapter_config.json": adapterlib.config(0)},
            "huge rank": {"adapter_config.json": adapterlib.config(10**15)},
            "dora": {"adapter_config.json": adapterlib.config(2, use_dora=True)},
            "pissa": {"adapter_config.json": adapterlib.config(2, init_lora_weights="pissa_niter_4")},
            "targets": {"adapter_config.json": adapterlib.config(2, target_modules=["q_proj", "v_proj"])},
            "no JSON": {"adapter_config.json": b"{" * 1000},
        }
        paths = []
        for number, changes in enumerate(bad.values()):
            paths.append(adapterlib.put(folder / f"bad{number}", 9, 2))
            for file, content in changes.items():
                (folder / f"bad{number}" / file).write_bytes(content)
        before = listed(http)
        done, failures = threading.Event(), []

        def traffic(name):
            while not done.is_set():
                if not same(vector(http, name), wanted[name]):
                    failures.append(name)

        threads = [threading.Thread(target=traffic, args=(name,)) for name in good]
        for thread in threads:
            thread.start()
        for number in range(50):
            refused = load(http, "good0" if number % 2 else "new", paths[number % len(paths)], load_inplace=True)
            assert refused.status_code == 400, (number, refused.text)
            assert refused.json()["error"]["param"] == "lora_path"
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert same(vector(http, "good0"), wanted["good0"]), "a load that failed leaves the name as it was"
        assert http.get("/v1/models/new").status_code == 404
        assert {one["generation"] for one in listed(http)["data"]} == {one["generation"] for one in before["data"]}
        assert len(list((server.data_dir / "blobs" / "adapters").glob("*/adapter_config.json"))) == 3


def test_a_tenant_neither_uses_nor_sees_what_another_has_in_memory(binary, start_server):
    server = start_server()
    keys = {name: create_key(binary, server.data_dir, name, "--admin")[0] for name in ("acme", "rival")}
    clients = {
        name: httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {key}"})
        for name, key in keys.items()
    }
    wait_for(lambda: clients["rival"].get("/v1/models").status_code == 200, "the keys")
    path = adapterlib.put(server.data_dir / "made" / "a", 1)
    assert load(clients["acme"], "acmes", path).status_code == 200
    wanted = vector(clients["acme"], "acmes")
    for request in (("POST", "/v1/embeddings", {"model": "acmes", "input": "x"}), ("GET", "/v1/models/acmes", None)):
        method, route, body = request
        assert clients["rival"].request(method, route, json=body).status_code == 404
    assert unload(clients["rival"], "acmes").status_code == 404
    assert listed(clients["acme"])["data"][0]["models"] == ["acmes"]
    assert "acmes" not in json.dumps(listed(clients["rival"]))
    # The same name is another model for the other one.
    other = adapterlib.put(server.data_dir / "made" / "b", 2)
    assert load(clients["rival"], "acmes", other).status_code == 200
    assert not same(vector(clients["rival"], "acmes"), wanted)
    assert same(vector(clients["acme"], "acmes"), wanted)
    assert unload(clients["rival"], "acmes").status_code == 200
    assert same(vector(clients["acme"], "acmes"), wanted)
    server.stop()


def test_a_thousand_adapters_answer_right_where_some_are_asked_for_often_and_most_hardly_ever(start_server):
    count = 1000
    with small(start_server, ADAPTER_HOST_MIB="2") as (server, http), ThreadPoolExecutor(8) as pool:

        def install(seed):
            path = adapterlib.put(server.data_dir / "made" / str(seed), seed)
            answer = load(http, f"tenant-{seed}", path)
            assert answer.status_code == 200, answer.text
            return vector(http, f"tenant-{seed}")

        wanted = list(pool.map(install, range(count)))
        assert len({tuple(round(value, 3) for value in one) for one in wanted}) == count, "all can be told apart"
        # The same files anywhere else give the same vectors: those above were not mixed up either.
        with small(start_server, ADAPTER_DEVICE_MIB="64") as (other, roomy):
            for seed in range(0, count, 100):
                path = adapterlib.put(other.data_dir / "made" / str(seed), seed)
                assert load(roomy, "alone", path, load_inplace=True).status_code == 200
                assert same(vector(roomy, "alone"), wanted[seed])
        order = random.Random(5)
        asked = order.choices(range(count), [1 / (rank + 1) for rank in range(count)], k=800)
        for seed, got in zip(asked, pool.map(lambda seed: vector(http, f"tenant-{seed}"), asked), strict=True):
            assert same(got, wanted[seed]), seed
        now = listed(http)
        assert now["device"]["bytes"] <= MIB and now["device"]["generations"] < count / 5
        assert now["device"]["evictions"] > count / 2
        assert now["loads"]["from_disk"] > 0 and now["loads"]["failed"] == 0
        assert now["active_leases"] == 0 and now["retired_generations"] == 0
        with sdk(server) as client, pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=f"tenant-{count}", input="x")
