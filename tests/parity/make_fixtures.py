#!/usr/bin/env python3
"""Write the tiny random checkpoints and the reference numbers of tests/fixtures.

Every number comes from transformers and PEFT in float32 on one CPU thread, from
fixed seeds. Everything is then computed a second time in float64, and the script
stops if the two disagree by more than LIMIT (see also LIMIT_TRAINED_ENTRY). It also stops if a fixture would not
notice that the feature it was made for (a sliding window, a rope scaling, a layer
without rope ...) is missing. tests/parity/README.md describes the files.

    python tests/parity/make_fixtures.py                # rewrites tests/fixtures
    python tests/parity/make_fixtures.py --out DIR      # writes elsewhere
    python tests/parity/make_fixtures.py --only gemma2  # one family
"""

import argparse
import contextlib
import copy
import json
import math
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import expert_families
import peft
import torch
import torch.nn.functional as F
import transformers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fixtures"

VOCAB = 160
HIDDEN = 64
FIRST_ORDINARY_TOKEN = 3  # 0 pads, 1 begins, 2 ends: none of them occurs in the data
GREEDY_PROMPT = 12
GREEDY_TOKENS = 24
TOP = 5
WEIGHT_STD = 0.2
LIMIT = 1e-5  # float32 against float64, relative to the largest entry of the tensor
# AdamW divides a gradient by its own size, so an entry whose gradient is nearly zero
# takes steps that follow its rounding error. The trained tensors as a whole keep to
# LIMIT (in the Euclidean norm), their single entries to this one.
LIMIT_TRAINED_ENTRY = 1e-4

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH_LENGTHS = [9, 17, 24, 13]
TARGET_SHARE = 0.6
# Texts of an anchor, its positive and a negative each.
TRIPLET_LENGTHS = [[5, 11, 8], [14, 3, 9], [7, 7, 16], [1, 12, 6], [10, 4, 13]]
SCALE = 20.0
STEPS = 20
WARMUP = 4
BASE_LR = 5e-3
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    initializer_range=WEIGHT_STD,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)


def plain_rope(theta):
    """The rope parameters of a model without frequency scaling."""
    return {"rope_type": "default", "rope_theta": theta}


SHORT_FACTORS = [1.0, 1.1, 1.25, 1.5, 1.6, 2.0]
LONG_FACTORS = [1.2, 2.0, 3.5, 5.0, 8.0, 12.0]


