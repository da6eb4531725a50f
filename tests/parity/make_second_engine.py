#!/usr/bin/env python3
"""Write tests/fixtures/second_engine: tiny random checkpoints of families that only the second engine serves, an adapter of
one, and the tokens and log probabilities that transformers and PEFT give for them, in float32.

On a CPU the second engine rounds what it multiplies to 16 bits. So each checkpoint is the first one, by its seed, in whose
answers no two tokens are about as probable as each other.

    python tests/parity/make_second_engine.py
"""

import argparse
import itertools
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fixtures" / "second_engine"
VOCAB = 160
END = 2
PROMPTS = [[5, 9, 31, 7, 88, 12], [140, 3, 3, 61], list(range(20, 52))]
NEW_TOKENS = 16
# Least distance of the log probabilities of the two most probable tokens.
MARGIN = 0.05

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=END,
    pad_token_id=0,
    tie_word_embeddings=False,
)
# By family: configuration, model, settings, and the layers of an adapter.
FAMILIES = {
    "starcoder2": (
        transformers.Starcoder2Config,
        transformers.Starcoder2ForCausalLM,
        dict(
            hidden_act="gelu_pytorch_tanh",
            norm_epsilon=1e-5,
            use_bias=True,
            sliding_window=None,
            tie_word_embeddings=True,
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    ),
    "glm4": (
        transformers.Glm4Config,
        transformers.Glm4ForCausalLM,
        dict(hidden_act="silu", rms_norm_eps=1e-5, partial_rotary_factor=0.5, head_dim=16, attention_bias=True),
        [],
    ),
    "deepseek_v2": (
        transformers.DeepseekV2Config,
        transformers.DeepseekV2ForCausalLM,
        dict(
            hidden_act="silu",
            rms_norm_eps=1e-5,
            num_key_value_heads=4,
            attention_bias=False,
            q_lora_rank=None,
            kv_lora_rank=24,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            moe_layer_freq=1,
            routed_scaling_factor=1.0,
            norm_topk_prob=False,
            topk_method="greedy",
            scoring_func="softmax",
            n_group=1,
            topk_group=1,
        ),
        [],
    ),
}


def tokenizer():
    """One word for each token, so that a text shows the ids; with the bytes of GPT-2, which the second engine needs."""
    made = Tokenizer(models.BPE({f"Ġt{token}": token for token in range(VOCAB)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def random_model(config, model_class, seed):
    """A model with random weights, norms and biases included."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert torch.isfinite(parameter).all(), name
    return model


def random_adapter(model, modules, seed):
    """An adapter of these layers on `model`, which changes its answers."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return adapted


def answer(model, prompt):
    """The most probable tokens after `prompt`, one after the other, with their log probabilities; None if two of them are
    about as probable."""
    tokens, logprobs = list(prompt), []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            row = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
            best = row.topk(2)
            if best.values[0] - best.values[1] < MARGIN:
                return None
            token = int(best.indices[0])
            tokens.append(token)
            logprobs.append(float(best.values[0]))
            if token == END:
                break
    return {"prompt": prompt, "tokens": tokens[len(prompt) :], "logprobs": logprobs}


def clear_answers(make):
    """The first model that `make` makes of a seed whose answers are clear, and these."""
    for seed in itertools.count():
        model = make(seed)
        answers = [answer(model, prompt) for prompt in PROMPTS]
        if all(answers):
            return model, answers


def write_config(config, model_class, settings, path):
    """As the published checkpoints have it, which are older than `rope_parameters`."""
    fields = config.to_diff_dict() | {"architectures": [model_class.__name__], "dtype": "float32"}
    fields |= {"model_type": config.model_type, **COMMON, **settings}
    rope = fields.pop("rope_parameters", None) or config.rope_parameters
    fields["rope_theta"] = rope["rope_theta"]
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def write_answers(answers, path):
    path.write_text(json.dumps(answers) + "\n")


def write(folder, config_class, model_class, settings, modules):
    folder.mkdir(parents=True, exist_ok=True)
    config = config_class(**{**COMMON, **settings})
    model, answers = clear_answers(lambda seed: random_model(config, model_class, seed))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_config(config, model_class, settings, folder / "config.json")
    tokenizer().save(str(folder / "tokenizer.json"))
    write_answers(answers, folder / "reference.json")
    if not modules:
        return
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def adapted(seed):
        base = model_class(config).eval()
        base.load_state_dict(state)
        return random_adapter(base, modules, seed)

    adapter, after = clear_answers(adapted)
    assert all(old["tokens"] != new["tokens"] for old, new in zip(answers, after)), "the adapter changes nothing"
    adapter.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    settings["target_modules"].sort()  # PEFT keeps a set; its order changes from run to run
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    write_answers(after, folder / "adapter" / "reference.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for name, arguments in FAMILIES.items():
        write(out / name, *arguments)
        print(f"{name}: written to {out / name}")


if __name__ == "__main__":
    main()
