"""Change the fields of the fixtures' config.json one at a time, and write what transformers makes of the same weights.

    python tests/parity/make_fields.py [OUTPUT]                     # tests/fixtures/fields.json
    python tests/parity/make_fields.py --with-errors --family NAME OUTPUT

A case is what was set and removed in the fixture's config.json, the tensors that the changed model has beside or in other
shapes than the fixture's (they hold `filled` of their name), and some logits of the last token (of encoders: some of the
hidden states), if they are not the fixture's. With `--with-errors` what transformers refuses is written, too, with its message. Read by
tests/model/fields.rs.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3", "granite", "granite_hybrid", "olmo2",
    "olmo3", "phi3", "phi3_longrope", "ministral3", "qwen3_moe", "mixtral", "olmoe", "gpt_oss", "lfm2",
]  # fmt: skip

ENCODERS = [
    "encoders/bert", "encoders/xlm_roberta", "encoders/mpnet", "encoders/modernbert", "encoders/modernbert_bias",
    "encoders/nomic_bert", "encoders/gemma3_embedding",
]  # fmt: skip

# Every KEPT-th logit of the last token is compared; of encoders, every KEPT_HIDDEN-th number of the hidden states.
KEPT = 40
KEPT_HIDDEN = 320

# Fields that say nothing about the numbers of a model in f32, or only how large it is.
LEFT_OUT = {
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "vocab_size", "hidden_size",
    "num_hidden_layers", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "id2label", "label2id",
    "attn_implementation", "return_dict", "problem_type", "chunk_size_feed_forward", "output_attentions",
    "output_hidden_states", "is_encoder_decoder", "quantization_config", "time_step_limit",
}  # fmt: skip

YARN = {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 300.0, "short_factor": [1.0 + i / 4 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 16,
}  # fmt: skip


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


def by_type(full, sliding):
    return {"full_attention": full, "sliding_attention": sliding}


PLAIN = {"rope_type": "default", "rope_theta": 300.0}
ROPES = [
    PLAIN,
    {"rope_theta": 300.0},
    {"rope_type": "default"},
    {},
    PLAIN | {"partial_rotary_factor": 0.5},
    PLAIN | {"factor": 4.0},
    PLAIN | {"attention_factor": 2.0},
    {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
    {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0, "attention_factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 4.0},
    {"rope_type": "proportional", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    YARN,
    without(YARN, "factor"),
    without(YARN, "original_max_position_embeddings"),
    YARN | {"factor": None},
    YARN | {"factor": 0.5},
    YARN | {"attention_factor": 2.0},
    YARN | {"attention_factor": 0.0},
    YARN | {"truncate": False},
    YARN | {"beta_fast": 4.0},
    YARN | {"beta_fast": 0.0},
    YARN | {"beta_slow": 2.0},
    YARN | {"beta_fast": 1.0, "beta_slow": 4.0},
    YARN | {"mscale": 2.0},
    YARN | {"mscale_all_dim": 2.0},
    YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
    YARN | {"mscale": 0.0, "mscale_all_dim": 0.5},
    YARN | {"partial_rotary_factor": 0.5},
    YARN | {"llama_4_scaling_beta": 0.5},
    LLAMA3,
    without(LLAMA3, "original_max_position_embeddings"),
    without(LLAMA3, "factor"),
    LLAMA3 | {"low_freq_factor": 4.0},
    LLAMA3 | {"attention_factor": 2.0},
    LLAMA3 | {"partial_rotary_factor": 0.5},
    LONG,
    LONG | {"factor": 4.0},
    LONG | {"factor": 0.5},
    LONG | {"attention_factor": 2.0},
    LONG | {"short_mscale": 2.0, "long_mscale": 2.0},
    LONG | {"original_max_position_embeddings": 128},
    without(LONG, "original_max_position_embeddings"),
    PLAIN | {"mrope_section": [2, 3, 3]},
    by_type(PLAIN, PLAIN | {"rope_theta": 50.0}),
    by_type(YARN, PLAIN),
    by_type(PLAIN, YARN),
    by_type(PLAIN | {"partial_rotary_factor": 0.5}, PLAIN),
    {"full_attention": YARN},
    {"sliding_attention": YARN},
]

# Tried in every family: fields by which models of other families, or older code, change what a model computes.
EVERYWHERE = {
    "attention_bias": [True, False],
    "qkv_bias": [True],
    "use_bias": [True],
    "bias": [True],
    "use_qkv_bias": [True],
    "add_qkv_bias": [True],
    "mlp_bias": [True],
    "lm_head_bias": [True],
    "attention_out_bias": [True],
    "hidden_act": ["gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "silu", "swish", "quick_gelu", "gelu_fast", "relu2", "mish"],
    "hidden_activation": ["gelu", "gelu_pytorch_tanh", "relu", "silu", None],
    "activation_function": ["relu"],
    "rms_norm_eps": [0.1, 1],
    "norm_eps": [0.1],
    "layer_norm_eps": [0.1],
    "layer_norm_epsilon": [0.1],
    "layernorm_epsilon": [0.1],
    "norm_epsilon": [0.1],
    "head_dim": [8, 32, None],
    "num_attention_heads": [2, 8],
    "num_key_value_heads": [1, 4, None],
    "intermediate_size": [64],
    "max_position_embeddings": [16, 32, 1024],
    "original_max_position_embeddings": [8, 16, 64],
    "rope_theta": [50.0, 300, None],
    "rope_local_base_freq": [50.0],
    "rope_parameters": ROPES + [None],
    "rope_scaling": [
        *ROPES,
        *({("type" if key == "rope_type" else key): value for key, value in rope.items()} for rope in (YARN, LLAMA3, LONG)),
        {"type": "linear", "factor": 4.0},
        {"type": "dynamic", "factor": 4.0},
        {"type": "su"} | without(LONG, "rope_type"),
        {"rope_type": "default", "type": "linear", "factor": 4.0},
        None,
    ],
    "partial_rotary_factor": [0.5, 1.0, 2],
    "rotary_pct": [0.5],
    "rotary_dim": [8],
    "rope_interleaved": [True],
    "use_rope": [False],
    "rope_percent": [0.5],
    "sliding_window": [4, 16, None, 0],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 100, None],
    "sliding_window_pattern": [1, 2, 3, 6, "LG"],
    "_sliding_window_pattern": [1, 2, 3],
    "attention_chunk_size": [4],
    "attention_window": [4],
    "layer_types": [
        ["full_attention"] * 3, ["sliding_attention"] * 3, ["sliding_attention", "full_attention", "sliding_attention"],
        ["full_attention", "sliding_attention", "full_attention"], ["chunked_attention"] * 3, ["full_attention"] * 2,
        ["full_attention"] * 4, ["linear_attention"] * 3, None,
    ],  # fmt: skip
    "no_rope_layers": [[0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 1], [], None],
    "no_rope_layer_interval": [1, 2, 3],
    "nope_layer_interval": [2],
    "tie_word_embeddings": [True, False, None],
    "tie_embedding": [True, False],
    "scale_embedding": [True],
    "embedding_multiplier": [2.0, 1, None],
    "attention_multiplier": [0.5, None],
    "residual_multiplier": [0.5, None],
    "logits_scaling": [2.0, None],
    "logit_scale": [2.0],
    "lm_head_multiplier": [2.0],
    "scale_emb": [2.0],
    "scale_depth": [2.0],
    "dim_model_base": [32],
    "mup_width_multiplier": [2.0],
    "attn_logit_softcapping": [0.5, None],
    "final_logit_softcapping": [2.0, None],
    "logits_soft_cap": [1.0],
    "query_pre_attn_scalar": [4, 100, None],
    "attention_scale": [0.5],
    "scale_attn_weights": [False],
    "use_bidirectional_attention": [True],
    "use_qk_norm": [True, False],
    "qk_layernorm": [True, False],
    "qk_norm": [True, False],
    "clip_qkv": [0.3],
    "attn_temperature_tuning": [True],
    "floor_scale": [4],
    "attn_scale": [0.5],
    "use_cache": [False],
    "attention_dropout": [0.5],
    "pretraining_tp": [2],
    "parallel_attn": [True],
    "use_parallel_residual": [True],
    "alibi": [True],
    "position_embedding_type": ["nope", "rope", "absolute", "alibi", None],
    "num_experts": [2, 8],
    "num_local_experts": [2, 8, 0, None],
    "num_experts_per_tok": [1, 3],
    "norm_topk_prob": [True, False, None],
    "moe_intermediate_size": [24],
    "shared_intermediate_size": [24],
    "shared_expert_intermediate_size": [24],
    "mlp_only_layers": [[0], [], None],
    "decoder_sparse_step": [2],
    "first_k_dense_replace": [1],
    "moe_layer_freq": [2],
    "router_jitter_noise": [0.1],
    "output_router_logits": [True],
    "router_aux_loss_coef": [0.5],
    "routed_scaling_factor": [2.0],
    "scoring_func": ["sigmoid"],
    "n_group": [2],
    "topk_group": [1],
    "swiglu_limit": [0.5],
    "swiglu_alpha": [1.0],
    "hidden_act_alpha": [1.0],
    "conv_L_cache": [2, 5],
    "conv_bias": [True, False],
    "conv_use_xavier_init": [True],
    "block_auto_adjust_ff_dim": [True, False, None],
    "block_ffn_dim_multiplier": [1.0, 2.0, None],
    "block_multiple_of": [8, 256],
    "block_ff_dim": [90],
    "block_dim": [32],
    "block_use_swiglu": [False],
    "block_use_xavier_init": [False],
    "full_attn_idxs": [[0], [], [0, 1, 2], None],
    "ffn_dim": [40],
    "layers_block_type": [["attention"] * 3, ["mamba"] * 3, ["attention"] * 2, None],
    "normalization_function": ["layernorm", "rmsnorm"],
    "norm_type": ["layernorm"],
    "embd_pdrop": [0.5],
    "resid_pdrop": [0.5],
    "cache_implementation": ["hybrid"],
    "attention_sinks": [False],
    "add_sink": [True],
    "mamba_n_heads": [4],
    "auto_map": [{"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}],
    "text_config": [{"hidden_size": 32}],
    "is_decoder": [True],
    "is_causal": [False],
    "add_cross_attention": [True],
    "type_vocab_size": [1, 4],
    "relative_attention_num_buckets": [16],
    "global_attn_every_n_layers": [1, 2],
    "local_attention": [4, 20],
    "global_rope_theta": [50.0],
    "local_rope_theta": [50.0],
    "norm_bias": [True],
    "initializer_range": [0.5],
    "max_length": [4],
}  # fmt: skip


def filled(name, shape):
    """Numbers that depend on the name alone: those of norms are near 1, all others small."""
    count = 1
    for size in shape:
        count *= size
    phase = float(sum(name.encode()))
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase) * 0.2
    return (values + (1.0 if "norm" in name else 0.0)).float().reshape(shape)


def changes(config):
    """The changes of one configuration: a field, and its new value or nothing to remove it."""
    own = type(transformers.AutoConfig.for_model(config["model_type"]))().to_dict()
    left_out = LEFT_OUT | ({"use_bidirectional_attention"} if config["model_type"] == "gemma3_text" else set())
    for name in sorted({*own, *config, *EVERYWHERE} - left_out):
        values = list(EVERYWHERE.get(name, []))
        value = config.get(name, own.get(name))
        if isinstance(value, bool):
            values.append(not value)
        elif isinstance(value, int):
            values += [value + 1, max(value // 2, 1)]
        elif isinstance(value, float):
            values += [value * 1.5 + 0.01]
        if name not in EVERYWHERE:
            values.append(None)
        kept = []
        for new in values:
            if (name not in config or new != config[name] or type(new) is not type(config[name])) and new not in kept:
                kept.append(new)
                yield {"set": {name: new}}
        if name in config:
            yield {"remove": name}
    for rope in ROPES:  # as older versions wrote them
        yield {"set": {"rope_scaling": without(rope, "rope_theta"), "rope_theta": 300.0}, "remove": "rope_parameters"}
    yield {"set": {"rope_theta": 300.0}, "remove": "rope_parameters"}
    yield {"set": {"rope_theta": 300.0, "partial_rotary_factor": 0.5}, "remove": "rope_parameters"}


def changed(config, change):
    config = {**copy.deepcopy(config), **change.get("set", {})}
    config.pop(change.get("remove"), None)
    return config


def logits(family, config, ids):
    """The logits of the last token, and the tensors that were filled."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        (Path(folder) / "model.safetensors").symlink_to(FIXTURES / family / "model.safetensors")
        torch.manual_seed(0)
        classes = transformers.AutoModel if family in ENCODERS else transformers.AutoModelForCausalLM
        model, info = classes.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, ignore_mismatched_sizes=True,
            output_loading_info=True, **({"experts_implementation": "eager"} if family in ("qwen3_moe", "mixtral", "olmoe", "gpt_oss") else {}),
        )  # fmt: skip
    names = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
    tensors = {}
    state = model.state_dict()
    for name in sorted(names):
        if "experts" in name and family in ("qwen3_moe", "mixtral", "olmoe"):
            raise NotImplementedError("experts in other shapes")
        tensors[name] = list(state[name].shape)
        state[name].copy_(filled(name, tensors[name]))
    with torch.no_grad():
        if family in ENCODERS:
            return model.eval()(ids[None]).last_hidden_state.flatten(), tensors
        return model.eval()(ids[None], use_cache=False).logits[0, -1], tensors