def long_rope(long_factors):
    """The rope parameters of Phi-4-mini: two tables, and three quarters of each head rotated."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": SHORT_FACTORS,
        "long_factor": long_factors,
    }


def ministral_rope(beta):
    """The rope parameters of Ministral 3: yarn, and queries that grow with every original context."""
    return {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "mscale": 1.2,
        "mscale_all_dim": 0.8,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": beta,
    }


def ropes_by_type(full, sliding):
    """The rope parameters of a model whose kinds of attention differ in them."""
    return {"full_attention": full, "sliding_attention": sliding}


# Gemma's attention, small. The factor on its embeddings is the root of HIDDEN, 8.
GEMMA_HEADS = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=12)
GRANITE_FACTORS = dict(
    embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=1.25
)

# Granite 4 without Mamba layers and experts. The width of these, `intermediate_size`, has no effect.
GRANITE_HYBRID = dict(
    **GRANITE_FACTORS,
    num_hidden_layers=2,
    layer_types=["attention", "attention"],
    num_local_experts=0,
    num_experts_per_tok=0,
    intermediate_size=48,
    shared_intermediate_size=112,
    time_step_limit=[0.0, 1.0],  # of Mamba; the default is infinite, which JSON has no number for
    tie_word_embeddings=True,
)

# The width of the MLP is 2/3 of 156, 104, times 1.05, rounded up to 112.
LFM2 = dict(
    intermediate_size=156,
    block_auto_adjust_ff_dim=True,
    block_ffn_dim_multiplier=1.05,
    block_multiple_of=16,
    norm_eps=1e-5,
)


# One entry per folder: the model type, what differs from COMMON, and the length of
# the reference sequence. `without` holds changes of the config that must change the
# logits visibly; this is how a fixture proves that it sees its own feature.
FAMILIES = {
    "llama": dict(
        model_type="llama",
        config=dict(rope_parameters=plain_rope(10000.0)),
        without=[dict(rope_parameters=plain_rope(500.0))],
    ),
    "llama3_rope": dict(
        model_type="llama",
        config=dict(
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        length=96,
        without=[dict(rope_parameters=plain_rope(500.0))],
    ),
    "llama_bias_heads": dict(
        model_type="llama",
        config=dict(
            attention_bias=True,
            mlp_bias=True,
            head_dim=24,
            rms_norm_eps=1e-3,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[dict(rms_norm_eps=1e-5)],
    ),
    "llama_linear_rope": dict(
        model_type="llama",
        config=dict(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
        without=[dict(rope_parameters=plain_rope(10000.0))],
    ),
    "llama_yarn": dict(
        model_type="llama",
        config=dict(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 300.0,
                "factor": 4.0,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 64,
            },
        ),
        without=[
            dict(rope_parameters=plain_rope(300.0)),
            dict(rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}),
        ],
    ),
    "mistral": dict(
        model_type="mistral",
        config=dict(sliding_window=16, head_dim=16, rope_parameters=plain_rope(10000.0)),
        without=[dict(sliding_window=None), dict(sliding_window=15), dict(sliding_window=17)],
    ),
    "qwen2": dict(
        model_type="qwen2",
        config=dict(
            num_hidden_layers=4,
            use_sliding_window=True,
            sliding_window=12,
            max_window_layers=2,
            tie_word_embeddings=True,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[
            dict(layer_types=["full_attention"] * 4),
            dict(layer_types=["sliding_attention"] * 4),
            dict(layer_types=["sliding_attention"] * 2 + ["full_attention"] * 2),
            dict(sliding_window=11),
            dict(sliding_window=13),
        ],
    ),
    "qwen3": dict(
        model_type="qwen3",
        config=dict(head_dim=32, tie_word_embeddings=True, rope_parameters=plain_rope(10000.0)),
        without=[dict(rope_parameters=plain_rope(500.0))],
    ),
    "smollm3": dict(
        model_type="smollm3",
        config=dict(
            num_hidden_layers=4,
            no_rope_layer_interval=3,
            tie_word_embeddings=True,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[dict(no_rope_layers=[1, 1, 1, 1]), dict(no_rope_layers=[0, 0, 1, 0])],
    ),
    "gemma": dict(
        model_type="gemma",
        config=dict(head_dim=24, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=plain_rope(10000.0)),
        without=[dict(hidden_act="silu"), dict(rope_parameters=plain_rope(500.0))],
    ),
    "gemma2": dict(
        model_type="gemma2",
        config=dict(
            **GEMMA_HEADS,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=6.0,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[
            dict(attn_logit_softcapping=None),
            dict(final_logit_softcapping=None),
            dict(query_pre_attn_scalar=16),
            dict(hidden_activation="silu"),
            dict(layer_types=["full_attention"] * 3),
            dict(layer_types=["full_attention", "sliding_attention", "full_attention"]),
            dict(sliding_window=11),
            dict(sliding_window=13),
        ],
    ),
    "gemma3": dict(
        model_type="gemma3_text",
        config=dict(
            **GEMMA_HEADS,
            sliding_window_pattern=3,
            rope_parameters=ropes_by_type(plain_rope(5000.0), plain_rope(300.0)),
        ),
        without=[
            dict(query_pre_attn_scalar=16),
            dict(hidden_activation="silu"),
            dict(layer_types=["full_attention"] * 3),
            dict(layer_types=["sliding_attention"] * 3),
            dict(sliding_window=11),
            dict(sliding_window=13),
            dict(rope_parameters=ropes_by_type(plain_rope(300.0), plain_rope(300.0))),
            dict(rope_parameters=ropes_by_type(plain_rope(5000.0), plain_rope(5000.0))),
        ],
    ),
    "gemma3_linear_rope": dict(
        model_type="gemma3_text",
        config=dict(
            **GEMMA_HEADS,
            sliding_window_pattern=2,
            final_logit_softcapping=6.0,
            rope_parameters=ropes_by_type(
                {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0}, plain_rope(300.0)
            ),
        ),
        without=[
            dict(final_logit_softcapping=None),
            dict(rope_parameters=ropes_by_type(plain_rope(5000.0), plain_rope(300.0))),
        ],
    ),
    "granite": dict(
        model_type="granite",
        config=dict(**GRANITE_FACTORS, tie_word_embeddings=True, rope_parameters=plain_rope(10000.0)),
        without=[
            dict(embedding_multiplier=1.0),
            dict(attention_multiplier=0.25),
            dict(residual_multiplier=1.0),
            dict(logits_scaling=1.0),
        ],
    ),
    "olmo2": dict(
        model_type="olmo2",
        config=dict(rope_parameters=plain_rope(10000.0)),
        without=[dict(rope_parameters=plain_rope(500.0))],
    ),
    "olmo3": dict(
        model_type="olmo3",
        config=dict(
            num_hidden_layers=4,
            intermediate_size=48,
            sliding_window=12,
            rope_parameters=ropes_by_type(
                {
                    "rope_type": "yarn",
                    "rope_theta": 500000.0,
                    "factor": 4.0,
                    "beta_fast": 4.0,
                    "beta_slow": 0.25,
                    "original_max_position_embeddings": 64,
                },
                plain_rope(500000.0),
            ),
        ),
        without=[
            dict(layer_types=["full_attention"] * 4),
            dict(layer_types=["sliding_attention"] * 4),
            dict(sliding_window=11),
            dict(sliding_window=13),
            dict(rope_parameters=ropes_by_type(plain_rope(500000.0), plain_rope(500000.0))),
        ],
    ),
    "phi3": dict(
        model_type="phi3",
        seed=510000,
        config=dict(
            num_hidden_layers=2,
            sliding_window=16,
            rope_parameters={**plain_rope(10000.0), "partial_rotary_factor": 0.5},
        ),
        without=[
            dict(rope_parameters=plain_rope(10000.0)),
            dict(sliding_window=None),
            dict(sliding_window=15),
            dict(sliding_window=17),
        ],
    ),
    "phi3_longrope": dict(
        model_type="phi3",
        seed=520000,
        config=dict(
            num_hidden_layers=2,
            tie_word_embeddings=True,
            original_max_position_embeddings=20,
            rope_parameters=long_rope(LONG_FACTORS),
        ),
        without=[
            dict(rope_parameters=long_rope(SHORT_FACTORS)),
            dict(rope_parameters={**long_rope(LONG_FACTORS), "attention_factor": 1.0}),
        ],
        modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "ministral3": dict(
        model_type="ministral3",
        seed=530000,
        config=dict(num_hidden_layers=2, head_dim=24, rope_parameters=ministral_rope(0.3)),
        without=[
            dict(rope_parameters=ministral_rope(0.0)),
            dict(rope_parameters={**ministral_rope(0.3), "attention_factor": 1.0}),
            dict(rope_parameters={**ministral_rope(0.3), "rope_type": "default"}),
        ],
    ),
    "granite_hybrid": dict(
        model_type="granitemoehybrid",
        seed=540000,
        config=dict(**GRANITE_HYBRID, position_embedding_type="rope", rope_parameters=plain_rope(10000.0)),
        without=[
            dict(embedding_multiplier=1.0),
            dict(attention_multiplier=0.25),
            dict(residual_multiplier=1.0),
            dict(logits_scaling=1.0),
            dict(position_embedding_type="nope"),
            dict(rope_parameters=plain_rope(500.0)),
        ],
        modules=["q_proj", "k_proj", "v_proj", "o_proj", "input_linear", "output_linear"],
    ),
    "granite_hybrid_nope": dict(
        model_type="granitemoehybrid",
        seed=550000,
        config=dict(**GRANITE_HYBRID, position_embedding_type="nope", rope_parameters=plain_rope(10000.0)),
        without=[dict(position_embedding_type="rope")],
    ),
    "lfm2": dict(
        model_type="lfm2",
        seed=560000,
        config=dict(
            **LFM2,
            layer_types=["conv", "full_attention", "conv"],
            conv_L_cache=3,
            tie_word_embeddings=True,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[dict(rope_parameters=plain_rope(500.0)), dict(norm_eps=1e-1)],
        modules=["q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"],
    ),
    "lfm2_bias": dict(
        model_type="lfm2",
        seed=570000,
        config=dict(
            **LFM2,
            layer_types=["full_attention", "conv", "conv"],
            conv_L_cache=4,
            conv_bias=True,
            tie_word_embeddings=False,
            rope_parameters=plain_rope(10000.0),
        ),
        without=[dict(norm_eps=1e-1)],
    ),
}
ADAPTER_FAMILIES = ["llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "granite", "granite_hybrid", "olmo2", "phi3_longrope", "ministral3", "lfm2"]
FAMILIES |= expert_families.FAMILIES
ADAPTER_FAMILIES += expert_families.FAMILIES
# Their norms hold their weights minus 1.
PLUS_ONE = ["gemma", "gemma2", "gemma3_text"]


# ---------------------------------------------------------------- float64 reruns


@contextlib.contextmanager
def float64_rerun(model_type):
    """Make the modelling code of `model_type` stay in the dtype of its weights.

    transformers computes norms, softmax and rope angles in float32 whatever the
    dtype of the weights. For a float64 rerun these three are replaced. (The rope
    frequencies themselves keep their float32 values.)
    """
    name = model_type.removesuffix("_text")
    module = sys.modules[f"transformers.models.{name}.modeling_{name}"]
    prefix = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "smollm3": "SmolLM3",
        "phi3": "Phi3",
        "ministral3": "Ministral3",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
        "gemma3_text": "Gemma3",
        "granite": "Granite",
        "granitemoehybrid": "GraniteMoeHybrid",
        "lfm2": "Lfm2",
        "olmo2": "Olmo2",
        "olmo3": "Olmo3",
    }
    prefix |= expert_families.PREFIXES
    norm = getattr(module, prefix[model_type] + "RMSNorm")
    rope = getattr(module, prefix[model_type] + "RotaryEmbedding")

    def norm_forward(self, x):
        plus_one = model_type in PLUS_ONE
        weight, eps = (1.0 + self.weight, self.eps) if plus_one else (self.weight, self.variance_epsilon)
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def rope_forward(self, x, position_ids, layer_type=None):
        if self.rope_type == "longrope":
            saved[1](self, x, position_ids)  # chooses the table
        of_type = f"{layer_type}_" if layer_type else ""
        scaling = getattr(self, of_type + "attention_scaling")
        angles = position_ids[..., None].to(x.dtype) * getattr(self, of_type + "inv_freq").to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling

    def attention(layer, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **_):
        key = module.repeat_kv(key, layer.num_key_value_groups)
        value = module.repeat_kv(value, layer.num_key_value_groups)
        scores = query @ key.transpose(2, 3) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = torch.softmax(scores, dim=-1)
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    if model_type == "gpt_oss":  # its attention stays in the dtype by itself
        rope_forward, attention = expert_families.gpt_oss_rope, module.eager_attention_forward
    saved = norm.forward, rope.forward, module.eager_attention_forward
    norm.forward, rope.forward, module.eager_attention_forward = norm_forward, rope_forward, attention
    routers = expert_families.routers(model_type)
    saved_routers = {router: router.forward for router in routers}
    for router, router_forward in routers.items():
        router.forward = router_forward
    try:
        yield
    finally:
        norm.forward, rope.forward, module.eager_attention_forward = saved
        for router, router_forward in saved_routers.items():
            router.forward = router_forward


def relative_difference(value, exact):
    """The largest difference, relative to the largest entry of `exact`."""
    value, exact = value.double(), exact.double()
    scale = exact.abs().max().item()
    difference = (value - exact).abs().max().item()
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale


def assert_close(what, values, exacts, limit=LIMIT):
    """Compare dictionaries of float32 and float64 tensors and print the worst."""
    assert values.keys() == exacts.keys(), what
    worst_name, worst = "", 0.0
    for name, value in values.items():
        assert torch.isfinite(value).all(), f"{what}: {name} is not finite"
        assert exacts[name].dtype == torch.float64, f"{what}: {name} was not recomputed in float64"
        difference = relative_difference(value, exacts[name])
        if difference >= worst:
            worst_name, worst = name, difference
    print(f"  float32 against float64, {what}: {worst:.1e} ({worst_name})")
    assert worst <= limit, f"{what}: {worst_name} is off by {worst:.3e}"


# -------------------------------------------------------------------- base models


def random_tensor(generator, shape, std=1.0, mean=0.0):
    return torch.randn(shape, generator=generator) * std + mean


def build_model(model_type, settings, seed):
    """A float32 model with every parameter, norms and biases included, random."""
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **settings})
    config.dtype = "float32"
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", **expert_families.eager(model_type)
    )
    model = model.float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                uniform = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((-0.2 if model_type in PLUS_ONE else 0.8) + 0.4 * uniform)
            else:
                values = random_tensor(generator, parameter.shape, WEIGHT_STD)
                parameter.copy_(expert_families.parameter(name, values))
    return model


def load_with_config(folder, config):
    """The checkpoint of `folder` under another config."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        attn_implementation="eager",
        dtype=torch.float32,
        **expert_families.eager(config.model_type),
    ).eval()


