"""NomicBert with the layers of its published code (modeling_hf_nomic_bert.py of nomic-ai/nomic-bert-2048), written anew
from its formulas for make_encoders.py. transformers has split its fused layer and renamed the others, so that adapters
trained with the published code name other layers than those trained with transformers."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

TARGETS = ["attn.Wqkv", "attn.out_proj", "mlp.fc11", "mlp.fc12", "mlp.fc2"]


class Attention(nn.Module):
    """Attention to all tokens, whose heads are rotated as a whole, first half against second half."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.heads, self.base = config.num_attention_heads, config.rope_parameters["rope_theta"]
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def rotate(self, x):
        half = x.shape[-1] // 2
        places = torch.arange(half, dtype=torch.float32, device=x.device) * 2 / x.shape[-1]
        frequencies = (1.0 / self.base**places).to(x.dtype)
        angles = torch.arange(x.shape[2], device=x.device).to(x.dtype)[:, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def forward(self, states, mask):
        batch, length, width = states.shape
        fused = self.Wqkv(states).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self.rotate(query), self.rotate(key), value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """SwiGLU, whose gate is the second layer."""

    def __init__(self, config):
        super().__init__()
        self.fc11 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc12 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states):
        return self.fc2(self.fc11(states) * F.silu(self.fc12(states)))


class Block(nn.Module):
    """Attention and MLP with the norms behind them."""

    def __init__(self, config):
        super().__init__()
        self.attn, self.mlp = Attention(config), Mlp(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states, mask):
        states = self.norm1(states + self.attn(states, mask))
        return self.norm2(states + self.mlp(states))


class Published(nn.Module):
    """The whole model, with the tensors of a folder."""

    def __init__(self, folder, config):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, config.hidden_size),
            }
        )
        self.emb_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layers": blocks})
        self.load_state_dict(load_file(folder / "model.safetensors"))
        self.eval()

    def forward(self, input_ids, attention_mask, token_type_ids=None, **_):
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        states = self.embeddings["word_embeddings"](input_ids) + self.embeddings["token_type_embeddings"](types)
        states = self.emb_ln(states)
        for block in self.encoder["layers"]:
            states = block(states, attention_mask[:, None, None, :].bool())
        return BaseModelOutput(last_hidden_state=states)
