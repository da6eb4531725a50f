"""The families with a mixture of experts, for make_fixtures.py: their tiny
configurations, and what their modelling code needs to stay in float64."""

import sys

import torch

# Adapters change attention alone: experts and routers are frozen.
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def rope(theta=10000.0):
    return {"rope_type": "default", "rope_theta": theta}


def yarn(truncate):
    return {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "truncate": truncate,
        "original_max_position_embeddings": 64,
    }


# As in make_fixtures.py. `seed` keeps the numbers of a family when others come before it; `loss_falls` is by how much
# the training run must lower the loss.
FAMILIES = {
    "qwen3_moe": dict(
        model_type="qwen3_moe",
        seed=900_000,
        modules=ATTENTION,
        loss_falls=0.2,
        config=dict(
            num_hidden_layers=2,
            head_dim=32,
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            rope_parameters=rope(),
        ),
        without=[dict(norm_topk_prob=False), dict(num_experts_per_tok=1), dict(num_experts_per_tok=3)],
    ),
    "mixtral": dict(
        model_type="mixtral",
        seed=910_000,
        modules=ATTENTION,
        loss_falls=0.2,
        config=dict(
            num_hidden_layers=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            intermediate_size=32,
            sliding_window=16,
            rope_parameters=rope(),
        ),
        without=[dict(num_experts_per_tok=1), dict(sliding_window=None), dict(sliding_window=15)],
    ),
    "olmoe": dict(
        model_type="olmoe",
        seed=920_000,
        modules=ATTENTION,
        loss_falls=0.2,
        config=dict(
            num_hidden_layers=2,
            num_experts=6,
            num_experts_per_tok=3,
            intermediate_size=24,
            norm_topk_prob=False,
            rope_parameters=rope(),
        ),
        without=[dict(norm_topk_prob=True), dict(num_experts_per_tok=2)],
    ),
    "gpt_oss": dict(
        model_type="gpt_oss",
        seed=930_000,
        modules=ATTENTION,
        loss_falls=0.2,
        config=dict(
            num_hidden_layers=2,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            intermediate_size=32,
            sliding_window=12,
            swiglu_limit=1.5,
            rope_parameters=yarn(truncate=False),
        ),
        without=[
            dict(num_experts_per_tok=1),
            dict(swiglu_limit=7.0),
            dict(sliding_window=11),
            dict(layer_types=["full_attention", "sliding_attention"]),
            dict(rope_parameters=yarn(truncate=True)),
        ],
    ),
}

# Prefixes of the names of classes.
PREFIXES = {"qwen3_moe": "Qwen3Moe", "mixtral": "Mixtral", "olmoe": "Olmoe", "gpt_oss": "GptOss"}


def eager(model_type):
    """The choice of the experts' plain implementation, which takes float64."""
    return {"experts_implementation": "eager"} if model_type in PREFIXES else {}


def gpt_oss_rope(self, x, position_ids):
    """Cosines and sines of half a head, in the type of `x`."""
    angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def softmax_router(self, hidden_states):
    """The router without its detour over float32, for float64."""
    hidden_states = hidden_states.reshape(-1, self.hidden_dim)
    logits = torch.nn.functional.linear(hidden_states, self.weight)
    weights, indices = torch.topk(torch.softmax(logits, dim=-1), self.top_k, dim=-1)
    if getattr(self, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return logits, weights, indices


def routers(model_type):
    """The classes whose forward pass a float64 rerun replaces, each with its replacement."""
    if model_type not in PREFIXES or model_type == "gpt_oss":
        return {}
    module = sys.modules[f"transformers.models.{model_type}.modeling_{model_type}"]
    return {getattr(module, PREFIXES[model_type] + "TopKRouter"): softmax_router}


def parameter(name, values):
    """Random numbers of the size that makes a sink or a router's bias matter."""
    return values * 5.0 if name.endswith(("sinks", "router.bias")) else values
