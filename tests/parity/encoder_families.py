"""The tiny encoders of make_encoders.py: their configurations, their modules, and what each of them is there for."""

import encoder_text as text
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, MPNetConfig, MPNetModel
from transformers import Gemma3TextConfig, Gemma3TextModel, NomicBertConfig, NomicBertModel, Qwen3Config, Qwen3Model
from transformers import RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

WIDTH = 32
COMMON = dict(
    hidden_size=WIDTH, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, initializer_range=0.2
)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BERT = dict(**COMMON, **NO_DROPOUT, max_position_embeddings=64, pad_token_id=0)
ROBERTA = dict(
    **COMMON,
    **NO_DROPOUT,
    max_position_embeddings=66,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
)
MODERNBERT = dict(
    **COMMON,
    max_position_embeddings=128,
    local_attention=10,
    global_attn_every_n_layers=3,
    pad_token_id=3,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
E5 = {"query": "query: ", "passage": "passage: "}
NOMIC = {"search_query": "search_query: ", "search_document": "search_document: "}

BERT_TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]

# Folder: the model, its configuration, its tokenizer, the length at which texts are cut, pooling, and what follows it.
# `older` folders have their settings in the spelling of the published all-MiniLM. `without` holds changes of the
# configuration that must move the vectors visibly. `targets` are the layers of the adapter, if there is one, and `curves`
# the losses of its training runs.
FAMILIES = {
    "bert": dict(
        model=BertModel,
        seed=900_003,  # no unit of an MLP is shut for all texts, which would leave it gradients of mere rounding errors
        config=BertConfig(vocab_size=len(text.bert()), **{**BERT, "hidden_size": 40}),
        tokenizer=text.bert,
        limit=32,
        pooling="mean",
        normalize=True,
        older=True,
        traps=True,
        truncate=[16],
        targets=BERT_TARGETS,
        curves=["contrast", "cosine"],
        without=[dict(hidden_act="gelu_new"), dict(layer_norm_eps=1e-2)],
    ),
    "bert_cls": dict(
        model=BertModel,
        config=BertConfig(vocab_size=len(text.bert()), **{**BERT, "num_hidden_layers": 2}),
        tokenizer=text.bert,
        limit=64,
        pooling="cls",
        prompts={"query": "Represent this sentence for searching relevant passages: ", "passage": ""},
        without=[dict(hidden_act="gelu_new")],
    ),
    "bert_tanh": dict(
        model=BertModel,
        config=BertConfig(
            vocab_size=len(text.bert()),
            **{**BERT, "num_hidden_layers": 2, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2},
        ),
        tokenizer=text.bert,
        limit=32,
        pooling="mean",
        without=[dict(hidden_act="gelu"), dict(layer_norm_eps=1e-12)],
    ),
    "bert_relu": dict(
        model=BertModel,
        config=BertConfig(vocab_size=len(text.bert()), **{**BERT, "num_hidden_layers": 2, "hidden_act": "relu"}),
        tokenizer=text.bert,
        limit=32,
        pooling="mean",
        without=[dict(hidden_act="gelu")],
    ),
    "xlm_roberta": dict(
        model=XLMRobertaModel,
        config=XLMRobertaConfig(vocab_size=len(text.xlm_roberta()), **ROBERTA),
        tokenizer=text.xlm_roberta,
        limit=40,
        pooling="mean",
        normalize=True,
        prompts=E5,
        targets=BERT_TARGETS,
        without=[dict(hidden_act="gelu_new")],
    ),
    "roberta": dict(
        model=RobertaModel,
        config=RobertaConfig(vocab_size=len(text.roberta()), **{**ROBERTA, "num_hidden_layers": 2}),
        tokenizer=text.roberta,
        limit=64,
        pooling="mean",
        older=True,
        without=[dict(hidden_act="gelu_new")],
    ),
    "mpnet": dict(
        model=MPNetModel,
        config=MPNetConfig(
            vocab_size=len(text.mpnet()),
            **COMMON,
            **NO_DROPOUT,
            max_position_embeddings=66,
            layer_norm_eps=1e-5,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        ),
        tokenizer=text.mpnet,
        limit=48,
        pooling="mean",
        normalize=True,
        older=True,
        targets=["attn.q", "attn.k", "attn.v", "attn.o", "intermediate.dense", "output.dense"],
        without=[dict(hidden_act="gelu_new")],
    ),
    "modernbert": dict(
        model=ModernBertModel,
        config=ModernBertConfig(vocab_size=len(text.modernbert()), **MODERNBERT, global_rope_theta=2000.0, local_rope_theta=300.0),
        tokenizer=text.modernbert,
        limit=96,
        pooling="cls",
        normalize=True,
        prompts=E5,
        targets=["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"],
        curves=["contrast"],
        without=[
            dict(local_attention=8),
            dict(local_attention=12),
            dict(layer_types=["full_attention"] * 3),
            dict(layer_types=["sliding_attention"] * 3),
            dict(hidden_activation="silu"),
        ],
    ),
    "modernbert_bias": dict(
        model=ModernBertModel,
        config=ModernBertConfig(
            vocab_size=len(text.modernbert()),
            **{**MODERNBERT, "num_hidden_layers": 2, "global_attn_every_n_layers": 2},
            norm_bias=True,
            attention_bias=True,
            mlp_bias=True,
            norm_eps=1e-2,
            hidden_activation="gelu_pytorch_tanh",
        ),
        tokenizer=text.modernbert,
        limit=64,
        pooling="mean",
        without=[dict(norm_eps=1e-5), dict(hidden_activation="gelu")],
    ),
    "nomic_bert": dict(
        model=NomicBertModel,
        config=NomicBertConfig(
            vocab_size=len(text.bert()),
            **COMMON,
            max_position_embeddings=128,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        tokenizer=text.bert,
        limit=96,
        pooling="mean",
        prompts=NOMIC,
        older=True,
        truncate=[8, 16],
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        without=[
            dict(hidden_act="gelu"),
            dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        ],
    ),
    "qwen3_embedding": dict(
        model=Qwen3Model,
        config=Qwen3Config(
            vocab_size=len(text.qwen3()),
            **COMMON,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        architecture="Qwen3ForCausalLM",
        tokenizer=text.qwen3,
        limit=96,
        pooling="lasttoken",
        normalize=True,
        older=True,
        prompts={"query": "Instruct: Given a question, find the passage that answers it\nQuery:", "document": ""},
        truncate=[16],
        without=[dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0})],
    ),
    "gemma3_embedding": dict(
        model=Gemma3TextModel,
        config=Gemma3TextConfig(
            vocab_size=len(text.gemma()),
            **COMMON,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=12,
            sliding_window_pattern=2,
            use_bidirectional_attention=True,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        tokenizer=text.gemma,
        limit=96,
        pooling="mean",
        normalize=True,
        dense=[(WIDTH, 48), (48, 24)],
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        truncate=[8],
        without=[
            dict(sliding_window=10),
            dict(sliding_window=14),
            dict(use_bidirectional_attention=False, sliding_window=7),
            dict(layer_types=["full_attention"] * 3),
            dict(hidden_activation="silu"),
        ],
    ),
}


def published_nomic(config):
    """The configuration of a NomicBert as the published checkpoints spell it."""
    return dict(
        activation_function="swiglu",
        architectures=["NomicBertModel"],
        attn_pdrop=0.0,
        bos_token_id=None,
        causal=False,
        dense_seq_output=True,
        embd_pdrop=0.0,
        eos_token_id=None,
        fused_bias_fc=True,
        fused_dropout_add_ln=True,
        initializer_range=0.02,
        layer_norm_epsilon=config.layer_norm_eps,
        max_trained_positions=config.max_position_embeddings,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        model_type="nomic_bert",
        n_embd=config.hidden_size,
        n_head=config.num_attention_heads,
        n_inner=config.intermediate_size,
        n_layer=config.num_hidden_layers,
        n_positions=config.max_position_embeddings,
        pad_vocab_size_multiple=64,
        parallel_block=False,
        parallel_block_tied_norm=False,
        prenorm=False,
        qkv_proj_bias=False,
        reorder_and_upcast_attn=False,
        resid_pdrop=0.0,
        rotary_emb_base=int(config.rope_parameters["rope_theta"]),
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        rotary_scaling_factor=None,
        scale_attn_by_inverse_layer_idx=False,
        scale_attn_weights=True,
        torch_dtype="float32",
        type_vocab_size=config.type_vocab_size,
        use_cache=True,
        use_flash_attn=True,
        use_rms_norm=False,
        use_xentropy=True,
        vocab_size=config.vocab_size,
    )


def older_modernbert(config):
    """The configuration of a ModernBERT as transformers 4 and the published checkpoints spell it."""
    older = {name: value for name, value in config.items() if name not in ("rope_parameters", "layer_types", "dtype")}
    ropes = config["rope_parameters"]
    every = next((i for i, kind in enumerate(config["layer_types"]) if i and kind == "full_attention"), None)
    return older | dict(
        global_rope_theta=ropes["full_attention"]["rope_theta"],
        local_rope_theta=ropes["sliding_attention"]["rope_theta"],
        global_attn_every_n_layers=every or len(config["layer_types"]),
        position_embedding_type="absolute",
        repad_logits_with_grad=False,
        torch_dtype="float32",
        transformers_version="4.48.0",
    )

