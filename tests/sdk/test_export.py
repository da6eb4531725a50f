"""Fine-tuned models on their way out, by the command line and by the API: merged in both forms and served again, and
the adapter as llama.cpp loads it, read with gguf-py and added to the weights by hand."""

import io
import subprocess
import tarfile
from urllib.parse import quote

import attunelib
import httpx
import numpy
import pytest
from conftest import sdk
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from wide_adapters import BLOCKS, DIM, HEADS, KV_HEADS, LAYERS, archive, matrices, scale_of

pytestmark = pytest.mark.timeout(600)

PROMPTS = ["The capital of", "A letter to the customer about order 1234:\n", "one two three"]
TOKENS = 24


def load(server, name, content):
    """Loads an adapter from an archive."""
    with sdk(server) as client:
        file = client.files.create(file=("adapter.tar", content), purpose="user_data").id
    done = httpx.post(server.url + "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": file}, timeout=60)
    assert done.status_code == 200, done.text


def export(binary, server, *arguments, config=None):
    """Runs `attune export …` beside the server."""
    place = ["--data-dir", str(server.data_dir), *(["--config", str(config)] if config else [])]
    command = [str(binary), "export", *map(str, arguments), *place]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=attunelib.environment(), cwd=attunelib.ROOT
    )


def exported(*arguments, **settings):
    done = export(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    return arguments[-1]


def answers(server, model):
    """Greedy answers with the logarithms of their tokens' probabilities."""
    with sdk(server) as client:
        choices = [
            client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=TOKENS, logprobs=1).choices[0]
            for prompt in PROMPTS
        ]
    return [choice.text for choice in choices], [choice.logprobs.token_logprobs for choice in choices]


def farthest(one, other):
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def settings(folder, models, more=""):
    """A configuration with these models by id, with `more` lines for each."""
    file = folder / "attune.toml"
    file.write_text("".join(f'[[models]]\nid = "{name}"\npath = "{path}"\n{more}' for name, path in models.items()))
    return file


@pytest.fixture(scope="module")
def outputs(binary, start_server, tmp_path_factory):
    """An adapter on the demo model and the same on a GGUF file of it, exported in every form; and what both answer."""
    folder = tmp_path_factory.mktemp("export")
    made = matrices(5, 1.0)
    config = settings(folder, {"demo": attunelib.DEMO})
    server = start_server("--config", str(config))
    load(server, "wide", archive(made, "demo"))
    load(server, "nothing", archive(matrices(6, 0.0), "demo"))
    forms = {"plain": ("nothing", "gguf"), "folder": ("wide", "safetensors"), "gguf": ("wide", "gguf")}
    files = {}
    for name, (model, form) in forms.items():
        target = folder / f"{name}.{form}"
        files[name] = exported(binary, server, model, "--merged", form, target, config=config)
    plain = files.pop("plain")
    expected = answers(server, "wide")
    assert expected[0] != answers(server, "demo")[0], "the adapter changes nothing"

    config = settings(folder, {"plain": plain})
    second = start_server("--config", str(config))
    load(second, "wide", archive(made, "plain"))
    load(second, "nothing", archive(matrices(6, 0.0), "plain"))
    for name, form in (("gguf-of-gguf", "gguf"), ("folder-of-gguf", "safetensors")):
        files[name] = exported(binary, second, "wide", "--merged", form, "--type", "f32", folder / name, config=config)
    adapter = exported(binary, second, "wide", "--adapter", "gguf", folder / "adapter.gguf", config=config)
    blocks = exported(binary, second, "nothing", "--merged", "gguf", "--type", "q8_0", folder / "blocks.gguf", config=config)
    downloaded = httpx.get(f"{second.url}/v1/models/{quote('wide')}/adapter", params={"format": "gguf"}, timeout=60)
    assert downloaded.content == adapter.read_bytes()
    return {"made": made, "plain": plain, "blocks": blocks, "files": files, "adapter": adapter, "folder": folder,
            "expected": expected, "of_gguf": answers(second, "wide")}  # fmt: skip


def by_hand(plain, adapter, target):
    """Writes the GGUF file `plain` once more with gguf-py, the adapter's file added to its dequantized weights as
    llama.cpp adds it: alpha / rank · B A."""
    base, lora = GGUFReader(plain), GGUFReader(adapter)
    alpha = float(lora.fields["adapter.lora.alpha"].contents())
    halves = {tensor.name: numpy.array(tensor.data) for tensor in lora.tensors}
    architecture = base.fields["general.architecture"].contents()
    assert lora.fields["general.architecture"].contents() == architecture
    assert lora.fields["general.type"].contents() == "adapter"
    writer = GGUFWriter(target, architecture)
    for field in base.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    changed = 0
    for tensor in base.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        if f"{tensor.name}.lora_a" in halves:
            a, b = halves[f"{tensor.name}.lora_a"], halves[f"{tensor.name}.lora_b"]
            values = (values + alpha / a.shape[0] * (b.astype("f8") @ a)).astype("<f4")
            changed += 1
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert 2 * changed == len(halves) == 2 * BLOCKS * len(LAYERS)


