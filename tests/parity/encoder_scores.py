"""Tiny cross-encoders and classifiers, and the scores that sentence-transformers gives pairs with them, for make_encoders.py."""

import copy

import encoder_adapters as adapters
import encoder_text as text
import torch
from encoder_families import BERT, BERT_TARGETS, COMMON, MODERNBERT, NO_DROPOUT, ROBERTA
from encoder_numbers import OUT, base, checked, clean, drop_model_card, randomize, raw_ids, read_json, size
from encoder_numbers import write_json
from encoder_text import LABELS, QUESTIONS
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import BertConfig, BertForSequenceClassification, ModernBertConfig
from transformers import ModernBertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification, NomicBertConfig
from transformers import NomicBertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

SHORT = {"num_hidden_layers": 2, "num_labels": 1}
CLASSES = {"num_hidden_layers": 2, "id2label": {0: "contradiction", 1: "entailment", 2: "neutral"}}
CLASSES["label2id"] = {label: number for number, label in CLASSES["id2label"].items()}
IDENTITY = "torch.nn.modules.linear.Identity"

# Folder: the model, its configuration, its tokenizer, and the length at which pairs are cut. `extra` goes into
# config.json, which names the activation of the scores in two ways, or not at all. `whole` folders are written by
# CrossEncoder.save, the others by transformers alone.
FAMILIES = {
    "bert_score": dict(
        model=BertForSequenceClassification,
        config=BertConfig(vocab_size=len(text.bert()), **{**BERT, **SHORT}),
        tokenizer=text.bert,
        limit=48,
        targets=BERT_TARGETS,
    ),
    "xlm_roberta_score": dict(
        model=XLMRobertaForSequenceClassification,
        config=XLMRobertaConfig(vocab_size=len(text.xlm_roberta()), **{**ROBERTA, **SHORT}),
        tokenizer=text.xlm_roberta,
        limit=64,
        extra={"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0.1"}},
    ),
    "modernbert_score": dict(
        model=ModernBertForSequenceClassification,
        config=ModernBertConfig(
            vocab_size=len(text.modernbert()), **{**MODERNBERT, **SHORT}, classifier_pooling="mean"
        ),
        tokenizer=text.modernbert,
        limit=96,
        whole=True,
    ),
    "modernbert_classes": dict(
        model=ModernBertForSequenceClassification,
        config=ModernBertConfig(
            vocab_size=len(text.modernbert()),
            **{**MODERNBERT, **CLASSES},
            classifier_pooling="cls",
            classifier_bias=True,
            norm_bias=True,
        ),
        tokenizer=text.modernbert,
        limit=96,
    ),
    "mpnet_score": dict(
        model=MPNetForSequenceClassification,
        config=MPNetConfig(
            vocab_size=len(text.mpnet()),
            **{**COMMON, **NO_DROPOUT, **SHORT},
            max_position_embeddings=66,
            layer_norm_eps=1e-5,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        ),
        tokenizer=text.mpnet,
        limit=48,
        extra={"sbert_ce_default_activation_function": IDENTITY},
    ),
    "roberta_classes": dict(
        model=RobertaForSequenceClassification,
        config=RobertaConfig(vocab_size=len(text.roberta()), **{**ROBERTA, **CLASSES}),
        tokenizer=text.roberta,
        limit=64,
    ),
    "bert_classes": dict(
        model=BertForSequenceClassification,
        config=BertConfig(vocab_size=len(text.bert()), **{**BERT, **CLASSES}),
        tokenizer=text.bert,
        limit=64,
    ),
    "nomic_bert_score": dict(
        model=NomicBertForSequenceClassification,
        config=NomicBertConfig(
            vocab_size=len(text.bert()),
            **{**COMMON, **SHORT},
            max_position_embeddings=128,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        tokenizer=text.bert,
        limit=64,
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
}


def save(folder, family, seed):
    """Writes one folder."""
    model = randomize(family["model"](copy.deepcopy(family["config"])), seed)
    with torch.no_grad():  # lets the scores differ more
        for name, parameter in model.named_parameters():
            if name in ("classifier.weight", "classifier.out_proj.weight"):
                parameter.mul_(2.0)
    tokenizer = family["tokenizer"]()
    tokenizer.model_max_length = family["limit"]
    clean(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family.get("whole"):
        whole = load(folder)
        clean(folder)
        whole.save(str(folder), create_model_card=False)
        drop_model_card(folder)
    if "extra" in family:
        write_json(folder / "config.json", read_json(folder / "config.json") | family["extra"])


def load(folder):
    return CrossEncoder(str(folder), device="cpu", local_files_only=True).eval()


@torch.no_grad()
def scores(model):
    """The logits of every pair, and what the library makes of them; each pair runs alone."""
    logits = torch.cat([model(model.preprocess([list(pair)]))["scores"] for pair in QUESTIONS])
    settings = dict(batch_size=1, convert_to_tensor=True, show_progress_bar=False)
    predicted = model.predict([list(pair) for pair in QUESTIONS], **settings)
    values = {"logits": logits, "scores": predicted}
    if model.num_labels > 1:
        values["probabilities"] = model.predict([list(pair) for pair in QUESTIONS], apply_softmax=True, **settings)
    return values


def cases(folder, model):
    """The pairs and their tokens. `tokenizer.json` alone must give the same."""
    found = []
    for query, document in QUESTIONS:
        features = model.preprocess([[query, document]])
        ids, types = raw_ids(folder, query, model.max_length, document)
        case = {"query": query, "document": document, "input_ids": features["input_ids"][0].tolist()}
        assert ids == case["input_ids"], f"{query!r}, {document!r}: {ids} instead of {case['input_ids']}"
        if "token_type_ids" in features:
            case["token_type_ids"] = features["token_type_ids"][0].tolist()
            assert types == case["token_type_ids"]
        found.append(case)
    assert sum(len(case["input_ids"]) == model.max_length for case in found) >= 2
    return found


def binary(model, pairs, labels):
    """The cross entropy of the scores, of which the labels are the probabilities."""
    loss = BinaryCrossEntropyLoss(model)
    inner, forward = loss.bce_with_logits_loss, loss.bce_with_logits_loss.forward
    # The library's labels are of float32, and so would the loss of a model in float64 be.
    inner.forward = lambda logits, labels: forward(logits, labels.to(logits.dtype))
    return loss(list(zip(*pairs)), torch.tensor(labels))


def make_adapter(folder, name, family, model, plain, seed):
    """Writes the adapter of one folder, whose head stays as it is, and its references."""
    model_type = model[0].model.config.model_type
    model[0].model = adapters.wrap(model[0].model, family["targets"], model[0].model.config.num_hidden_layers)
    adapter = base.random_adapter(model[0].model, seed, std_of_b=0.15)
    base.set_adapter(model[0].model, adapter)
    batches = adapters.batches(QUESTIONS, LABELS)

    def compute(model):
        return {**scores(model), **adapters.gradients(model, binary, *batches[0])}

    values = checked("scores, loss and gradients with the adapter", model, model_type, compute)
    effect = (values["logits"] - plain["logits"]).abs().max().item()
    print(f"  the adapter moves the logits by {effect:.2f}; loss {values['loss']:.6f}")
    assert effect > 0.1
    adapters.save(folder, model[0].model, name, adapter)
    save_file(values, folder / "reference.safetensors")
    run = adapters.curve(model, model_type, binary, batches, seed + 100)
    save_file(run, folder / "curve_binary.safetensors")


def make(name, seed):
    """Writes one folder with all its references."""
    family, folder = FAMILIES[name], OUT / name
    save(folder, family, seed)
    model = load(folder)
    values = checked("scores", model, model[0].model.config.model_type, scores)
    print("  logits:", " ".join(f"{value:.2f}" for value in values["logits"].flatten()))
    assert values["logits"].std(0).min() > 0.1
    found = cases(folder, model)
    activation = type(model.activation_fn).__name__.lower()
    for case, label in zip(found, LABELS):
        case["label"] = label
    save_file(values, folder / "reference.safetensors")
    described = {"max_length": model.max_length, "activation": activation, "batch": adapters.BATCH, "cases": found}
    write_json(folder / "pairs.json", described)
    if "targets" in family:
        make_adapter(folder / "peft", name, family, model, values, seed + 500)
    print(f"  {size(folder) / 1000:.0f} kB")
