#!/usr/bin/env python3
"""Write tiny random encoders, and what transformers, sentence-transformers and PEFT compute with them, to
tests/fixtures/encoders. tests/parity/README.md describes the files.

    python tests/parity/make_encoders.py                   # rewrites tests/fixtures/encoders
    python tests/parity/make_encoders.py --only mpnet      # one folder

Everything is computed a second time in float64, and the script stops if the two disagree, or if a reference would not
notice that what its folder is there for is missing.
"""

import argparse
import copy
import shutil
import sys
import tempfile

import encoder_adapters
import encoder_families as families
import encoder_nomic
import encoder_numbers as numbers
import encoder_scores
import encoder_variants
import encoder_vectors as vectors
import torch
import transformers
from encoder_families import FAMILIES
from encoder_numbers import OUT, base, checked, read_json, write_json
from encoder_text import HIDDEN_OF
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer


def dense(width_in, width_out, seed):
    """A layer behind the pooling, without bias and activation, as EmbeddingGemma has two."""
    weight = base.random_tensor(torch.Generator().manual_seed(seed), (width_out, width_in), width_in**-0.5)
    return Dense(width_in, width_out, bias=False, activation_function=torch.nn.Identity(), init_weight=weight)


def save(folder, family, seed):
    """Writes one folder as sentence-transformers does."""
    model = numbers.randomize(family["model"](copy.deepcopy(family["config"])), seed)
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        family["tokenizer"]().save_pretrained(plain)
        modules = [Transformer(plain, max_seq_length=family["limit"])]
        modules.append(Pooling(model.config.hidden_size, family["pooling"]))
        modules += [dense(*sizes, seed + place) for place, sizes in enumerate(family.get("dense", []))]
        modules += [Normalize()] if family.get("normalize") else []
        whole = SentenceTransformer(modules=modules, prompts=family.get("prompts"), device="cpu")
        whole.save(str(numbers.clean(folder)), create_model_card=False)
    numbers.drop_model_card(folder)
    if family.get("older"):
        older(folder, family, model.config.hidden_size)
    if family.get("traps"):
        add_traps(folder)


