"""What the scripts about encoders have in common: random weights, reruns in float64, folders and their files."""

import contextlib
import copy
import json
import math
import shutil
import sys

import make_fixtures as base
import torch
import transformers
from tokenizers import Tokenizer

OUT = base.DEFAULT_OUT / "encoders"
MODELLING = "transformers.models.{0}.modeling_{0}"


def is_norm(name):
    return "norm" in name.lower() or "emb_ln" in name


def randomize(model, seed):
    """Makes every parameter random: norms about 1, biases small, matrices so large that attention has favourites."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                center = 1.0 if is_norm(name) and name.endswith("weight") and not plus_one(model) else 0.0
                parameter.copy_(base.random_tensor(generator, parameter.shape, 0.2, center))
            else:
                std = 0.6 if "embeddings" in name or "embed_tokens" in name else 1.2 / math.sqrt(parameter.shape[1])
                parameter.copy_(base.random_tensor(generator, parameter.shape, std))
    return model.eval()


def plus_one(model):
    """Whether the norms of a model hold their weights minus 1."""
    return model.config.model_type == "gemma3_text"


@contextlib.contextmanager
def float64_rerun(model_type):
    """Makes the modelling code of `model_type` stay in the dtype of its weights.

    Attention by torch's own function does so in any case, and BERT, RoBERTa and MPNet as a whole do. Rotations are
    computed in float32 by the others, and norms by decoders.
    """
    if model_type in ("qwen3", "gemma3_text"):
        with base.float64_rerun(model_type):
            yield
        return
    if model_type not in ("modernbert", "nomic_bert"):
        yield
        return
    module = sys.modules[MODELLING.format(model_type)]
    rope = module.ModernBertRotaryEmbedding if model_type == "modernbert" else module.NomicBertRotaryEmbedding

    def rope_forward(self, x, position_ids, layer_type=None):
        of_type = f"{layer_type}_" if layer_type else ""
        angles = position_ids[..., None].to(x.dtype) * getattr(self, of_type + "inv_freq").to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        scaling = getattr(self, of_type + "attention_scaling")
        return angles.cos() * scaling, angles.sin() * scaling

    def rotate(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + module.rotate_half(q) * sin, k * cos + module.rotate_half(k) * sin

    saved = rope.forward, module.apply_rotary_pos_emb
    rope.forward, module.apply_rotary_pos_emb = rope_forward, rotate
    try:
        yield
    finally:
        rope.forward, module.apply_rotary_pos_emb = saved


def in_float64(model, model_type, compute):
    """What `compute` makes of a copy of the model in float64."""
    with float64_rerun(model_type):
        return compute(copy.deepcopy(model).double())


def checked(what, model, model_type, compute):
    """What `compute` makes of the model, after a check that it makes the same in float64. The dtype of all is float32."""
    values = compute(model)
    base.assert_close(what, values, in_float64(model, model_type, compute))
    return {name: value.detach().contiguous() for name, value in values.items()}


def write_json(path, content):
    """Writes settings, or cases of which each stands on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if "cases" in content:
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in content["cases"])
        rest = json.dumps({**content, "cases": []}, indent=1, ensure_ascii=False)
        text = rest.replace('"cases": []', f'"cases": [\n{lines}\n ]')
    path.write_text(text + "\n")


def read_json(path):
    return json.loads(path.read_text())


def clean(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def drop_model_card(folder):
    (folder / "README.md").unlink(missing_ok=True)


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def raw_ids(folder, text, limit, pair=None):
    """The ids that the library `tokenizers` makes of a text by tokenizer.json alone, and their types."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, strategy="longest_first")
    encoding = tokenizer.encode(text, pair)
    return encoding.ids, encoding.type_ids


def setup():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

