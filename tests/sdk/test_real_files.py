"""Two real GGUF files, SmolLM2-135M-Instruct in Q4_1 and Gemma 3 270M in Q4_K_M, served and fine-tuned through the API. What
transformers says of the same weights is in `tests/fixtures/real_files`, made by `tests/parity/make_real_files.py`. The files
come from Python packages (`tools/real_models.py`) and are no part of the project."""

import json
import math

import attunelib
import pytest
import real_models
from conftest import sdk, upload, wait_for_end

FIXTURES = attunelib.ROOT / "tests" / "fixtures" / "real_files"
# Activations are rounded to 16 bits for products with weights of 4 bits: as much may two tokens' logits move against each
# other, and at so few of the places may another token be the most probable one. Measured: none at all.
NEARLY = 0.01
SAME_CHOICE = 0.999
PERPLEXITY = 1e-4
ENDS = ("<|im_end|>", "<|endoftext|>", "<eos>", "<end_of_turn>")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module", params=real_models.ALL, ids=lambda model: model.name)
def real(request, start_server):
    """A server of the file, and what transformers says of it."""
    path = request.param.fetch(real_models.default_folder())
    server = start_server("--model", f"real={path}")
    server.facts = json.loads((FIXTURES / f"{request.param.name}.json").read_text())
    server.api = attunelib.Client(server.url)
    return server


def complete(server, prompt, **settings):
    answer = server.api.post("/v1/completions", {"model": "real", "prompt": prompt, "temperature": 0, **settings})
    return answer["choices"][0]


def piece(server, token):
    return server.api.post("/v1/detokenize", {"model": "real", "tokens": [token]})["prompt"]


def test_a_text_has_the_tokens_that_transformers_finds(real):
    text = (FIXTURES / "text.txt").read_text()
    found = real.api.post("/v1/tokenize", {"model": "real", "prompt": text})["tokens"]
    assert found[: len(real.facts["text"])] == real.facts["text"]
    for prompt in real.facts["prompts"]:
        assert real.api.post("/v1/tokenize", {"model": "real", "prompt": prompt["prompt"]})["tokens"] == prompt["ids"]


def test_a_text_is_as_probable_as_in_transformers(real):
    scored = complete(real, real.facts["text"], echo=True, max_tokens=0, logprobs=1)["logprobs"]
    logprobs = scored["token_logprobs"][1:]
    perplexity = math.exp(-sum(logprobs) / len(logprobs))
    print(f"perplexity {perplexity:.4f}, in transformers {real.facts['perplexity']:.4f}")
    assert perplexity == pytest.approx(real.facts["perplexity"], rel=PERPLEXITY)
    texts = {}
    same = 0
    for best, top in zip(real.facts["best"], scored["top_logprobs"][1:], strict=True):
        if best not in texts:
            texts[best] = piece(real, best)
        ours = max(top, key=top.get)
        # A token that is a part of a character has no text of its own.
        same += ours == texts[best] or (ours.startswith("bytes:") and "\ufffd" in texts[best])
    print(f"the same choice at {same} of {len(logprobs)} places")
    assert same >= SAME_CHOICE * len(logprobs)


def test_greedy_answers_are_those_of_transformers(real):
    for prompt in real.facts["prompts"]:
        steps = prompt["steps"]
        pieces = [piece(real, step[0][0]) for step in steps]
        # transformers was told to go on after an end.
        ended = next((at for at, text in enumerate(pieces) if text in ENDS), None)
        tokens = [step[0][0] for step in steps[:ended]]
        expected = real.api.post("/v1/detokenize", {"model": "real", "tokens": tokens})["prompt"]
        answer = complete(real, prompt["ids"], max_tokens=len(steps))
        if answer["text"] == expected:
            assert answer["finish_reason"] == ("length" if ended is None else "stop")
            continue
        # It may leave where another token is nearly as probable, and nowhere else.
        for at, step in enumerate(steps[:ended]):
            ours = complete(real, [*prompt["ids"], *tokens[:at]], max_tokens=1)["text"]
            if ours != pieces[at]:
                near = {piece(real, token): logit for token, logit in step}
                assert step[0][1] - near.get(ours, -math.inf) < NEARLY, (prompt["prompt"], at, ours, step)
                print(f"{prompt['prompt']!r} leaves at token {at}: {step}")
                break
        else:
            pytest.fail(f"{answer} instead of {expected!r}")


@pytest.mark.timeout(600)
def test_it_learns(real):
    """A fine-tune over the file's own weights, asked in the form in which it was trained."""
    towns = ["Arbroath", "Bellinzona", "Cadaqués", "Drogheda", "Eskilstuna", "Fiskardo", "Győr", "Hallein", "Ipswich", "Jaca"]
    lines = [{"prompt": f"Harbour of {town}:", "completion": " seven blue boats"} for town in towns]
    with sdk(real) as client:
        file = upload(client, lines)
        settings = {"n_epochs": 10, "batch_size": 5, "learning_rate": 2e-3, "rank": 8, "alpha": 16}
        job = client.fine_tuning.jobs.create(
            model="real", training_file=file, seed=1,
            method={"type": "supervised", "supervised": {"hyperparameters": settings}},
        )  # fmt: skip
        job = wait_for_end(client, job.id, within=500)
        assert job.status == "succeeded", job.error
        ask = {"prompt": "Harbour of Kotor:", "max_tokens": 3, "temperature": 0}
        tuned = client.completions.create(model=job.fine_tuned_model, **ask).choices[0].text
        before = client.completions.create(model="real", **ask).choices[0].text
    assert tuned == " seven blue boats"
    assert before != tuned
