"""PEFT adapters for the demo model on all of its layers, with rsLoRA and with ranks and alphas of their own in some layers:
what no single alpha of a GGUF file says. Used by `test_export.py` and by `tests/parity/check_elsewhere.py`."""

import io
import json
import math
import tarfile

import adapterlib
import numpy

SHAPE = adapterlib.SHAPE
HEADS, KV_HEADS, DIM = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], SHAPE["head_dim"]
HIDDEN, WIDTH, BLOCKS = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
# Outputs and inputs of each layer, and its name in GGUF files.
LAYERS = {
    "self_attn.q_proj": (HEADS * DIM, HIDDEN, "attn_q"),
    "self_attn.k_proj": (KV_HEADS * DIM, HIDDEN, "attn_k"),
    "self_attn.v_proj": (KV_HEADS * DIM, HIDDEN, "attn_v"),
    "self_attn.o_proj": (HIDDEN, HEADS * DIM, "attn_output"),
    "mlp.gate_proj": (WIDTH, HIDDEN, "ffn_gate"),
    "mlp.up_proj": (WIDTH, HIDDEN, "ffn_up"),
    "mlp.down_proj": (HIDDEN, WIDTH, "ffn_down"),
}
# rsLoRA, with other ranks and alphas in some layers: one alpha for all does not say that.
RANK, ALPHA = 4, 6
RANKS, ALPHAS = {"v_proj": 2, "down_proj": 8}, {"k_proj": 11, "down_proj": 3}


def rank_of(layer):
    return RANKS.get(layer.rsplit(".", 1)[-1], RANK)


def scale_of(layer):
    return ALPHAS.get(layer.rsplit(".", 1)[-1], ALPHA) / math.sqrt(rank_of(layer))


def matrices(seed, size):
    """A and B of every layer."""
    numbers = numpy.random.default_rng(seed)
    made = {}
    for block in range(BLOCKS):
        for layer, (outputs, inputs, _) in LAYERS.items():
            rank = rank_of(layer)
            a = numbers.uniform(-0.1, 0.1, (rank, inputs)).astype("<f4")
            made[block, layer] = a, (size * numbers.uniform(-0.1, 0.1, (outputs, rank))).astype("<f4")
    return made


def archive(made, base):
    """The PEFT folder of such matrices on the model `base`, as an archive."""
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": RANK, "lora_alpha": ALPHA,
        "use_rslora": True, "rank_pattern": RANKS, "alpha_pattern": ALPHAS,
        "target_modules": [layer.rsplit(".", 1)[-1] for layer in LAYERS],
    }  # fmt: skip
    header, data = {}, bytearray()
    for (block, layer), pair in made.items():
        for half, values in zip("AB", pair, strict=True):
            name = f"base_model.model.model.layers.{block}.{layer}.lora_{half}.weight"
            end = len(data) + values.nbytes
            header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [len(data), end]}
            data += values.tobytes()
    text = json.dumps(header).encode()
    weights = len(text).to_bytes(8, "little") + text + bytes(data)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in (("adapter_config.json", json.dumps(config).encode()), ("adapter_model.safetensors", weights)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