def test_merged_models_answer_as_the_adapter_they_were_made_of(start_server, outputs):
    with_adapter = {"folder": "expected", "gguf": "expected", "gguf-of-gguf": "of_gguf", "folder-of-gguf": "of_gguf"}
    server = start_server("--config", str(settings(outputs["folder"], outputs["files"])))
    for name, wanted in with_adapter.items():
        texts, logprobs = answers(server, name)
        assert texts == outputs[wanted][0], name
        # Weights of the demo model are in f16, to which the sums of the first two are rounded.
        assert farthest(logprobs, outputs[wanted][1]) < (0.02 if wanted == "expected" else 1e-3), name


def test_the_adapters_gguf_file_means_what_the_adapter_does(start_server, outputs):
    target = outputs["folder"] / "by-hand.gguf"
    by_hand(outputs["plain"], outputs["adapter"], target)
    server = start_server("--config", str(settings(outputs["folder"], {"hand": target})))
    texts, logprobs = answers(server, "hand")
    assert texts == outputs["of_gguf"][0]
    assert farthest(logprobs, outputs["of_gguf"][1]) < 1e-3


def test_on_a_quantized_base_it_is_added_to_the_dequantized_weights(binary, start_server, outputs):
    """With `dtype` the server multiplies by these in f32, and so rounds no activation."""
    folder = outputs["folder"]
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(outputs["blocks"]).tensors}
    assert kinds["blk.0.attn_q.weight"] == GGMLQuantizationType.Q8_0
    config = settings(folder, {"blocks": outputs["blocks"]}, 'dtype = "f32"\n')
    server = start_server("--config", str(config))
    load(server, "wide", archive(outputs["made"], "blocks"))
    adapter = exported(binary, server, "wide", "--adapter", "gguf", folder / "of-blocks.gguf", config=config)
    wanted = answers(server, "wide")
    assert wanted[0] != answers(server, "blocks")[0]
    target = folder / "by-hand-of-blocks.gguf"
    by_hand(outputs["blocks"], adapter, target)
    hand = start_server("--config", str(settings(folder, {"hand": target})))
    texts, logprobs = answers(hand, "hand")
    assert texts == wanted[0]
    assert farthest(logprobs, wanted[1]) < 1e-3


def test_rows_of_query_and_key_are_in_llama_cpps_order(outputs):
    """Also apart from what this program makes of a GGUF file: B A by numpy from the PEFT matrices."""
    lora = GGUFReader(outputs["adapter"])
    alpha = float(lora.fields["adapter.lora.alpha"].contents())
    halves = {tensor.name: numpy.array(tensor.data) for tensor in lora.tensors}
    for (block, layer), (a, b) in outputs["made"].items():
        name = f"blk.{block}.{LAYERS[layer][2]}.weight"
        found_a, found_b = halves[f"{name}.lora_a"], halves[f"{name}.lora_b"]
        found = alpha / found_a.shape[0] * (found_b.astype("f8") @ found_a)
        wanted = scale_of(layer) * (b.astype("f8") @ a)
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(layer)
        if heads:
            rows = wanted.reshape(heads, 2, DIM // 2, -1)
            assert not numpy.allclose(found, wanted, atol=1e-6), "the order is not the same"
            wanted = rows.swapaxes(1, 2).reshape(wanted.shape)
        assert numpy.allclose(found, wanted, atol=1e-6), name


def test_an_adapter_is_exported_as_peft_loads_it(binary, start_server, tmp_path):
    config = settings(tmp_path, {"demo": attunelib.DEMO})
    server = start_server("--config", str(config))
    content = archive(matrices(7, 1.0), "demo")
    load(server, "wide", content)
    folder = exported(binary, server, "wide", "--adapter", "peft", tmp_path / "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with tarfile.open(fileobj=io.BytesIO(httpx.get(f"{server.url}/v1/models/wide/adapter").content)) as tar:
        for file in folder.iterdir():
            assert tar.extractfile(file.name).read() == file.read_bytes()
    again = export(binary, server, "wide", "--adapter", "peft", folder)
    assert again.returncode != 0 and "cannot be written" in again.stderr
    for wrong in (["--merged", "gguf", "--adapter", "gguf"], [], ["--adapter", "gguf", "--type", "f16"]):
        assert export(binary, server, "wide", *wrong, tmp_path / "x").returncode == 2
    assert not (tmp_path / "x").exists()
    refused = export(binary, server, "wide", "--merged", "safetensors", "--type", "f16", tmp_path / "x", config=config)
    assert refused.returncode != 0 and "leave out --type" in refused.stderr