@torch.no_grad()
def forward(model, ids):
    """Last hidden state (after the final norm) and logits of one sequence."""
    out = model(ids[None], output_hidden_states=True, use_cache=False)
    return {"hidden": out.hidden_states[-1][0], "logits": out.logits[0]}


def log_probabilities(logits, ids):
    """Of each token after the first: its own, and the TOP most probable ones.

    Token t is predicted by the logits at t-1. The softmax is float64 in any case, so
    that the float64 rerun shows the error of the logits alone.
    """
    every = logits[:-1].double().log_softmax(-1)
    top = every.topk(TOP)
    # Two tokens that are nearly equal could change places.
    assert (top.values[:, :-1] - top.values[:, 1:]).min() > 1e-5
    own = every.gather(1, ids[1:, None])[:, 0]
    return {"logprobs": own, "top_logprobs": top.values}, {"top_ids": top.indices}


def has_two_tables(model):
    """True if the length of a sequence decides how its positions are rotated."""
    return model.config.rope_parameters.get("rope_type") == "longrope"


@torch.no_grad()
def greedy(model, prompt, count):
    """Greedy continuation without a cache: tokens and the smallest lead of a winner.

    With two tables, the length that the sequence will reach decides for all of its
    steps: it is filled up with tokens that the read row does not see.
    """
    ids, lead = prompt, math.inf
    for _ in range(count):
        missing = len(prompt) + count - 1 - len(ids) if has_two_tables(model) else 0
        filled = F.pad(ids, (0, missing), value=FIRST_ORDINARY_TOKEN)
        best = model(filled[None], use_cache=False).logits[0, len(ids) - 1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, best.indices[:1]])
    return ids[len(prompt):], lead


