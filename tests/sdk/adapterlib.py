"""PEFT folders for the demo model, written with Python's standard library alone."""

import array
import json
import random

import attunelib

SHAPE = json.loads((attunelib.DEMO / "config.json").read_text())
BLOCKS, HIDDEN = SHAPE["num_hidden_layers"], SHAPE["hidden_size"]


def config(rank, **changes):
    """`adapter_config.json` of an adapter on the queries."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "demo",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
    }
    return json.dumps({**fields, **changes}).encode()


def weights(seed, rank):
    """`adapter_model.safetensors` of it: numbers that belong to `seed`, large enough to be seen in every answer."""
    numbers = random.Random(seed)
    header, data = {}, bytearray()
    for block in range(BLOCKS):
        for half, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank))):
            values = array.array("f", (numbers.uniform(-0.5, 0.5) for _ in range(shape[0] * shape[1])))
            name = f"base_model.model.model.layers.{block}.self_attn.q_proj.lora_{half}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
            data += values.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def device_bytes(rank):
    """Bytes of such an adapter in the server's memory."""
    return 4 * BLOCKS * rank * 2 * HIDDEN


def put(folder, seed, rank=1, **changes):
    """Writes the folder; returns its name below the data folder."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_bytes(config(rank, **changes))
    (folder / "adapter_model.safetensors").write_bytes(weights(seed, rank))
    return f"{folder.parent.name}/{folder.name}"
