"""Where something besides the activation sees a layer's result, fuse_activation_ leaves both as they are."""

import bigmodel_ext as bm
import pytest
import torch
from layers import INT8
from torch import nn


class Doubled(bm.nn.Int8Linear):
    def forward(self, x):
        return super().forward(x) * 2 - 1


def subclass():
    layer = bm.nn.Int8Linear.from_float(nn.Linear(16, 16))
    layer.__class__ = Doubled
    return nn.Sequential(layer, nn.GELU())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(16, 16), nn.GELU()

    def forward(self, x):
        return self.act(self.linear(x))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)


class FromAbove(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x):
        return self.encoder(x) + self.encoder.block.linear(x)


class NestedSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.GELU()), nn.Linear(16, 16))

    def forward(self, x):
        return self.outer(x) + self.outer[0][0](x)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x)) + self.blocks[0].linear(x)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.out(self.linear(x))


class WholeAndPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.act = Part(), nn.GELU()

    def forward(self, x):
        return self.act(self.part.linear(x)) + self.part(x)


def quantized(make):
    return lambda: bm.quantize_(make(), INT8)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (subclass, "Doubled is a subclass, which may change the layer's result"),
        (quantized(FromAbove), "FromAbove.forward does more with encoder.block than call it"),
        (quantized(NestedSequential), "NestedSequential.forward does more with outer than call it"),
        (quantized(Blocks), "Blocks.forward does more with blocks than call it"),
        (quantized(WholeAndPart), "one of them belongs to a module that may be called as a whole"),
    ],
)
def test_outputs_stay(build, reason):
    model, x = build(), torch.randn(5, 16)
    expected = model(x)
    with pytest.warns(UserWarning, match=reason):
        bm.fuse_activation_(model)
    assert torch.equal(model(x), expected)
