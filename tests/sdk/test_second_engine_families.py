"""Families that only the second engine has: tiny random checkpoints, each in the form of the published files, answer as
transformers does (`tests/parity/make_second_engine.py`). What the library does not compute is refused before anyone asks."""

import json
import re
import shutil
import subprocess

import attunelib
import httpx
import pytest
from second_engine import FIXTURES, FOREIGN, complete, entry, program

FAMILIES = sorted(folder.name for folder in FOREIGN.iterdir())
# Those whose weights the program writes anew for the library on a CPU.
REWRITTEN = ["deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite"]
ON_A_GPU_ALONE = {
    "phi": "PhiForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
}


def newer(fields):
    """A configuration that says the rotation as newer files do."""
    fields = dict(fields)
    rotation = {**(fields.pop("rope_scaling", None) or {}), "rope_theta": fields.pop("rope_theta")}
    rotation["rope_type"] = rotation.pop("type", "default")
    if "partial_rotary_factor" in fields:
        rotation["partial_rotary_factor"] = fields.pop("partial_rotary_factor")
    return {**fields, "rope_parameters": rotation}


def copied(name, folder, change):
    """A copy of a checkpoint with another configuration."""
    shutil.copytree(FOREIGN / name, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(fields)))
    return folder


@pytest.fixture(scope="module")
def families(start_server, tmp_path_factory):
    """A server with all of them, and with what else these tests ask."""
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    folder = tmp_path_factory.mktemp("families")
    text = f'second_engine = "{found}"\n' + "".join(entry(name, FOREIGN / name) for name in FAMILIES)
    for name in REWRITTEN:
        text += entry(f"{name}-newer", copied(name, folder / name, newer))

    def unsaid(fields):
        fields = newer(fields)
        return {key: value for key, value in fields.items() if key not in ("topk_method", "scoring_func")}

    text += entry("unsaid", copied("deepseek_v3", folder / "unsaid", unsaid))
    kinds = {"mamba": "linear_attention", "attention": "full_attention"}
    renamed = lambda fields: {**fields, "layer_types": [kinds[kind] for kind in fields["layer_types"]]}
    text += entry("renamed", copied("granitemoehybrid", folder / "renamed", renamed))
    text += entry("rounded", FOREIGN / "deepseek_v2") + 'quantize = "q8_0"\n'
    mixture = folder / "qwen3_moe"
    mixture.mkdir()
    shutil.copy(FIXTURES / "qwen3_moe" / "model.safetensors", mixture)
    shutil.copy(FOREIGN / "glm4" / "tokenizer.json", mixture)
    fields = json.loads((FIXTURES / "qwen3_moe" / "config_old_style.json").read_text())
    # As the published files say them.
    fields = {"max_window_layers": 1, "num_experts": fields["num_local_experts"], **fields, "sliding_window": None}
    (mixture / "config.json").write_text(json.dumps(fields))
    text += entry("mixture", mixture, "attune") + entry("mixture-2", mixture, "mistralrs")
    settings = folder / "attune.toml"
    settings.write_text(text)
    temporary = folder / "temporary"
    temporary.mkdir()
    server = start_server("--config", str(settings), settings={"TMPDIR": str(temporary)})
    assert list(temporary.glob("attune-mistralrs-*")) == []
    return server


