"""A mixture of experts whose experts are fine-tuned through the API: trained, served, downloaded, loaded again and trained
further. The models are tiny random checkpoints with a word for each token."""

import io
import json
import shutil
import tarfile

import attunelib
import httpx
import openai
import pytest
from conftest import sdk, upload, wait_for_end

pytestmark = pytest.mark.timeout(300)

FIXTURES = attunelib.ROOT / "tests" / "fixtures"
# The user's words, and what the model is to answer.
LESSONS = {f"w{10 + i} w{30 + i}": f"w{60 + 3 * i} w{90 + i} w{120 + i}" for i in range(12)}
TEMPLATE = (
    "{% for message in messages %}w{{ '3' if message.role == 'user' else '4' }} {{ message.content }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w4 {% endif %}"
)
SETTINGS = {
    "target_modules": ["gate_up_proj", "down_proj"],
    "n_epochs": 40,
    "batch_size": 4,
    "learning_rate": 2e-2,
    "rank": 4,
    "alpha": 8,
}


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def mixture(request, start_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / request.param / name, folder)
    words = {f"w{token}": token for token in range(160)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2", "chat_template": TEMPLATE}))
    server = start_server("--model", f"mixture={folder}")
    server.shape = json.loads((folder / "config.json").read_text())
    return server


def answer(client, model, question):
    message = {"role": "user", "content": question}
    done = client.chat.completions.create(model=model, messages=[message], temperature=0, max_tokens=4)
    return (done.choices[0].message.content or "").split()


def start(client, model, settings, file):
    method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    return client.fine_tuning.jobs.create(model=model, training_file=file, method=method, seed=7)


def lines():
    for question, reply in LESSONS.items():
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def contents(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


def shapes(weights):
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def test_experts_are_trained_served_downloaded_and_trained_further(mixture):
    with sdk(mixture) as client, httpx.Client(base_url=mixture.url, timeout=60) as http:
        file = upload(client, list(lines()))
        body = {
            "model": "mixture",
            "training_file": file,
            "method": {"type": "supervised", "supervised": {"hyperparameters": SETTINGS}},
        }
        estimate = http.post("/v1/fine_tuning/jobs/estimate", json=body).json()
        job = wait_for_end(client, start(client, "mixture", SETTINGS, file).id, within=200)
        assert job.status == "succeeded", job.error
        tuned = job.fine_tuned_model
        wanted = {question: reply.split() for question, reply in LESSONS.items()}
        told = {question: answer(client, tuned, question)[:3] for question in LESSONS}
        assert told == wanted
        assert not any(answer(client, "mixture", question)[:3] == reply for question, reply in wanted.items())

        archive = http.get(f"/v1/models/{tuned}/adapter").content
        files = contents(archive)
        config = json.loads(files["adapter_config.json"])
        assert config["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        assert config["target_modules"] == [] and config["peft_version"] == "0.19.0"
        shape = mixture.shape
        experts = shape.get("num_experts") or shape["num_local_experts"]
        width = shape.get("moe_intermediate_size") or shape["intermediate_size"]
        hidden, rows = shape["hidden_size"], 4 * experts
        expected = {
            "base_layer.lora_A": [rows, hidden],
            "base_layer.lora_B": [2 * width, rows],
            "lora_A": [rows, width],
            "lora_B": [hidden, rows],
        }
        blocks = range(shape["num_hidden_layers"])
        assert shapes(files["adapter_model.safetensors"]) == {
            f"base_model.model.model.layers.{block}.mlp.experts.{name}.weight": sizes
            for block in blocks
            for name, sizes in expected.items()
        }
        # A and B twice, three gradients, two moments.
        numbers = len(blocks) * sum(rows * columns for rows, columns in expected.values())
        assert estimate["memory_bytes"]["adapter"] == 28 * numbers, estimate

        loaded = client.files.create(file=("adapter.tar", archive), purpose="user_data").id
        done = http.post("/v1/load_lora_adapter", json={"lora_name": "again", "lora_path": loaded})
        assert done.status_code == 200, done.text
        assert {question: answer(client, "again", question)[:3] for question in LESSONS} == wanted

        # Its shape comes from the model that goes on.
        further = wait_for_end(client, start(client, "again", {"n_epochs": 2, "learning_rate": 1e-3}, file).id)
        assert further.status == "succeeded", further.error
        assert further.method.supervised.hyperparameters.target_modules == SETTINGS["target_modules"]
        assert answer(client, further.fine_tuned_model, next(iter(LESSONS)))[:3] == next(iter(wanted.values()))


@pytest.mark.parametrize(
    ("settings", "param", "named"),
    [
        ({"target_modules": ["up_proj"]}, "target_modules", "up_proj"),
        ({"target_modules": ["down_proj"], "lora_dropout": 0.1}, "lora_dropout", "down_proj"),
    ],
)
def test_what_is_not_applied_to_experts_is_refused_by_name(mixture, settings, param, named):
    with sdk(mixture) as client:
        file = upload(client, list(lines()))
        with pytest.raises(openai.BadRequestError) as refused:
            start(client, "mixture", settings, file)
        assert param in str(refused.value.body) and named in refused.value.message