def choose_sequence(model, length, seed):
    """A random sequence whose greedy continuation is unambiguous and not dull."""
    for attempt in range(1000):
        generator = torch.Generator().manual_seed(seed + attempt)
        ids = torch.randint(FIRST_ORDINARY_TOKEN, VOCAB, (length,), generator=generator)
        tokens, lead = greedy(model, ids[:GREEDY_PROMPT], GREEDY_TOKENS)
        ordinary = tokens.min().item() >= FIRST_ORDINARY_TOKEN
        if ordinary and lead > 0.02 and len(tokens.unique()) >= 10:
            return ids, tokens, lead
    raise AssertionError("no seed gives a usable sequence")


def old_style(config):
    """The spelling of config.json before transformers 5.

    Rope stands in rope_theta and rope_scaling, the dtype in torch_dtype, and what can
    be derived (layer types, layers without rope) is left out.
    """
    config = copy.deepcopy(config)
    rope = config.pop("rope_parameters")
    by_type = "full_attention" in rope
    if by_type:
        if config["model_type"] == "gemma3_text":
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope["rope_type"]
    if kind == "default":
        config["rope_scaling"] = None
    elif kind == "llama3" or by_type:
        config["rope_scaling"] = rope
    else:  # these were spelt "type" when they came
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "granitemoehybrid":  # its types had other names
        config["layers_block_type"] = ["attention"] * len(config["layer_types"])
    if config["model_type"] == "lfm2":
        config["full_attn_idxs"] = [i for i, kind in enumerate(config["layer_types"]) if kind != "conv"]
        config["block_ff_dim"] = config.pop("intermediate_size")
        config["tie_embedding"] = config.pop("tie_word_embeddings")
    config.pop("layer_types", None)
    config.pop("no_rope_layers", None)
    config["transformers_version"] = "4.45.0"
    return dict(sorted(config.items()))


