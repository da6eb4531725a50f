"""Adapters from elsewhere: load, serve, swap, unload; hostile archives and paths; names that need encoding."""

import io
import json
import os
import tarfile
import threading
from urllib.parse import quote

import attunelib
import httpx
import openai
import pytest
from conftest import QUICK, create_job, model_ids, sdk, upload, wait_for_end

pytestmark = pytest.mark.timeout(300)

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(client, http, tickets, heldout):
    """Two adapters of different training, as archives, each with its greedy answer; their models are deleted."""
    adapters = []
    for epochs, learning_rate in ((1, 2e-3), (1, 6e-3)):
        settings = {**QUICK, "n_epochs": epochs, "learning_rate": learning_rate}
        job = wait_for_end(client, create_job(client, upload(client, tickets[:40]), settings).id, within=150)
        assert job.status == "succeeded", job.error
        archive = http.get(f"/v1/models/{job.fine_tuned_model}/adapter").content
        adapters.append((archive, answer(client, job.fine_tuned_model, heldout)))
        client.models.delete(job.fine_tuned_model)
    assert adapters[0][1] != adapters[1][1], "the two must be told apart"
    return adapters


def answer(client, model, heldout):
    return client.chat.completions.create(
        model=model, messages=heldout[0]["messages"][:1], temperature=0, max_tokens=60
    ).choices[0].message.content


def load(http, name, path, **settings):
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **settings})


def unload(http, name):
    return http.post("/v1/unload_lora_adapter", json={"lora_name": name, "lora_int_id": 1})


def upload_archive(client, content, purpose="user_data"):
    return client.files.create(file=("adapter.tar", content), purpose=purpose).id


