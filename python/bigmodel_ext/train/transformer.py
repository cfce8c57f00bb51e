"""A small causal transformer: pre-norm, rotary positions (Su et al. 2021), grouped-query attention (Ainslie et al.
2023) and a gated hidden layer (SwiGLU, Shazeer 2020). All its matrices are nn.Linear, so conversions and pruning apply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TransformerConfig:
    width: int
    depth: int
    heads: int  # of queries
    kv_heads: int  # of keys and values, each shared by heads / kv_heads of the queries'
    mlp: int  # width of the gated hidden layer
    vocabulary: int = 128
    context: int = 128  # the longest sequence

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width must be an even multiple of heads, got {self.width} and {self.heads}")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")


class CausalAttention(nn.Module):
    """``softmax(q k^T / sqrt(d) + mask) v`` per head, q and k rotated by their positions.

    How many heads there are is read off the projections, so heads may be taken out of them: whole groups, or equally
    many queries' heads from each group.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.width // config.heads
        self.q = nn.Linear(config.width, config.heads * self.head_dim, bias=False)
        self.k = nn.Linear(config.width, config.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(config.width, config.kv_heads * self.head_dim, bias=False)
        self.proj = nn.Linear(config.heads * self.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B,T,width]; cos and sin [T,head_dim]."""
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        shared = q.shape[1] // k.shape[1]
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


def _turned(x: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) turned by a quarter: (-x_{i + d/2}, x_i)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotations(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [tokens, head_dim] of the angles ``t * 10000^(-2 i / head_dim)``, for i and again for i + d/2."""
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.outer(torch.arange(tokens).float(), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


class CausalBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + down(silu(gate(norm(x))) * up(norm(x)))``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = CausalAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.gate = nn.Linear(config.width, config.mlp, bias=False)
        self.up = nn.Linear(config.width, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        hidden = self.norm2(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class Transformer(nn.Module):
    """Token ids [B,T] -> logits [B,T,vocabulary] of each next token; T may be anything up to the context.

    Raises:
        ValueError: T is above the context.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        cos, sin = rotations(config.context, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02) everywhere, what is added to the residual stream scaled by 1 / sqrt(2 depth) (Radford et al.
        2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                added = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.depth) ** 0.5 if added else 0.02)

    def features(self, tokens: Tensor) -> Tensor:
        """The last normalised states [B,T,width]."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"a sequence may have at most {self.config.context} tokens, got {length}")
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))
