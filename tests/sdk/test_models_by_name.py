"""Models named `hf:OWNER/NAME`: served from the cache, fetched at the start where they are missing, and listed."""

import json
import subprocess
import time
from pathlib import Path

import attunelib
import pytest
from conftest import create_job, sdk, upload, wait_for_end
from hub import Hub
from test_pull import pull, pulled, surroundings

DEMO = "acme/demo"


@pytest.fixture
def hub():
    hub = Hub()
    paths = [path for path in attunelib.DEMO.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors")]
    hub.add(DEMO, {path.name: path.read_bytes() for path in paths})
    yield hub
    hub.close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hf"


def settings(hub, home):
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.0/8", "HF_HUB_OFFLINE": "0"}


def ask(server, model="small"):
    with sdk(server) as client:
        question = [{"role": "user", "content": "What is the pride of Brasmere?"}]
        answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=20)
        return answer.choices[0].message.content


def run(binary, hub, home, *arguments):
    return subprocess.run(
        [str(binary), *map(str, arguments)], env=surroundings(hub, home), capture_output=True, text=True, timeout=60
    )


@pytest.mark.timeout(200)
def test_a_server_fetches_its_model_once_and_never_needs_the_network_again(start_server, hub, home, tmp_path, server):
    configuration = tmp_path / "attune.toml"
    configuration.write_text(f'[[models]]\nid = "small"\npath = "hf:{DEMO}"\n')
    first = start_server("--config", str(configuration), settings=settings(hub, home))
    answer = ask(first)
    assert answer == ask(server, "demo")
    assert any(f"downloading {DEMO} at commit" in line for line in first.log), first.tail()
    first.stop()
    asked = len(hub.requests)
    hub.close()
    second = start_server("--model", f"small=hf:{DEMO}", settings=settings(hub, home))
    assert ask(second) == answer
    assert len(hub.requests) == asked
    second.stop()


def test_a_model_that_cannot_be_fetched_ends_the_start_before_a_database_is_made(binary, hub, home, tmp_path):
    data, anywhere = tmp_path / "data", ("--listen", "127.0.0.1:0")
    for command in ("serve", "worker"):
        for name, says in [("acme/none", "there is no model acme/none"), ("../x", "model `small`: `../x` is not the name")]:
            done = run(binary, hub, home, command, "--model", f"small=hf:{name}", "--data-dir", data, *anywhere)
            assert done.returncode == 1 and says in done.stderr, done.stderr
    done = run(binary, hub, home, "serve", "--model", f"small={DEMO}", "--data-dir", data, *anywhere)
    assert done.returncode == 1 and f"`attune pull {DEMO}`" in done.stderr
    assert not data.exists()


def test_an_estimate_can_name_a_model_of_the_hub(binary, hub, home, tmp_path):
    file = attunelib.DEMO / "tickets" / "train.jsonl"
    command = ["estimate", file, "--model", f"small=hf:{DEMO}", "--json", "--data-dir", tmp_path / "data"]
    done = run(binary, hub, home, *command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "small"


def test_models_lists_what_is_there_what_it_takes_and_whether_it_works(binary, hub, home, tmp_path):
    empty = run(binary, hub, home, "models")
    assert empty.returncode == 0 and "`attune pull OWNER/NAME` downloads one" in empty.stdout
    folder = pulled(binary, hub, home, DEMO)
    hub.add("acme/other", {"x-Q4_0.gguf": b"GGUF, or not"})
    pulled(binary, hub, home, "acme/other")
    hub.add("acme/half", {name: file.content for name, file in hub.repositories[DEMO].commits[folder.name].items()})
    (pulled(binary, hub, home, "acme/half") / "tokenizer.json").unlink()
    configuration = tmp_path / "attune.toml"
    configuration.write_text(
        f'[[models]]\nid = "mine"\npath = "{attunelib.DEMO}"\n[[models]]\nid = "later"\npath = "hf:acme/later"\n'
    )
    listed = run(binary, hub, home, "models", "--json", "--config", configuration)
    assert listed.returncode == 0, listed.stderr
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert list(rows) == ["mine", "later", DEMO, "acme/half", "acme/other/x-Q4_0.gguf"]
    model = rows[DEMO]
    assert model["serves"] and model["trains"] and model["makes"] == "text" and model["reason"] is None
    assert model["commit"] == folder.name and model["path"] == str(folder)
    count = model["parameters"]
    config = json.loads((attunelib.DEMO / "config.json").read_text())
    assert count > config["vocab_size"] * config["hidden_size"]
    memory = model["memory_bytes"]
    assert 4 * count >= memory["f32"] >= memory["bf16"] > memory["q8_0"] > count
    assert memory["f32"] > memory["q4_0"] > count // 2
    assert rows["mine"]["parameters"] == count and rows["mine"]["memory_bytes"] == memory
    assert "run `attune pull acme/later`" in rows["later"]["reason"] and not rows["later"]["serves"]
    assert "1 of 5 files are missing, such as tokenizer.json" in rows["acme/half"]["reason"]
    assert not rows["acme/other/x-Q4_0.gguf"]["serves"] and rows["acme/other/x-Q4_0.gguf"]["parameters"] is None
    table = run(binary, hub, home, "models").stdout.splitlines()
    assert table[0].split() == ["MODEL", "COMMIT", "ON", "DISK", "PARAMETERS", "F32", "BF16", "Q8_0", "Q4_0", "SERVES", "TRAINS", "MAKES"]
    assert any(line.startswith(DEMO) and folder.name[:8] in line and "yes" in line for line in table)


@pytest.mark.timeout(400)
def test_a_newcomer_gets_from_a_name_to_an_own_model(binary, start_server, hub, home, tickets, heldout):
    """The path that README.md describes; run with `-s` it prints how long each step takes."""
    began, steps = time.monotonic(), []

    def step(name):
        nonlocal began
        steps.append(f"{name} {time.monotonic() - began:.1f} s")
        began = time.monotonic()

    status, path, said = pull(binary, hub, home, DEMO)
    assert status == 0 and Path(path).is_dir(), said
    assert f"serve it: attune serve --model demo=hf:{DEMO}" in said
    step("pull")
    hub.close()
    server = start_server("--model", f"demo=hf:{DEMO}", settings=settings(hub, home))
    step("serve")
    assert ask(server, "demo")
    step("chat")
    with sdk(server) as client:
        job = wait_for_end(client, create_job(client, upload(client, tickets[:160])).id, within=300)
        assert job.status == "succeeded", job.error
        step("fine-tune")

        def letter(model):
            question = heldout[0]["messages"][:1]
            answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=40)
            return answer.choices[0].message.content

        tuned = letter(job.fine_tuned_model)
        step("ask")
        assert tuned and tuned != letter("demo")
    server.stop()
    print("\n" + ", ".join(steps))