def assert_alike(server, model, family):
    for expected in json.loads((FOREIGN / family / "reference.json").read_text()):
        asked = dict(logprobs=1, echo=True, max_tokens=len(expected["tokens"]), ignore_eos=True)
        scored = complete(server, model, expected["prompt"], **asked)["choices"][0]["logprobs"]
        tokens = [int(token.strip().removeprefix("t")) for token in scored["tokens"]]
        assert tokens == expected["prompt"] + expected["tokens"]
        wanted = expected["prompt_logprobs"] + expected["logprobs"]
        assert scored["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_and_scores_as_transformers_does(families, family):
    assert_alike(families, family, family)


@pytest.mark.parametrize("family", REWRITTEN)
def test_newer_names_in_a_configuration_say_the_same(families, family):
    assert_alike(families, f"{family}-newer", family)


def test_what_a_newer_file_leaves_out_or_renames_is_known(families):
    assert_alike(families, "unsaid", "deepseek_v3")
    assert_alike(families, "renamed", "granitemoehybrid")


def test_weights_that_are_written_anew_may_be_quantized(families):
    prompt = json.loads((FOREIGN / "deepseek_v2" / "reference.json").read_text())[2]
    asked = dict(max_tokens=0, echo=True, logprobs=0)
    scored = complete(families, "rounded", prompt["prompt"], **asked)["choices"][0]["logprobs"]["token_logprobs"][1:]
    apart = [abs(one - two) for one, two in zip(scored, prompt["prompt_logprobs"], strict=True)]
    assert 1e-4 < sum(apart) / len(apart) < 0.3


def test_experts_of_a_shared_family_answer_alike_on_both_engines(families):
    for prompt in ([5, 9, 31, 7, 88, 12], list(range(20, 52))):
        own, other = (complete(families, model, prompt)["choices"][0]["text"] for model in ("mixture", "mixture-2"))
        assert own == other


def test_a_hybrids_context_ends_before_its_cache_would_not_grow_any_more(families):
    prompt = [5 + number % 100 for number in range(504)]
    answer = complete(families, "granitemoehybrid", prompt, max_tokens=8, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 8
    body = {"model": "granitemoehybrid", "prompt": prompt + [5] * 9, "max_tokens": 8}
    refused = httpx.post(f"{families.url}/v1/completions", json=body, timeout=60)
    assert refused.status_code == 400 and "512" in refused.text, refused.text


@pytest.mark.parametrize("family", ["gemma4", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_a_token_that_stands_for_a_picture_is_refused(families, family):
    token = json.loads((FOREIGN / family / "config.json").read_text())["image_token_id"]
    body = {"model": family, "prompt": [5, token, 9], "max_tokens": 1}
    refused = httpx.post(f"{families.url}/v1/completions", json=body, timeout=60)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "prompt", "unsupported_value"), refused.text
    assert f"token {token} stands for a picture" in error["message"]


def start(binary, folder, text):
    """What a server says that does not start."""
    settings = folder / "attune.toml"
    settings.write_text(text)
    command = [str(binary), "serve", "--listen", "127.0.0.1:0", "--config", str(settings)]
    command += ["--data-dir", str(folder / "data"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=attunelib.environment())
    assert done.returncode != 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("family", ON_A_GPU_ALONE)
def test_a_family_that_fails_on_a_cpu_is_refused_there_with_what_fails(binary, tmp_path, family):
    fields = {"model_type": family, "architectures": [ON_A_GPU_ALONE[family]], "vocab_size": 160}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": 1024}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.copy(FOREIGN / "glm4" / "tokenizer.json", tmp_path)
    said = start(binary, tmp_path, entry("m", tmp_path, "mistralrs"))
    assert "cannot compute models of this family on a CPU: it cannot rotate a part of a head there" in said


def test_a_model_that_is_loaded_and_cannot_be_computed_is_refused_at_the_start(binary, tmp_path):
    """The library takes a tensor that it does not find for one that comes later."""
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    folder = shutil.copytree(FOREIGN / "glm4", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(re.sub(rb"layers\.1\.mlp\.down_proj", b"layers.1.mlp.dawn_proj", weights.read_bytes()))
    said = start(binary, tmp_path, f'second_engine = "{found}"\n' + entry("m", folder))
    assert "mistralrs loads this model and cannot compute it" in said


def test_what_is_not_written_anew_is_refused(binary, tmp_path):
    found = program()
    if found is None:
        pytest.skip("the second engine is not built: make mistralrs")
    first = f'second_engine = "{found}"\n'
    adapter = FOREIGN / "starcoder2" / "adapter"
    said = start(binary, tmp_path, first + entry("m", FOREIGN / "glm4_moe") + f'adapter = "{adapter}"\n')
    assert "which adds no adapter to them" in said
    quantized = lambda fields: {**fields, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    said = start(binary, tmp_path, first + entry("m", copied("deepseek_v3", tmp_path / "fp8", quantized)))
    assert "take a checkpoint with whole ones" in said
