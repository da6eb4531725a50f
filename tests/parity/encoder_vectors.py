"""How the references of encoders ask sentence-transformers for tokens and vectors, for make_encoders.py."""

import torch
from encoder_text import TEXTS
from sentence_transformers import SentenceTransformer


def load(folder):
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()


def cases(prompts, texts=TEXTS):
    """Every text without the name of a prompt, then with each prompt, by its name."""
    names = [None, *(name for name, prompt in (prompts or {}).items() if prompt)]
    return [{"text": text, "prompt_name": name} for name in names for text in texts]


def prompt_of(model, case):
    """What is put before a text. A case without a name has the model's default, which is mostly none."""
    name = case["prompt_name"] or model.default_prompt_name
    return model.prompts[name] if name else ""


def tokens(model, case):
    """The ids and types that the library gives the model."""
    features = model.preprocess([prompt_of(model, case) + case["text"]])
    return {name: features[name][0] for name in ("input_ids", "token_type_ids") if name in features}


def encode(model, asked, **settings):
    """One row for each case, each text run alone."""
    rows = [
        model.encode(
            [case["text"]],
            prompt_name=case["prompt_name"],
            batch_size=1,
            convert_to_tensor=True,
            show_progress_bar=False,
            **settings,
        )
        for case in asked
    ]
    return torch.cat(rows)


@torch.no_grad()
def hidden(model, case):
    """The last hidden states of one text."""
    return model[0](model.preprocess([prompt_of(model, case) + case["text"]]))["token_embeddings"][0]
