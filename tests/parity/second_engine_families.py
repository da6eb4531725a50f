"""The families of `make_second_engine.py`: of each a tiny configuration, said as the published files say theirs."""

import re

import torch
import transformers

VOCAB = 160
END = 2
TOKENS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=END, pad_token_id=0)
COMMON = TOKENS | dict(
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)
SMALL = COMMON | dict(
    hidden_size=32, intermediate_size=48, max_position_embeddings=1024, hidden_act="silu", rms_norm_eps=1e-5
)
YARN = dict(type="yarn", factor=4.0, beta_fast=32, beta_slow=1, original_max_position_embeddings=256)
LATENT = dict(
    num_key_value_heads=4,
    attention_bias=False,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
)
EXPERTS = dict(n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=12, first_k_dense_replace=1)
SECTIONS = dict(rope_scaling=dict(type="mrope", mrope_section=[2, 1, 1]))
PLACES = dict(image_token_id=150, video_token_id=151, vision_start_token_id=152, vision_end_token_id=153)
EYES = dict(depth=1, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, hidden_size=16)
EYES_3 = EYES | dict(
    intermediate_size=16, out_hidden_size=32, num_position_embeddings=16, in_channels=3, deepstack_visual_indexes=[0]
)
QWEN_3 = SMALL | dict(
    head_dim=8, rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[2, 1, 1])
)
GEMMA = TOKENS | dict(
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    global_head_dim=16,
    max_position_embeddings=1024,
    initializer_range=0.2,
    sliding_window=512,
    hidden_activation="gelu_pytorch_tanh",
    rms_norm_eps=1e-6,
    final_logit_softcapping=30.0,
    tie_word_embeddings=True,
    rope_parameters=dict(
        full_attention=dict(rope_type="proportional", rope_theta=1000000.0, partial_rotary_factor=0.25),
        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
    ),
)
GEMMA_EYES = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    global_head_dim=8,
    patch_size=4,
    position_embedding_size=16,
    pooling_kernel_size=2,
    default_output_length=4,
)
GEMMA_PLACES = dict(
    image_token_id=150,
    audio_token_id=151,
    video_token_id=152,
    boi_token_id=153,
    eoi_token_id=154,
    boa_token_id=155,
    eoa_token_index=156,
    audio_config=None,
    tie_word_embeddings=True,
)


def turned_experts(tensors):
    """The published files have the experts' matrices the other way round than this version of transformers saves them."""
    for name in tensors:
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensors[name].transpose(1, 2).contiguous()


def unused_keys(tensors):
    """Blocks that take keys and values of earlier ones have tensors for their own nevertheless."""
    for name in list(tensors):
        block = re.search(r"language_model\.layers\.([01])\.self_attn", name)
        for more in (2, 4) if block else ():
            other = name.replace(f".layers.{block[1]}.", f".layers.{int(block[1]) + more}.")
            tensors.setdefault(other, torch.randn_like(tensors[name]))


class Family:
    """One with its model's class, its `config.json`, the layers of an adapter, and what published tensors have otherwise."""

    def __init__(self, model_class, fields, adapter=(), publish=None):
        self.model_class, self.adapter, self.publish = model_class, list(adapter), publish
        kind = model_class.config_class.model_type
        self.fields = {"architectures": [model_class.__name__], "model_type": kind, "dtype": "float32", **fields}


