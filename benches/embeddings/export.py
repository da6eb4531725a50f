"""Writes an encoder's transformer as ONNX, f32, with batch and length left open: token ids and mask in, last hidden states out."""

import contextlib
import io
from pathlib import Path

import torch
from transformers import AutoModel


class LastHidden(torch.nn.Module):
    """The transformer without its pooler."""

    def __init__(self, folder):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def write(folder, path):
    """Exports the model of a folder, once."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    unfinished = Path(f"{path}.new")
    # It tells each of its steps.
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        torch.onnx.export(
            LastHidden(folder).eval(), (ids, ids.clone()), str(unfinished), input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"], dynamic_shapes=(axes, axes), external_data=False,
        )  # fmt: skip
    unfinished.rename(path)
    return path
