"""A GGUF file's model as transformers loads it: a folder with its dequantized weights in f32 and its tokenizer."""

from check_gguf import model_of
from transformers import AutoTokenizer


def write(folder, path):
    """Makes the folder where it is not there yet, and returns it."""
    if not (folder / "complete").exists():
        model_of(path).save_pretrained(folder)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        (folder / "complete").touch()
    return folder