FAMILIES = {
    "starcoder2": Family(
        transformers.Starcoder2ForCausalLM,
        COMMON
        | dict(
            hidden_act="gelu_pytorch_tanh",
            norm_epsilon=1e-5,
            use_bias=True,
            sliding_window=None,
            tie_word_embeddings=True,
        ),
        adapter=["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    ),
    "glm4": Family(
        transformers.Glm4ForCausalLM,
        COMMON
        | dict(hidden_act="silu", rms_norm_eps=1e-5, partial_rotary_factor=0.5, head_dim=16, attention_bias=True),
    ),
    "deepseek_v2": Family(
        transformers.DeepseekV2ForCausalLM,
        SMALL
        | LATENT
        | EXPERTS
        | dict(
            rope_scaling=YARN | dict(mscale=0.707, mscale_all_dim=0.707),
            q_lora_rank=None,
            n_routed_experts=6,
            moe_layer_freq=1,
            routed_scaling_factor=1.0,
            norm_topk_prob=False,
            topk_method="greedy",
            scoring_func="softmax",
            n_group=1,
            topk_group=1,
        ),
    ),
    "deepseek_v3": Family(
        transformers.DeepseekV3ForCausalLM,
        SMALL
        | LATENT
        | EXPERTS
        | dict(
            rope_scaling=YARN | dict(mscale=1.0, mscale_all_dim=1.0),
            q_lora_rank=12,
            n_routed_experts=8,
            moe_layer_freq=1,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            topk_method="noaux_tc",
            scoring_func="sigmoid",
            n_group=4,
            topk_group=2,
        ),
    ),
    "glm4_moe": Family(
        transformers.Glm4MoeForCausalLM,
        SMALL
        | EXPERTS
        | dict(
            n_routed_experts=6,
            head_dim=8,
            attention_bias=True,
            partial_rotary_factor=0.5,
            use_qk_norm=True,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            n_group=1,
            topk_group=1,
        ),
    ),
    "glm4_moe_lite": Family(
        transformers.Glm4MoeLiteForCausalLM,
        SMALL
        | LATENT
        | EXPERTS
        | dict(
            q_lora_rank=12,
            v_head_dim=12,
            n_routed_experts=6,
            routed_scaling_factor=1.8,
            norm_topk_prob=True,
            topk_method="noaux_tc",
            n_group=1,
            topk_group=1,
            mlp_layer_types=["dense", "sparse"],
        ),
    ),
    "granitemoehybrid": Family(
        transformers.GraniteMoeHybridForCausalLM,
        SMALL
        | dict(
            layer_types=["mamba", "attention"],
            shared_intermediate_size=24,
            intermediate_size=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            mamba_n_heads=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_d_head=8,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_chunk_size=8,
            mamba_conv_bias=True,
            mamba_proj_bias=False,
            attention_multiplier=0.25,
            embedding_multiplier=2.0,
            residual_multiplier=0.5,
            logits_scaling=0.5,
            position_embedding_type="nope",
        ),
    ),
    # The fields of the text stand at the top.
    "qwen2_vl": Family(
        transformers.Qwen2VLForConditionalGeneration,
        SMALL
        | SECTIONS
        | PLACES
        | dict(
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=2,
            vision_config=EYES | dict(embed_dim=16, hidden_size=32, mlp_ratio=1, in_channels=3),
        ),
    ),
    "qwen2_5_vl": Family(
        transformers.Qwen2_5_VLForConditionalGeneration,
        SMALL
        | SECTIONS
        | PLACES
        | dict(
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=2,
            vision_config=EYES
            | dict(
                intermediate_size=16,
                out_hidden_size=32,
                hidden_act="silu",
                window_size=16,
                fullatt_block_indexes=[0],
                in_channels=3,
            ),
        ),
    ),
    "qwen3_vl": Family(
        transformers.Qwen3VLForConditionalGeneration,
        PLACES | dict(tie_word_embeddings=False, text_config=QWEN_3, vision_config=EYES_3),
    ),
    "qwen3_vl_moe": Family(
        transformers.Qwen3VLMoeForConditionalGeneration,
        PLACES
        | dict(
            tie_word_embeddings=False,
            text_config=QWEN_3
            | dict(
                moe_intermediate_size=12,
                num_experts=4,
                num_experts_per_tok=2,
                decoder_sparse_step=1,
                mlp_only_layers=[],
                norm_topk_prob=True,
            ),
            vision_config=EYES_3,
        ),
        publish=turned_experts,
    ),
    "gemma4": Family(
        transformers.Gemma4ForConditionalGeneration,
        GEMMA_PLACES
        | dict(
            text_config=GEMMA
            | dict(
                num_hidden_layers=2,
                layer_types=["sliding_attention", "full_attention"],
                num_global_key_value_heads=1,
                attention_k_eq_v=True,
                num_kv_shared_layers=0,
                hidden_size_per_layer_input=0,
                enable_moe_block=True,
                num_experts=4,
                top_k_experts=2,
                moe_intermediate_size=12,
            ),
            vision_config=GEMMA_EYES,
        ),
    ),
    "gemma4_small": Family(
        transformers.Gemma4ForConditionalGeneration,
        GEMMA_PLACES
        | dict(
            text_config=GEMMA
            | dict(
                num_hidden_layers=6,
                layer_types=["sliding_attention", "full_attention"] * 3,
                attention_k_eq_v=False,
                num_kv_shared_layers=4,
                hidden_size_per_layer_input=4,
                vocab_size_per_layer_input=VOCAB,
                use_double_wide_mlp=True,
            ),
            vision_config=GEMMA_EYES,
        ),
        publish=unused_keys,
    ),
    "mllama": Family(
        transformers.MllamaForConditionalGeneration,
        dict(
            image_token_index=VOCAB,
            tie_word_embeddings=False,
            text_config=SMALL
            | dict(
                num_hidden_layers=3,
                cross_attention_layers=[1],
                rope_scaling=dict(
                    rope_type="llama3",
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=256,
                ),
            ),
            vision_config=dict(
                hidden_size=16,
                hidden_act="gelu",
                num_hidden_layers=2,
                num_global_layers=1,
                attention_heads=2,
                num_channels=3,
                intermediate_size=16,
                vision_output_dim=32,
                image_size=28,
                patch_size=14,
                norm_eps=1e-5,
                max_num_tiles=2,
                intermediate_layers_indices=[0],
                supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
            ),
        ),
    ),
}
