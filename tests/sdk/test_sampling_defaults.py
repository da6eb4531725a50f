"""What requests get for fields that they leave out: the configuration, else the model's `generation_config.json`."""

import json
import subprocess

import adapterlib
import attunelib
import httpx
import openai
import pytest
from conftest import sdk

QUESTION = [{"role": "user", "content": "Hello! My parcel has not arrived, and the parcel"}]
# What `defaults` of a model holds if nobody says anything.
NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "max_tokens": 1024, "max_answer_tokens": None,
}  # fmt: skip


def copy(folder, generation):
    """The demo model with another `generation_config.json`; without one if `generation` is `None`."""
    folder.mkdir()
    for file in attunelib.DEMO.iterdir():
        if file.is_file() and file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps({"eos_token_id": [2, 0], **generation})
        (folder / "generation_config.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def served(start_server, tmp_path_factory):
    """A server with models whose defaults come from the file, from the configuration, from both and from neither."""
    folder = tmp_path_factory.mktemp("defaults")
    suggested = copy(
        folder / "suggested",
        {"top_k": 1, "max_new_tokens": 7, "no_repeat_ngram_size": 3, "num_beams": 4, "do_sample": True, "min_p": None},
    )
    plain = copy(folder / "plain", None)
    settings = folder / "attune.toml"
    settings.write_text(
        f"""
[[models]]
id = "demo"
path = "{attunelib.DEMO}"

[[models]]
id = "suggested"
path = "{suggested}"

[[models]]
id = "both"
path = "{suggested}"
max_answer_tokens = 9
[models.sampling]
top_k = 0
temperature = 0
presence_penalty = 0.5

[[models]]
id = "ignored"
path = "{suggested}"
generation_config = false

[[models]]
id = "plain"
path = "{plain}"

[aliases]
nick = "suggested"
"""
    )
    return start_server("--config", str(settings))


@pytest.fixture(scope="module")
def models(served):
    with sdk(served) as client:
        yield client


def chat(client, model, **settings):
    answer = client.chat.completions.create(model=model, messages=QUESTION, **settings)
    return answer.choices[0]


def defaults(client, model):
    return client.models.retrieve(model).to_dict()["defaults"]


def test_models_show_their_defaults_wherever_they_come_from(models):
    assert defaults(models, "plain") == defaults(models, "ignored") == defaults(models, "demo") == NEUTRAL
    assert defaults(models, "suggested") == {**NEUTRAL, "top_k": 1, "max_tokens": 7}
    both = {"temperature": 0.0, "presence_penalty": 0.5, "max_tokens": 9, "max_answer_tokens": 9}
    assert defaults(models, "both") == {**NEUTRAL, **both}
    assert defaults(models, "nick") == defaults(models, "suggested")
    listed = {model.id: model.to_dict()["defaults"] for model in models.models.list()}
    assert listed == {name: defaults(models, name) for name in listed}


def test_the_log_tells_defaults_once_and_what_the_file_asks_for_in_vain(served):
    (line,) = [line for line in served.log if "model=suggested" in line or 'model="suggested"' in line if "top_k=1" in line]
    assert "max_tokens=7" in line and "top_k, max_new_tokens" in line
    warned = [line for line in served.log if "not applied" in line]
    assert len(warned) == 2, "the models that take the file's defaults"
    assert all("num_beams, no_repeat_ngram_size" in line and "do_sample" not in line for line in warned)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_leaves_fields_out_or_sends_null_gets_the_defaults(models, endless, stream):
    greedy = chat(models, "plain", temperature=0, max_tokens=7, logit_bias=endless).message.content
    for extra in ({}, {"top_k": None, "temperature": None, "max_tokens": None, "max_completion_tokens": None}):
        for model in ("suggested", "nick"):
            answer = models.chat.completions.create(
                model=model, messages=QUESTION, logit_bias=endless, n=2, stream=stream, extra_body=extra
            )
            texts, reasons = ["", ""], [None, None]
            for chunk in answer if stream else [answer]:
                for choice in chunk.choices:
                    texts[choice.index] += (choice.delta if stream else choice.message).content or ""
                    reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            assert texts == [greedy, greedy], f"{model} {extra}"
            assert reasons == ["length", "length"]


def test_a_requests_own_values_win(models, endless):
    own = {"temperature": 1.5, "seed": 4, "logit_bias": endless, "max_tokens": 20}
    answers = {chat(models, model, extra_body={"top_k": 0}, **own).message.content for model in ("plain", "suggested")}
    assert len(answers) == 1
    assert answers != {chat(models, "plain", temperature=0, max_tokens=20, logit_bias=endless).message.content}
    more = models.chat.completions.create(model="suggested", messages=QUESTION, max_completion_tokens=30, logit_bias=endless)
    assert more.usage.completion_tokens == 30, "the file's limit is a default"


def test_the_same_seed_gives_the_same_text_as_with_the_same_values_in_the_request(models, endless):
    settings = {"seed": 3, "logit_bias": endless}
    drawn = {chat(models, "both", temperature=1.3, **settings).message.content for _ in range(2)}
    said = chat(models, "plain", temperature=1.3, presence_penalty=0.5, max_tokens=9, **settings).message.content
    assert drawn == {said}


def test_completions_and_engines_have_the_same_defaults_and_no_more_than_sixteen_tokens(models, served, endless):
    def complete(model, **settings):
        answer = models.completions.create(model=model, prompt=QUESTION[0]["content"], logit_bias=endless, **settings)
        return answer.choices[0].text, answer.usage.completion_tokens

    greedy = complete("plain", temperature=0, max_tokens=7)
    assert complete("suggested") == greedy
    assert complete("plain", temperature=0)[1] == 16
    assert complete("suggested", max_tokens=20)[1] == 20
    with openai.OpenAI(base_url=f"{served.url}/v1/engines/suggested", api_key="any", max_retries=0) as engine:
        answer = engine.completions.create(model="any", prompt=QUESTION[0]["content"], logit_bias=endless)
    assert answer.choices[0].text == greedy[0]
    scored = models.completions.create(model="both", prompt="Hello", echo=True, logprobs=1, max_tokens=0)
    same = models.completions.create(model="plain", prompt="Hello", echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].logprobs == same.choices[0].logprobs


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_than_the_longest_answer_is_refused_by_name_and_never_cut(models, field, endless):
    with pytest.raises(openai.BadRequestError, match="at most 9 tokens") as fault:
        chat(models, "both", **{field: 10})
    assert (fault.value.param, fault.value.code) == (field, "invalid_value")
    assert chat(models, "both", logit_bias=endless, **{field: 9}).finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as fault:
        models.completions.create(model="both", prompt="a", max_tokens=10)
    assert fault.value.param == "max_tokens"


def test_the_environment_sets_the_same(start_server, endless):
    entry = f'id="demo", path="{attunelib.DEMO}", sampling={{temperature=0, top_p=0.5}}, max_answer_tokens=5'
    server = start_server(settings={"ATTUNE_MODELS": f"[{{{entry}, generation_config=false}}]"})
    with sdk(server) as client:
        expected = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 5, "max_answer_tokens": 5}
        assert defaults(client, "demo") == {**NEUTRAL, **expected}
        texts = {chat(client, "demo", logit_bias=endless).message.content for _ in range(3)}
        assert len(texts) == 1


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ('"temperature": -1', "`temperature` is -1"),
        ('"temperature": NaN', "`temperature` is NaN,"),
        ('"top_p": "0.9"', '`top_p` is "0.9"'),
        ('"max_new_tokens": 0', "`max_new_tokens` is 0"),
    ],
)
def test_a_file_with_values_that_cannot_be_meant_is_refused_before_anything_starts(binary, tmp_path, field, says):
    model = copy(tmp_path / "model", f"{{{field}}}")
    said = refused(binary, tmp_path, "--model", f"demo={model}")
    assert says in said and "generation_config.json" in said and "generation_config = false" in said


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sampling = {temperature = 3}", "model `demo`: sampling.temperature is 3, and must be a number from 0 to 2"),
        ("sampling = {tempertaure = 1}", "Did you mean `temperature`?"),
        ("max_answer_tokens = 0", "model `demo`: max_answer_tokens is 0, and must be a whole number of at least 1"),
        ("max_anwser_tokens = 5", "Did you mean `max_answer_tokens`?"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_both_forms(binary, tmp_path, setting, says):
    file = tmp_path / "attune.toml"
    file.write_text(f'[[models]]\nid = "demo"\npath = "{attunelib.DEMO}"\n{setting}\n')
    assert says in refused(binary, tmp_path, "--config", str(file))
    entry = f'[{{id="demo", path="{attunelib.DEMO}", {setting}}}]'
    assert says in refused(binary, tmp_path, settings={"ATTUNE_MODELS": entry})


def refused(binary, folder, *arguments, settings=None):
    """What `attune serve` says when it does not start; no database may have been made."""
    data = folder / "data"
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", data, *arguments]
    environment = attunelib.environment(settings)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode not in (0, None), done.stdout
    assert not data.exists()
    return done.stderr


def test_a_fine_tuned_model_has_the_defaults_of_its_base(models, served):
    path = adapterlib.put(served.data_dir / "incoming" / "small", 1)
    body = {"lora_name": "tuned", "lora_path": path, "base_model_name": "suggested"}
    loaded = httpx.post(f"{served.url}/v1/load_lora_adapter", json=body, timeout=60)
    assert loaded.status_code == 200, loaded.text
    assert defaults(models, "tuned") == defaults(models, "suggested")
    assert len({chat(models, "tuned").message.content for _ in range(3)}) == 1
