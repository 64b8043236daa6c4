"""The Llama architecture at the size of tiny, in plain PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(vocab=1024, hidden=192, layers=5, heads=6, kv_heads=2, head_dim=32, ffn=384, context=2048, eps=1e-5, base=10000.0)


def norm(x, weight, eps=CONFIG["eps"]):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x, cos, sin):
    """Rotates neighbouring pairs, which is what GGUF's llama architecture stores."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
        self.c = c
        self.attn_norm = nn.Parameter(torch.ones(c["hidden"]))
        self.ffn_norm = nn.Parameter(torch.ones(c["hidden"]))
        self.q = nn.Linear(c["hidden"], h, bias=False)
        self.k = nn.Linear(c["hidden"], kv, bias=False)
        self.v = nn.Linear(c["hidden"], kv, bias=False)
        self.o = nn.Linear(h, c["hidden"], bias=False)
        self.gate = nn.Linear(c["hidden"], c["ffn"], bias=False)
        self.up = nn.Linear(c["hidden"], c["ffn"], bias=False)
        self.down = nn.Linear(c["ffn"], c["hidden"], bias=False)

    def forward(self, x, cos, sin):
        c = self.c
        b, t, _ = x.shape
        y = norm(x, self.attn_norm)
        q = rotate(self.q(y).view(b, t, c["heads"], c["head_dim"]).transpose(1, 2), cos, sin)
        k = rotate(self.k(y).view(b, t, c["kv_heads"], c["head_dim"]).transpose(1, 2), cos, sin)
        v = self.v(y).view(b, t, c["kv_heads"], c["head_dim"]).transpose(1, 2)
        group = c["heads"] // c["kv_heads"]
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = norm(x, self.ffn_norm)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Tiny(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c["vocab"], c["hidden"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden"]))
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 1 / math.sqrt(2 * c["layers"]) if name.endswith(("o.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=scale * (0.02 if "embed" in name else 1 / math.sqrt(p.shape[1])))
        angle = torch.outer(torch.arange(c["context"]), c["base"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"]))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        """Logits [batch, tokens, vocab] of ids [batch, tokens]."""
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return norm(x, self.norm) @ self.embed.weight.T