def check_rope_bands(model, rope):
    """The scaled frequencies must fall into all bands that the scaling tells apart."""
    if model.model.rotary_emb is None:
        return
    name = "inv_freq"
    if "full_attention" in rope:
        rope, name = rope["full_attention"], "full_attention_inv_freq"
    scaled = getattr(model.model.rotary_emb, name)
    plain = rope["rope_theta"] ** (-torch.arange(len(scaled)) / len(scaled))
    ratio = (plain / scaled).tolist()
    print("  unscaled / scaled frequencies:", " ".join(f"{r:.3f}" for r in ratio))
    if rope["rope_type"] in ("llama3", "yarn"):
        assert any(abs(r - 1) < 1e-4 for r in ratio)
        assert any(abs(r - rope["factor"]) < 1e-4 for r in ratio)
        assert any(1.01 < r < rope["factor"] - 0.01 for r in ratio)


def make_lengths(folder, model, ids):
    """Write the logits of sequences as long as the original context, one token shorter and one longer."""
    original = model.config.original_max_position_embeddings
    lengths = (original - 1, original, original + 1)
    logits = {str(length): forward(model, ids[:length])["logits"] for length in lengths}
    short, edge, long = logits.values()
    assert (edge[:-1] - short).abs().max() < 1e-4, "the original context itself has the short table"
    assert (long[:-1] - edge).abs().max() > 0.02, "one more token has the long table"
    save_file(logits, folder / "lengths.safetensors")


