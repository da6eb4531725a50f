"""Other ways to make vectors of the states of an encoder, for make_encoders.py: each is a folder with the files that
differ from those of another one, and the vectors of both together."""

import shutil
import tempfile

import encoder_text as text
import encoder_vectors as vectors
import torch
from encoder_numbers import OUT, base, checked, clean, size, write_json
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
WIDTH = 40  # of bert
PROMPTS = {"query": "where is the harbour: "}


def flags(width, modes):
    """The settings of the pooling in the spelling of older folders. Those of all-MiniLM end with the fourth."""
    known = list(FLAGS) if {"weightedmean", "lasttoken"} & set(modes) else list(FLAGS)[:4]
    return {"word_embedding_dimension": width, **{FLAGS[mode]: mode in modes for mode in known}}


def modules(*kinds):
    """A modules.json, of folders and kinds."""
    return [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]


def pooled(settings):
    """A variant of bert with another pooling, whose vectors are as long as they come."""
    plain = modules(("", "Transformer"), ("1_Pooling", "Pooling"))
    return dict(base="bert", files={"modules.json": plain, "1_Pooling/config.json": settings})


def older(*modes, **more):
    return pooled(flags(WIDTH, modes) | more)


SETTINGS = {"__version__": {"sentence_transformers": "3.0.1"}, "prompts": PROMPTS, "default_prompt_name": None}
DENSE = {
    "in_features": WIDTH,
    "out_features": 24,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
VARIANTS = {
    "pooling_cls": older("cls"),
    "pooling_max": older("max"),
    "pooling_mean_sqrt_len": older("mean_sqrt_len_tokens"),
    "pooling_weightedmean": older("weightedmean"),
    "pooling_lasttoken": older("lasttoken"),
    # The older spelling has an order of its own, the newer one says which is first.
    "pooling_cls_mean": older("cls", "mean"),
    "pooling_mean_cls": pooled(
        {"embedding_dimension": WIDTH, "pooling_mode": ["mean", "cls"], "include_prompt": True}
    ),
    "pooling_without_prompt": older("mean", include_prompt=False),
    "pooling_cls_without_prompt": older("cls", include_prompt=False),
    "pooling_weightedmean_without_prompt": older("weightedmean", include_prompt=False),
    "pooling_default_prompt": dict(base="bert", files={}),
    "pooling_dense": dict(
        base="bert",
        files={
            "modules.json": modules(("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")),
            "2_Dense/config.json": DENSE,
        },
        dense=True,
    ),
    "pooling_lower_case": dict(
        base="roberta", files={"sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True}}
    ),
}
for name in VARIANTS:
    if "prompt" in name:
        default = "query" if "default" in name else None
        VARIANTS[name]["files"]["config_sentence_transformers.json"] = SETTINGS | {"default_prompt_name": default}
        VARIANTS[name]["prompts"] = PROMPTS


def write_dense(folder, seed):
    """Writes the weights of the layer behind the pooling."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "linear.weight": base.random_tensor(generator, (DENSE["out_features"], WIDTH), WIDTH**-0.5),
        "linear.bias": base.random_tensor(generator, (DENSE["out_features"],), 0.2),
    }
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def make(name, seed):
    """Writes one folder with its vectors."""
    variant, folder = VARIANTS[name], clean(OUT / name)
    for path, content in variant["files"].items():
        write_json(folder / path, content)
    if variant.get("dense"):
        write_dense(folder, seed)
    with tempfile.TemporaryDirectory() as whole:
        shutil.copytree(OUT / variant["base"], whole, dirs_exist_ok=True)
        shutil.copytree(folder, whole, dirs_exist_ok=True)
        model = vectors.load(whole)
        plain = vectors.load(OUT / variant["base"])
    asked = vectors.cases(variant.get("prompts"))
    for case in asked:
        case["input_ids"] = vectors.tokens(model, case)["input_ids"].tolist()
    model_type = model[0].model.config.model_type
    values = checked("vectors", model, model_type, lambda model: {"vectors": vectors.encode(model, asked)})
    first = [case for case in asked if case["prompt_name"] is None]
    unchanged = vectors.encode(plain, first)
    if unchanged.shape[1] == values["vectors"].shape[1]:
        rows = values["vectors"][-len(first):]
        rows = rows if "sqrt" in name else torch.nn.functional.normalize(rows)
        assert (rows - unchanged).abs().max() > 0.05, "the variant changes nothing"
    save_file(values, folder / "reference.safetensors")
    described = {"base": variant["base"], "max_seq_length": model.max_seq_length, "prompts": variant.get("prompts", {})}
    write_json(folder / "texts.json", described | {"cases": asked})
    print(f"  {values['vectors'].shape[1]} numbers each, {size(folder) / 1000:.0f} kB")




def make_table(name, seed):
    """Writes a table of vectors as sentence-transformers saves it, over the vocabulary of mpnet."""
    folder = clean(OUT / name)
    tokenizer = text.mpnet().backend_tokenizer
    table = base.random_tensor(torch.Generator().manual_seed(seed), (tokenizer.get_vocab_size(), 24))
    layer = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[layer], device="cpu").save(str(folder), create_model_card=False)
    model = vectors.load(folder)
    asked = vectors.cases({})
    tokenizer = model[0].tokenizer
    for case in asked:
        case["input_ids"] = tokenizer.encode(case["text"], add_special_tokens=False).ids
    assert any(tokenizer.token_to_id("[UNK]") in case["input_ids"] for case in asked)
    values = checked("vectors", model, "static", lambda model: {"vectors": vectors.encode(model, asked)})
    save_file(values, folder / "reference.safetensors")
    write_json(folder / "texts.json", {"prompts": {}, "cases": asked})
    print(f"  {size(folder) / 1000:.0f} kB")