def texts_of(family):
    """The tokens that the fixture's reference was computed of; of encoders, the longest text's."""
    if family in ENCODERS:
        cases = json.loads((FIXTURES / family / "texts.json").read_text())["cases"]
        return torch.tensor(max((case["input_ids"] for case in cases), key=len))
    return load_file(FIXTURES / family / "reference.safetensors")["input_ids"].long()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=FIXTURES / "fields.json")
    parser.add_argument("--with-errors", action="store_true")
    parser.add_argument("--family", action="append")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    cases = []
    for family in args.family or FAMILIES + ENCODERS:
        native = FIXTURES / family / "config_native.json"  # where the fixture's own is that of other code
        config = json.loads((native if native.exists() else FIXTURES / family / "config.json").read_text())
        ids = texts_of(family)
        kept = KEPT_HIDDEN if family in ENCODERS else KEPT
        base, _ = logits(family, config, ids)
        if family in ENCODERS:  # what a case without numbers has
            cases.append({"family": family, "logits": [round(value, 5) for value in base[::kept].tolist()]})
        count = {"same": 0, "other": 0, "refused": 0}
        for change in changes(config):
            try:
                found, tensors = logits(family, changed(config, change), ids)
            except NotImplementedError:
                continue
            except Exception as error:  # noqa: BLE001, transformers raises of all kinds
                count["refused"] += 1
                if args.with_errors:
                    cases.append({"family": family, **change, "error": f"{type(error).__name__}: {error}"[:200]})
                continue
            same = torch.equal(found, base)
            count["same" if same else "other"] += 1
            case = {"family": family, **change, **({"tensors": tensors} if tensors else {})}
            if not same:
                case["logits"] = [round(value, 5) for value in found[::kept].tolist()]
            cases.append(case)
        print(family, count, file=sys.stderr)
    args.output.write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
