"""Adapters of the encoders, and what PEFT and the losses of sentence-transformers make of them, for make_encoders.py."""

import copy
import json

import peft
import torch
from encoder_numbers import base, checked, drop_model_card, float64_rerun, write_json
from encoder_text import PAIRS, SCORES
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss

RANK, ALPHA = 2, 4
BATCH = 4


def trunk(model):
    """What PEFT has wrapped, of a SentenceTransformer or a CrossEncoder."""
    return model[0].model


def wrap(model, targets, blocks):
    """The trunk of a model with an adapter around the layers that `targets` name, `blocks` times each."""
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=list(targets))
    wrapped = peft.get_peft_model(model, settings).eval()
    names = list(base.adapter_parameters(wrapped))
    assert len(names) == 2 * len(targets) * blocks, names
    assert not any("pooler" in name or "classifier" in name for name in names), names
    return wrapped


def save(folder, wrapped, name, adapter):
    """Writes the adapter as PEFT does."""
    wrapped.peft_config["default"].base_model_name_or_path = name
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    drop_model_card(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"].sort()  # PEFT keeps a set; its order changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == adapter.keys() and all(saved[name].equal(adapter[name]) for name in saved)


def contrast(model, pairs, _scores):
    """The loss of anchors against the positives of the whole batch."""
    columns = [model.preprocess(list(column)) for column in zip(*pairs)]
    return MultipleNegativesRankingLoss(model, scale=base.SCALE)(columns, None)


def cosine(model, pairs, scores):
    """The squared differences between cosines and scores."""
    columns = [model.preprocess(list(column)) for column in zip(*pairs)]
    return CosineSimilarityLoss(model)(columns, torch.tensor(scores))


def gradients(model, loss_of, pairs, scores):
    """A loss and its gradients by every tensor of the adapter."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, pairs, scores)
    loss.backward()
    found = {f"grad.{name}": p.grad.clone() for name, p in base.adapter_parameters(trunk(model)).items()}
    assert all(gradient.abs().max() > 1e-5 for gradient in found.values()), "a gradient is zero"
    return {"loss": loss.detach(), **found}


def batches(pairs=PAIRS, scores=SCORES):
    """The pairs and scores of each batch, in turn."""
    return [(pairs[start:start + BATCH], scores[start:start + BATCH]) for start in range(0, len(pairs), BATCH)]


def train(model, loss_of, init, batches):
    """A run: losses before each update, norms before clipping, last values. Step i takes batch i modulo their number."""
    base.set_adapter(trunk(model), init)
    parameters = base.adapter_parameters(trunk(model))
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=base.BASE_LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False
    )
    losses, norms = [], []
    for step in range(base.STEPS):
        for group in optimizer.param_groups:
            group["lr"] = base.BASE_LR * base.schedule(step)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, *batches[step % len(batches)])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), base.MAX_GRAD_NORM, foreach=False))
        losses.append(loss.detach())
        optimizer.step()
    final = {f"final.{name}": p.detach().clone() for name, p in parameters.items()}
    return {"losses": torch.stack(losses), "grad_norms": torch.stack(norms), **final}


def curve(model, model_type, loss_of, batches, seed):
    """The first drawn start (B = 0) whose run is well conditioned, and that run."""
    double = copy.deepcopy(model).double()
    for attempt in range(20):
        init = base.random_adapter(trunk(model), seed + attempt, std_of_b=0.0)
        trained, figures = base.split(train(model, loss_of, init, batches), "final.")
        with float64_rerun(model_type):
            run = train(double, loss_of, init, batches)
        exact_trained, exact_figures = base.split(run, "final.")
        by_norm = max(((trained[n].double() - e).norm() / e.norm()).item() for n, e in exact_trained.items())
        by_entry = max(base.relative_difference(trained[n], e) for n, e in exact_trained.items())
        if by_norm <= base.LIMIT and by_entry <= base.LIMIT_TRAINED_ENTRY:
            break
        print(f"  start {attempt}: off by {by_norm:.0e}, single entries by {by_entry:.0e}")
    else:
        raise AssertionError("no seed gives a well conditioned training run")
    base.assert_close("losses and norms of the training run", figures, exact_figures)
    print(f"  losses (start {attempt}, off by {by_norm:.0e}):", " ".join(f"{x:.3f}" for x in figures["losses"]))
    assert figures["losses"][-1] < figures["losses"][0] - 0.02
    return {**{f"init.{name}": value for name, value in init.items()}, **figures, **trained}


def make(folder, name, family, model, vectors_of, seed):
    """Writes the adapter of one folder and its references. `vectors_of` makes the vectors of all cases."""
    model_type = model[0].model.config.model_type
    blocks = model[0].model.config.num_hidden_layers
    plain = vectors_of(model)
    model[0].model = wrap(trunk(model), family["targets"], blocks)
    adapter = base.random_adapter(trunk(model), seed, std_of_b=0.15)
    base.set_adapter(trunk(model), adapter)
    first = batches()[0]

    def compute(model):
        return {"vectors": vectors_of(model), **gradients(model, contrast, *first)}

    values = checked("vectors, loss and gradients with the adapter", model, model_type, compute)
    effect = ((values["vectors"] - plain).abs().max() / plain.abs().max()).item()
    print(f"  the adapter moves the vectors by {effect:.2f}; loss {values['loss']:.6f}")
    assert effect > 0.1
    save(folder, trunk(model), name, adapter)
    save_file(values, folder / "reference.safetensors")
    cases = [
        {
            "texts": list(pair),
            "score": score,
            "input_ids": [model.preprocess([text])["input_ids"][0].tolist() for text in pair],
        }
        for pair, score in zip(PAIRS, SCORES)
    ]
    write_json(folder / "pairs.json", {"batch": BATCH, "scale": base.SCALE, "cases": cases})
    for loss in family.get("curves", []):
        loss_of = {"contrast": contrast, "cosine": cosine}[loss]
        if loss == "cosine":
            alone = lambda model: gradients(model, cosine, *first)  # noqa: E731
            save_file(checked("loss and gradients of cosines", model, model_type, alone), folder / "cosine.safetensors")
        run = curve(model, model_type, loss_of, batches(), seed + 100)
        save_file(run, folder / f"curve_{loss}.safetensors")
        base.set_adapter(trunk(model), adapter)

