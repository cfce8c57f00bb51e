"""A vision transformer for small single-channel images (Dosovitskiy et al. 2021): pre-norm, mean-pooled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ViTConfig:
    width: int
    depth: int
    heads: int
    mlp: int  # width of the hidden layer
    patch: int = 4
    image: int = 8
    classes: int = 10


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); ReLU, which costs least where matrix products are compressed."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.fc1(self.norm2(x)).relu_())


class ViT(nn.Module):
    """[B,1,S,S] -> logits [B,classes]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.image // config.patch
        self.embed = nn.Linear(config.patch**2, config.width)
        self.position = nn.Parameter(torch.randn(grid**2, config.width) * 0.02)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """The pooled representation [B,width]: what a student may imitate besides the logits."""
        patch = self.config.patch
        grid = self.config.image // patch
        tokens = images.reshape(-1, grid, patch, grid, patch).transpose(2, 3).reshape(-1, grid**2, patch**2)
        return self.norm(self.blocks(self.embed(tokens) + self.position)).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