def contents(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


def pack(files):
    """An archive as Python's own library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1.5
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def put(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_download_can_be_loaded_again(client, http, trained, heldout):
    archive, wanted = trained[0]
    for content, purpose in ((archive, "user_data"), (pack(contents(archive)), "assistants")):
        done = load(http, "desk", upload_archive(client, content, purpose))
        assert (done.status_code, done.text) == (200, "Success: LoRA adapter 'desk' added successfully.")
        assert answer(client, "desk", heldout) == wanted
        model = client.models.retrieve("desk")
        assert (model.root, model.parent) == ("demo", "demo")
        assert "desk" in model_ids(client)
        assert contents(http.get("/v1/models/desk/adapter").content) == contents(archive)
        done = unload(http, "desk")
        assert (done.status_code, done.text) == (200, "Success: LoRA adapter 'desk' removed successfully.")
        assert "desk" not in model_ids(client)
        with pytest.raises(openai.NotFoundError):
            answer(client, "desk", heldout)


def test_a_folder_below_the_data_folder_can_be_loaded(client, http, server, trained, heldout):
    archive, wanted = trained[0]
    folder = put(server.data_dir / "adapters" / "mine", contents(archive))
    (folder / "README.md").write_text("PEFT writes one")
    for path in (str(folder), "adapters/mine"):
        assert load(http, "from-folder", path).status_code == 200
        assert answer(client, "from-folder", heldout) == wanted
        assert client.models.delete("from-folder").deleted


def test_a_loaded_adapter_survives_a_restart_and_can_be_trained_further(start_server, trained, tickets, heldout):
    archive, wanted = trained[0]
    server = start_server()
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        assert load(http, "kept", upload_archive(client, archive)).status_code == 200
        job = client.fine_tuning.jobs.create(
            model="kept",
            training_file=upload(client, tickets[:12]),
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        )
        assert wait_for_end(client, job.id, within=120).status == "succeeded"
    server.stop()
    server = start_server(data_dir=server.data_dir)
    with sdk(server) as client:
        assert "kept" in model_ids(client)
        assert answer(client, "kept", heldout) == wanted
    server.stop()


def test_a_name_is_taken_until_it_is_replaced_in_place(client, http, trained, heldout):
    (first, first_answer), (second, second_answer) = trained
    assert load(http, "swap", upload_archive(client, first)).status_code == 200
    again = load(http, "swap", upload_archive(client, second))
    assert again.status_code == 400
    assert "load_inplace" in again.json()["error"]["message"]
    assert answer(client, "swap", heldout) == first_answer
    for archive, wanted in ((second, second_answer), (second, second_answer), (first, first_answer)):
        assert load(http, "swap", upload_archive(client, archive), load_inplace=True).status_code == 200
        assert answer(client, "swap", heldout) == wanted
    assert model_ids(client).count("swap") == 1
    assert unload(http, "swap").status_code == 200


def test_a_request_in_flight_ends_on_the_adapter_that_it_began_with(client, http, trained, endless):
    first, second = upload_archive(client, trained[0][0]), upload_archive(client, trained[1][0])
    assert load(http, "busy", first).status_code == 200

    def stream():
        return client.completions.create(
            model="busy", prompt="On Friday", max_tokens=400, temperature=0.8, seed=5, logit_bias=endless, stream=True
        )

    alone = "".join(chunk.choices[0].text for chunk in stream())
    running = stream()
    text = next(running).choices[0].text
    assert load(http, "busy", second, load_inplace=True).status_code == 200
    text += "".join(chunk.choices[0].text for chunk in running)
    assert text == alone
    assert "".join(chunk.choices[0].text for chunk in stream()) != alone
    # The same for a name that goes away.
    running = stream()
    text = next(running).choices[0].text
    assert unload(http, "busy").status_code == 200
    assert len(text + "".join(chunk.choices[0].text for chunk in running)) > 400


def test_many_loads_and_requests_at_once_disturb_nobody(client, http, trained, heldout):
    archive, wanted = trained[0]
    file = upload_archive(client, archive)
    got = {}

    def work(number):
        name = f"many-{number % 3}"
        loaded = load(http, name, file, load_inplace=True).status_code
        got[number] = (loaded, answer(client, name, heldout))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: (200, wanted) for number in range(6)}
    # Names of one generation share its files: the last one takes them along.
    assert unload(http, "many-0").status_code == 200
    assert answer(client, "many-1", heldout) == wanted
    assert contents(http.get("/v1/models/many-2/adapter").content) == contents(archive)
    for name in ("many-1", "many-2"):
        assert unload(http, name).status_code == 200


def test_names_with_slashes_colons_and_blanks_work_raw_and_encoded(client, http, trained, heldout):
    archive, wanted = trained[0]
    file, name = upload_archive(client, archive), "team/My adapter:v1/größer"
    for spelling in (name, quote(name), quote(name, safe="")):
        assert load(http, name, file).status_code == 200
        assert http.get(f"/v1/models/{spelling}").json()["id"] == name
        assert http.get(f"/v1/models/{spelling}/adapter").status_code == 200
        assert answer(client, name, heldout) == wanted
        done = http.delete(f"/v1/models/{spelling}")
        assert done.json() == {"id": name, "object": "model", "deleted": True}
        assert http.get(f"/v1/models/{spelling}").status_code == 404
        assert http.delete(f"/v1/models/{spelling}").status_code == 404
    assert load(http, name, file).status_code == 200
    assert client.models.retrieve(name).id == name
    assert client.models.delete(name).deleted


def refused(answer, param, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    return error["message"]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 257, "demo", "ft:demo:local::abc", "demo:ft-local", "a/adapter"])
def test_a_name_that_means_something_else_is_refused(http, name):
    refused(load(http, name, "adapters/none"), "lora_name")


def test_missing_fields_are_named(http):
    refused(http.post("/v1/load_lora_adapter", json={"lora_path": "a"}), "lora_name")
    refused(http.post("/v1/load_lora_adapter", json={"lora_name": "a"}), "lora_path")
    refused(http.post("/v1/unload_lora_adapter", json={}), "lora_name")


def test_an_unknown_adapter_cannot_be_unloaded(http):
    for name in ("nobody", "demo"):
        refused(unload(http, name), "lora_name", 404)


def test_the_model_of_a_job_is_neither_replaced_nor_unloaded(client, http, trained, tickets):
    job = create_job(client, upload(client, tickets[:12]), {**QUICK, "n_epochs": 1})
    model = wait_for_end(client, job.id).fine_tuned_model
    refused(load(http, model, upload_archive(client, trained[0][0]), load_inplace=True), "lora_name")
    refused(unload(http, model), "lora_name")
    assert client.models.delete(model).deleted


def test_paths_that_lead_out_are_refused(http, server, tmp_path, trained):
    outside = put(tmp_path / "outside", contents(trained[0][0]))
    os.symlink(outside, server.data_dir / "escape")
    half = put(server.data_dir / "half", {FILES[0]: contents(trained[0][0])[FILES[0]]})
    os.symlink(outside / FILES[1], half / FILES[1])
    inside = ("escape", "half", "../outside", "half/../half", ".", "", "blobs", "a\0b")
    for path in (str(outside), "/etc", "/", *inside):
        refused(load(http, "escape", path), "lora_path")
    refused(load(http, "escape", "no-such-folder"), "lora_path", 404)
    refused(load(http, "escape", "file-nobody"), "lora_path", 404)


def test_archives_that_are_not_one_are_refused(client, http, trained):
    files = contents(trained[0][0])
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        for name in FILES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    zipped = io.BytesIO()
    with tarfile.open(fileobj=zipped, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(FILES[0]))
    config = json.loads(files[FILES[0]])
    weights = files[FILES[1]]
    header = int.from_bytes(weights[:8], "little")
    data = bytearray(weights)
    data[8 + header : 8 + header + 4] = b"\x00\x00\xc0\x7f"
    changed = {
        "use_dora": {FILES[0]: json.dumps({**config, "use_dora": True}).encode()},
        "shape": {FILES[0]: json.dumps({**config, "r": 4}).encode()},
        "modules_to_save": {FILES[0]: json.dumps({**config, "modules_to_save": ["lm_head"]}).encode()},
        "adapter_config.json": {FILES[0]: b"{"},
        "damaged": {FILES[1]: (2**63).to_bytes(8, "little") + weights[8:]},
        "no tensors": {FILES[1]: (8).to_bytes(8, "little") + b"{}      "},
        "no place for the tensor": {FILES[1]: weights.replace(b"q_proj", b"x_proj")},
        "not finite": {FILES[1]: bytes(data)},
    }
    hostile = {
        "not a plain file": link.getvalue(),
        "tar archive": zipped.getvalue(),
        "must hold": pack({"../" + FILES[0]: b"{}"}),
        FILES[1]: pack({FILES[0]: b"{}"}),
        "no adapter_config.json": b"",
        **{what: pack({**files, **change}) for what, change in changed.items()},
    }
    before = model_ids(client)
    for what, archive in hostile.items():
        message = refused(load(http, "hostile", upload_archive(client, archive)), "lora_path")
        assert what in message, message
    assert model_ids(client) == before


def test_an_archive_for_another_purpose_is_refused(client, http, tickets):
    message = refused(load(http, "purpose", upload(client, tickets[:10])), "lora_path")
    assert "user_data" in message


def test_too_large_an_adapter_and_an_unclear_base_are_refused(start_server, trained, heldout):
    models = [argument for name in ("one", "two") for argument in ("--model", f"{name}={attunelib.DEMO}")]
    server = start_server(*models, settings={"ATTUNE_LIMITS__MAX_ADAPTER_BYTES": str(len(trained[0][0]))})
    archive, wanted = trained[0]
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        file = upload_archive(client, archive)
        assert "base_model_name" in refused(load(http, "a", file), "base_model_name")
        refused(load(http, "a", file, base_model_name="three"), "base_model_name")
        assert load(http, "a", file, base_model_name="two").status_code == 200
        assert client.models.retrieve("a").parent == "two"
        assert answer(client, "a", heldout) == wanted
        files = contents(archive)
        config = json.dumps({**json.loads(files[FILES[0]]), "base_model_name_or_path": "one"}).encode()
        assert load(http, "b", upload_archive(client, pack({**files, FILES[0]: config}))).status_code == 200
        assert client.models.retrieve("b").parent == "one"
        large = pack({**files, FILES[1]: files[FILES[1]] + bytes(len(archive))})
        assert "larger than" in refused(load(http, "c", upload_archive(client, large)), "lora_path")
    server.stop()