def older(folder, family, width):
    """Writes the settings of a folder again, in the spelling of the published all-MiniLM."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kinds = kinds if family.get("normalize") else kinds[:2]
    write_json(folder / "modules.json", encoder_variants.modules(*kinds))
    if "architecture" in family:  # as Qwen3 publishes its embedding models: without this file, and named as a decoder
        (folder / "sentence_bert_config.json").unlink()
        config = read_json(folder / "config.json") | {"architectures": [family["architecture"]]}
        write_json(folder / "config.json", config)
    else:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": family["limit"], "do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", encoder_variants.flags(width, [family["pooling"]]))
    versions = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
    prompts = {"prompts": family["prompts"], "default_prompt_name": None} if "prompts" in family else {}
    write_json(folder / "config_sentence_transformers.json", {"__version__": versions, **prompts})
    if (folder / "2_Normalize").exists():  # as published, where no such folder is
        shutil.rmtree(folder / "2_Normalize")


def add_traps(folder):
    """Adds what the published all-MiniLM holds besides: a tensor of whole numbers, and a length and a padding in
    tokenizer.json that are not those of the model."""
    weights = load_file(folder / "model.safetensors")
    positions = len(weights["embeddings.position_embeddings.weight"])
    weights["embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))


def compute(asked, truncate):
    """What the reference holds, of a model."""

    def of(model):
        values = {"vectors": vectors.encode(model, asked)}
        values |= {f"truncated.{width}": vectors.encode(model, asked, truncate_dim=width) for width in truncate}
        values |= {f"hidden.{place}": vectors.hidden(model, asked[place]) for place in HIDDEN_OF}
        return values

    return of


def check_tokens(folder, model, asked):
    """Writes the tokens into the cases. `tokenizer.json` alone must give the same."""
    for case in asked:
        found = vectors.tokens(model, case)
        case["input_ids"] = found["input_ids"].tolist()
        whole = vectors.prompt_of(model, case) + case["text"]
        ids, types = numbers.raw_ids(folder, whole, model.max_seq_length)
        assert ids == case["input_ids"], f"{case['text']!r}: {ids} instead of {case['input_ids']}"
        assert "token_type_ids" not in found or found["token_type_ids"].tolist() == types
    lengths = [len(case["input_ids"]) for case in asked]
    assert max(lengths) == model.max_seq_length and min(lengths) <= 3, lengths


def check_changes(folder, family, expected, asked):
    """Every change that the reference is there to notice must move some vector, well above what rounding does.

    The two forms of GELU differ by 5e-4 at most, so theirs is a small one.
    """
    settings = read_json(folder / "config.json")
    for change in family["without"]:
        changed = vectors.load(folder)
        config = transformers.AutoConfig.for_model(**{**settings, **change})
        trunk = family["model"](config).eval()
        trunk.load_state_dict(changed[0].model.state_dict())
        changed[0].model = trunk
        effect = (vectors.encode(changed, asked) - expected).abs().max().item() / expected.abs().max().item()
        print(f"  vectors move by {effect:.1e} with {change}")
        assert effect > (1e-4 if "gelu" in str(change) else 1e-3), f"the fixture does not notice {change}"


def reference(folder, family):
    """Writes what the library makes of a folder, and returns the model and the cases."""
    model = vectors.load(folder)
    asked = vectors.cases(family.get("prompts"))
    check_tokens(folder, model, asked)
    model_type = model[0].model.config.model_type
    values = checked("vectors and hidden states", model, model_type, compute(asked, family.get("truncate", [])))
    check_changes(folder, family, values["vectors"], asked)
    save_file(values, folder / "reference.safetensors")
    described = {"max_seq_length": model.max_seq_length, "prompts": family.get("prompts", {}), "cases": asked}
    write_json(folder / "texts.json", described)
    return model, asked


def respell(folder):
    """Adds the other spelling of a configuration, where the family has two."""
    config = read_json(folder / "config.json")
    if config["model_type"] == "nomic_bert":
        write_json(folder / "config_native.json", config)
        config = families.published_nomic(transformers.AutoConfig.for_model(**config))
        write_json(folder / "config.json", config)
    if config["model_type"] in ("qwen3", "gemma3_text"):
        write_json(folder / "config_old_style.json", base.old_style(config))
    if config["model_type"] == "modernbert":
        older = families.older_modernbert(config)
        again = transformers.AutoConfig.for_model(**older)
        assert again.layer_types == config["layer_types"] and again.rope_parameters == config["rope_parameters"]
        write_json(folder / "config_old_style.json", older)


def make_fused(folder, name, asked, seed):
    """Writes an adapter with the layers of the published code, which must compute what transformers does."""
    model = vectors.load(folder)
    expected = vectors.encode(model, asked)
    model[0].model = encoder_nomic.Published(folder, model[0].model.config)
    off = base.relative_difference(vectors.encode(model, asked), expected)
    print(f"  the published layers are {off:.1e} from transformers")
    assert off < base.LIMIT
    family = {"targets": encoder_nomic.TARGETS}
    encoder_adapters.make(
        folder / "peft_fused", name, family, model, lambda model: vectors.encode(model, asked), seed
    )


def make(name, seed):
    """Writes one folder of a family with all its references."""
    family, folder = FAMILIES[name], OUT / name
    save(folder, family, seed)
    model, asked = reference(folder, family)
    if "targets" in family:
        encoder_adapters.make(folder / "peft", name, family, model, lambda model: vectors.encode(model, asked), seed + 500)
    if name == "nomic_bert":
        make_fused(folder, name, asked, seed + 700)
    respell(folder)
    total = numbers.size(folder)
    print(f"  {total / 1000:.0f} kB")
    assert total < 420_000


# What writes each folder, and from which seed.
FOLDERS = {
    name: (make, family.get("seed", 900_000 + 1000 * number)) for number, (name, family) in enumerate(FAMILIES.items())
}
FOLDERS |= {name: (encoder_scores.make, 920_000 + 1000 * number) for number, name in enumerate(encoder_scores.FAMILIES)}
FOLDERS |= {name: (encoder_variants.make, 940_000) for name in encoder_variants.VARIANTS}
FOLDERS["static_embedding"] = (encoder_variants.make_table, 941_000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FOLDERS, action="append", help="a folder to write (default: all)")
    only = parser.parse_args().only
    numbers.setup()
    for name, (write, seed) in FOLDERS.items():
        if only is None or name in only:
            print(name)
            write(name, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