def make_base(folder, family, seed):
    """Write one base folder; return the model and the sequence."""
    model = build_model(family["model_type"], family["config"], seed)
    ids, tokens, lead = choose_sequence(model, family.get("length", 48), seed + 1)
    reference = forward(model, ids)
    with float64_rerun(family["model_type"]):
        exact = forward(copy.deepcopy(model).double(), ids)
        assert_close("forward pass", reference, exact)
    logprobs, top_ids = log_probabilities(reference["logits"], ids)
    assert_close("log probabilities", logprobs, log_probabilities(exact["logits"], ids)[0])
    logprobs = {name: value.float() for name, value in logprobs.items()}
    spread = reference["logits"].std(-1)
    print(f"  logits: spread {spread.min():.2f} to {spread.max():.2f}; greedy leads by {lead:.3f}")
    assert spread.min() > 1.0 and spread.max() < 5.0
    check_rope_bands(model, model.config.rope_parameters)

    folder.mkdir(parents=True, exist_ok=True)
    if has_two_tables(model):
        make_lengths(folder, model, ids)
    else:  # else generate changes the table on the way
        cached = model.generate(
            ids[None, :GREEDY_PROMPT],
            attention_mask=torch.ones(1, GREEDY_PROMPT, dtype=torch.long),
            max_new_tokens=GREEDY_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        assert cached[0, GREEDY_PROMPT:].equal(tokens), "generation with a cache differs"

    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    old = json.dumps(old_style(config), indent=2) + "\n"
    (folder / "config_old_style.json").write_text(old)
    reread = load_with_config(folder, transformers.AutoConfig.for_model(**json.loads(old)))
    assert forward(reread, ids)["logits"].equal(reference["logits"]), "old spelling differs"

    for change in family["without"]:
        changed = load_with_config(folder, transformers.AutoConfig.for_model(**{**config, **change}))
        effect = (forward(changed, ids)["logits"] - reference["logits"]).abs().max().item()
        print(f"  logits move by {effect:.3f} with {change}")
        assert effect > 0.02, f"the fixture does not notice {change}"

    save_file(
        {"input_ids": ids, "greedy": tokens, **reference, **logprobs, **top_ids}, folder / "reference.safetensors"
    )
    return model, ids


# ----------------------------------------------------------------------- adapters


def adapter_parameters(model):
    """The adapter's parameters under the names of the tensors in its file."""
    parameters = {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert parameters.keys() == get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    return dict(sorted(parameters.items()))


def set_adapter(model, values):
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(values[name])


def random_adapter(model, seed, std_of_b):
    """A as PEFT draws it (uniform, bound 1/sqrt(in)), B normal; zero for std_of_b 0."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in adapter_parameters(model).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            values[name] = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound
        else:
            values[name] = random_tensor(generator, parameter.shape, std_of_b)
    return values


def make_batch(seed):
    """Sequences of unequal lengths, and which of their tokens are to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    sequences, masks = [], []
    for length in BATCH_LENGTHS:
        sequences.append(torch.randint(FIRST_ORDINARY_TOKEN, VOCAB, (length,), generator=generator))
        first = max(1, length - round(TARGET_SHARE * length))
        masks.append((torch.arange(length) >= first).long())
    return sequences, masks


def batch_loss(model, sequences, masks):
    """Cross entropy summed over all targets of the batch / number of targets.

    Token t is predicted by the logits at t-1. Each sequence runs alone, so there is
    no padding.
    """
    total = sum(
        (F.cross_entropy(model(ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none") * mask[1:]).sum()
        for ids, mask in zip(sequences, masks)
    )
    return total / sum(int(mask.sum()) for mask in masks)


def loss_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    loss = batch_loss(model, *batch)
    loss.backward()
    gradients = {f"grad.{name}": p.grad.clone() for name, p in adapter_parameters(model).items()}
    return {"loss": loss.detach(), **gradients}


def make_triplets(seed):
    """Texts of unequal lengths, those of a triplet one after the other; positives begin as their anchors do."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for lengths in TRIPLET_LENGTHS:
        triplet = [torch.randint(FIRST_ORDINARY_TOKEN, VOCAB, (length,), generator=generator) for length in lengths]
        shared = min(lengths[0], lengths[1] - 1)
        triplet[1][:shared] = triplet[0][:shared]
        texts += triplet
    return texts


def contrast_and_gradients(model, texts):
    """The loss of sentence-transformers over vectors that are means of the last hidden states at length 1.

    Each text runs alone, so there is no padding.
    """
    model.zero_grad(set_to_none=True)
    states = [model(ids[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0] for ids in texts]
    vectors = F.normalize(torch.stack([rows.mean(0) for rows in states]), dim=-1)
    columns = [vectors[place::3] for place in range(3)]
    loss = MultipleNegativesRankingLoss(model=None, scale=SCALE).compute_loss_from_embeddings(columns, None)
    loss.backward()
    gradients = {f"grad.{name}": p.grad.clone() for name, p in adapter_parameters(model).items()}
    scores = columns[0] @ torch.cat(columns[1:]).T
    accuracy = (scores.argmax(-1) == torch.arange(len(scores))).to(vectors.dtype).mean()
    return {"loss": loss.detach(), "accuracy": accuracy, "vectors": vectors.detach(), **gradients}


def schedule(step):
    """Factor of the learning rate in the step with this index, counted from 0."""
    return (step + 1) / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)


def train(model, init, batch):
    """The training run: losses before each update, norms before clipping, last values."""
    set_adapter(model, init)
    parameters = adapter_parameters(model)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=BASE_LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY, foreach=False
    )
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = BASE_LR * schedule(step)
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(model, *batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRAD_NORM, foreach=False))
        losses.append(loss.detach())
        optimizer.step()
    final = {f"final.{name}": p.detach().clone() for name, p in parameters.items()}
    return {"losses": torch.stack(losses), "grad_norms": torch.stack(norms), **final}


def split(mapping, prefix):
    """The entries whose names start with `prefix`, and the others."""
    chosen = {name: value for name, value in mapping.items() if name.startswith(prefix)}
    return chosen, {name: value for name, value in mapping.items() if name not in chosen}


def make_training_run(model, family, batch, seed):
    """The first drawn start (B = 0) whose run is well conditioned, and that run."""
    double = copy.deepcopy(model).double()
    for attempt in range(100):
        init = random_adapter(model, seed + attempt, std_of_b=0.0)
        trained, figures = split(train(model, init, batch), "final.")
        with float64_rerun(family["model_type"]):
            exact_trained, exact_figures = split(train(double, init, batch), "final.")
        by_norm = max(((trained[n].double() - e).norm() / e.norm()).item() for n, e in exact_trained.items())
        by_entry = max(relative_difference(trained[n], e) for n, e in exact_trained.items())
        if by_norm <= LIMIT and by_entry <= LIMIT_TRAINED_ENTRY:
            break
    else:
        raise AssertionError("no seed gives a well conditioned training run")
    assert_close("losses and norms of the training run", figures, exact_figures)
    assert_close("trained tensors, by entry", trained, exact_trained, LIMIT_TRAINED_ENTRY)
    print(f"  float32 against float64, trained tensors, by norm: {by_norm:.1e} (start {attempt})")
    return init, {**figures, **trained}


def make_adapter(folder, name, family, base, ids, seed):
    """Write the PEFT adapter of one base folder and its references."""
    base_logits = forward(base, ids)["logits"]
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            bias="none",
            target_modules=family.get("modules", LORA_MODULES),
            task_type="CAUSAL_LM",
        ),
    ).eval()
    adapter = random_adapter(model, seed, std_of_b=0.1)
    batch = make_batch(seed + 1)
    set_adapter(model, adapter)
    # Some anchors shall be right, and some not.
    for attempt in range(100):
        triplets = make_triplets(seed + 3 + attempt)
        if 0.0 < contrast_and_gradients(model, triplets)["accuracy"] < 1.0:
            break

    def compute(model):
        set_adapter(model, adapter)
        logits = {"logits": forward(model, ids)["logits"]}
        return logits, loss_and_gradients(model, batch), contrast_and_gradients(model, triplets)

    logits, gradients, contrast = compute(model)
    with float64_rerun(family["model_type"]):
        exact_logits, exact_gradients, exact_contrast = compute(copy.deepcopy(model).double())
    assert_close("adapter logits", logits, exact_logits)
    assert_close("loss and gradients", gradients, exact_gradients)
    assert_close("loss and gradients of triplets", contrast, exact_contrast)
    print(f"  loss of triplets {contrast['loss']:.4f}, accuracy {contrast['accuracy']:.2f}")
    assert 0.0 < contrast["accuracy"] < 1.0 and all(g.abs().max() > 1e-4 for g in contrast.values())
    init, curve = make_training_run(model, family, batch, seed + 2)
    effect = (logits["logits"] - base_logits).abs().mean().item()
    print(f"  adapter moves the logits by {effect:.2f} on average; loss {gradients['loss']:.6f}")
    print("  losses:", " ".join(f"{x:.4f}" for x in curve["losses"]))
    print("  norms: ", " ".join(f"{x:.3f}" for x in curve["grad_norms"]))
    assert effect > 0.2
    assert all(g.abs().max() > 1e-4 for g in gradients.values())
    assert curve["losses"][-1] < curve["losses"][0] - family.get("loss_falls", 0.5)

    set_adapter(model, adapter)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"].sort()  # PEFT keeps a set; its order changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == adapter.keys() and all(saved[n].equal(adapter[n]) for n in saved)

    sequences, masks = batch
    reference = {
        "input_ids": ids,
        "batch_tokens": torch.cat(sequences),
        "batch_lengths": torch.tensor(BATCH_LENGTHS),
        "batch_targets_mask": torch.cat(masks),
        **logits,
        **gradients,
    }
    save_file(reference, folder / "reference.safetensors")
    save_file(
        {
            "texts": torch.cat(triplets),
            "lengths": torch.tensor([len(text) for text in triplets]),
            **contrast,
        },
        folder / "triplets.safetensors",
    )
    save_file({**{f"init.{n}": v for n, v in init.items()}, **curve}, folder / "curve.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: tests/fixtures)")
    parser.add_argument("--only", choices=FAMILIES, action="append", help="a family to write (default: all)")
    arguments = parser.parse_args()
    out = arguments.out
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for number, (name, family) in enumerate(FAMILIES.items()):
        if arguments.only and name not in arguments.only:
            continue
        print(name)
        seed = family.get("seed", 10000 * (number + 1))
        model, ids = make_base(out / name, family, seed)
        if name in ADAPTER_FAMILIES:
            make_adapter(out / name / "peft", name, family, model, ids, seed + 5000)
        base_size = sum(f.stat().st_size for f in (out / name).iterdir() if f.is_file())
        size = sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file())
        print(f"  {base_size / 1000:.0f} kB, {size / 1000:.0f} kB with the adapter")
        assert base_size < 700_000
    return 0


if __name__ == "__main__":
    sys.exit(main())
