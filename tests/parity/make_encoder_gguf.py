#!/usr/bin/env python3
"""Write tiny encoders of tests/fixtures/encoders as GGUF files, as llama.cpp's converter writes them: with gguf-py's own names of
tensors and keys, and tokenizers in the form of the file. tests/parity/README.md describes the files.

    python tests/parity/make_encoder_gguf.py            # rewrites tests/fixtures/encoders/gguf
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, MODEL_ARCH, MODEL_ARCH_NAMES, PoolingType, RopeScalingType, TokenType
from gguf import get_tensor_name_map, quants
from safetensors.numpy import load_file

ENCODERS = Path(__file__).resolve().parent.parent / "fixtures" / "encoders"
OUT = ENCODERS / "gguf"
BLANK = "\u2581"
POOLINGS = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS, "lasttoken": PoolingType.LAST}
# The file's name, its folder, its architecture, and the type of its matrices.
FILES = {
    "bert": ("bert", MODEL_ARCH.BERT, "F32"),
    "roberta": ("roberta", MODEL_ARCH.BERT, "F32"),
    "xlm_roberta": ("xlm_roberta", MODEL_ARCH.BERT, "F32"),
    "nomic_bert": ("nomic_bert", MODEL_ARCH.NOMIC_BERT, "F32"),
    "nomic_bert_q8_0": ("nomic_bert", MODEL_ARCH.NOMIC_BERT, "Q8_0"),
    "modernbert": ("modernbert", MODEL_ARCH.MODERN_BERT, "F32"),
    "gemma3_embedding": ("gemma3_embedding", MODEL_ARCH.GEMMA_EMBEDDING, "F32"),
    "qwen3_embedding": ("qwen3_embedding", MODEL_ARCH.QWEN3, "F32"),
}


def read(folder, name):
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def pooling(folder):
    """The pooling of a folder, in either spelling."""
    settings = read(folder, "1_Pooling/config.json")
    older = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
    (found,) = [name for name, flag in older.items() if settings.get("pooling_mode") == name or settings.get(flag)]
    return POOLINGS[found]


def size(config, *names):
    """A field of a configuration, by one of its names."""
    return next(config[name] for name in names if config.get(name) is not None)


def positions_before(folder, config):
    """The rows of positions before that of the first token, which converters cut off."""
    return config["pad_token_id"] + 1 if config["model_type"] in ("roberta", "xlm-roberta") else 0


def add_shape(writer, folder, config):
    context = size(config, "max_position_embeddings", "n_positions") - positions_before(folder, config)
    writer.add_context_length(context)
    writer.add_embedding_length(size(config, "hidden_size", "n_embd"))
    writer.add_feed_forward_length(size(config, "intermediate_size", "n_inner"))
    writer.add_block_count(size(config, "num_hidden_layers", "n_layer"))
    writer.add_head_count(size(config, "num_attention_heads", "n_head"))
    writer.add_pooling_type(pooling(folder))
    kind = config["model_type"]
    if kind == "qwen3":
        add_decoder(writer, config)
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        return
    if kind == "gemma3_text":
        add_decoder(writer, config)
        ropes = config["rope_parameters"]
        writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
        return
    writer.add_causal_attention(False)
    writer.add_layer_norm_eps(size(config, "layer_norm_eps", "layer_norm_epsilon", "norm_eps"))
    if kind == "nomic_bert":
        writer.add_rope_freq_base(config["rotary_emb_base"])
    if kind == "modernbert":
        writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        writer.add_sliding_window(config["local_attention"])
        writer.add_sliding_window_pattern(config["global_attn_every_n_layers"])
        writer.add_vocab_size(config["vocab_size"])


def add_decoder(writer, config):
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def special(tokenizer, *texts):
    """The number of the first of the tokens that there is."""
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return next(known[text] for text in texts if text in known)


def kinds(count, tokenizer, unknown=None):
    """The kind of each token: added ones are marks of the model."""
    marks = {token["id"] for token in tokenizer["added_tokens"]}
    of = lambda number: TokenType.CONTROL if number in marks else TokenType.NORMAL  # noqa: E731
    return [TokenType.UNKNOWN if number == unknown else of(number) for number in range(count)]


def add_word_pieces(writer, tokenizer, config):
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    types = kinds(len(vocab), tokenizer)

    def phantom(token, kind):
        if kind == TokenType.CONTROL:
            return token
        return token[2:] if token.startswith("##") else BLANK + token

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([phantom(token, kind) for (token, _), kind in zip(vocab, types)])
    writer.add_token_types(types)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_unk_token_id(special(tokenizer, "[UNK]"))
    writer.add_sep_token_id(special(tokenizer, "[SEP]"))
    writer.add_pad_token_id(special(tokenizer, "[PAD]"))
    writer.add_bos_token_id(special(tokenizer, "[CLS]"))
    writer.add_mask_token_id(special(tokenizer, "[MASK]"))


def add_pairs(writer, tokenizer, pre):
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types(kinds(len(vocab), tokenizer))
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(True)
    for role, texts in {
        "bos": ["[CLS]", "<s>"], "eos": ["[SEP]", "</s>"], "sep": ["[SEP]", "</s>"],
        "unk": ["[UNK]", "<unk>"], "pad": ["[PAD]", "<pad>"], "mask": ["[MASK]", "<mask>"],
    }.items():
        getattr(writer, f"add_{role}_token_id")(special(tokenizer, *texts))


def add_unigram(writer, tokenizer, config):
    vocab, unknown = tokenizer["model"]["vocab"], tokenizer["model"]["unk_id"]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in vocab])
    writer.add_token_scores([score for _, score in vocab])
    writer.add_token_types(kinds(len(vocab), tokenizer, unknown))
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_bos_token_id(special(tokenizer, "<s>"))
    writer.add_eos_token_id(special(tokenizer, "</s>"))
    writer.add_unk_token_id(unknown)
    writer.add_pad_token_id(special(tokenizer, "<pad>"))
    writer.add_mask_token_id(special(tokenizer, "<mask>"))


def add_tokenizer(writer, folder, config):
    tokenizer = read(folder, "tokenizer.json")
    kind = config["model_type"]
    if kind in ("bert", "nomic_bert"):
        add_word_pieces(writer, tokenizer, config)
    elif kind == "xlm-roberta":
        add_unigram(writer, tokenizer, config)
    elif kind in ("roberta", "modernbert"):
        add_pairs(writer, tokenizer, {"roberta": "roberta-bpe", "modernbert": "modern-bert"}[kind])
    else:  # their tiny tokenizers are of no kind that files name
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        vocab = tokenizer["model"]["vocab"]
        pieces = [piece for piece, _ in vocab] if isinstance(vocab, list) else sorted(vocab, key=vocab.get)
        pieces += [token["content"] for token in tokenizer["added_tokens"] if token["id"] >= len(pieces)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(pieces)
        writer.add_token_types(kinds(len(pieces), tokenizer))
        writer.add_string("tokenizer.huggingface.json", text)
        writer.add_eos_token_id(special(tokenizer, "<eos>", "<|im_end|>"))


def tensors(folder, config, arch):
    """The tensors under the file's names, as the converter changes them."""
    blocks = size(config, "num_hidden_layers", "n_layer")
    names = get_tensor_name_map(arch, blocks)
    for name, values in load_file(folder / "model.safetensors").items():
        if "position_ids" in name or name.startswith("pooler."):
            continue
        if name == "embeddings.position_embeddings.weight":
            values = values[positions_before(folder, config):]
        if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            values = values + 1
        inside = name.removeprefix("model.")
        found = names.get_name(name, (".weight", ".bias")) or names.get_name(inside, (".weight", ".bias"))
        found = found or names.get_name(f"model.{inside}", (".weight", ".bias"))
        assert found, name
        yield found, values.astype(np.float32)
    for number in (2, 3):
        file = folder / f"{number}_Dense" / "model.safetensors"
        if file.exists():
            yield f"dense_{number}.weight", load_file(file)["linear.weight"].astype(np.float32)


def make(name):
    place, arch, kind = FILES[name]
    folder = ENCODERS / place
    config = read(folder, "config.json")
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.gguf"
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[arch])
    writer.add_name(name)
    add_shape(writer, folder, config)
    add_tokenizer(writer, folder, config)
    for tensor, values in tensors(folder, config, arch):
        is_matrix = tensor.startswith("blk.") and values.ndim == 2 and values.shape[1] % 32 == 0
        if kind == "Q8_0" and (is_matrix or tensor == "token_embd.weight"):
            packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(tensor, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        elif kind == "Q8_0" and values.ndim == 2 and tensor.startswith("blk."):
            writer.add_tensor(tensor, values.astype(np.float16))
        else:
            writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{name}: {file.stat().st_size / 1000:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FILES, action="append", help="a file to write (default: all)")
    only = parser.parse_args().only
    for name in FILES:
        if only is None or name in only:
            make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
