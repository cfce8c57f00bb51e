"""Convolutions, dense and converted, for the tests of their layers and of their conversion."""

import bigmodel_ext as bm
import torch
from torch import nn

SHAPES = {
    "plain": {"in_channels": 5, "out_channels": 70, "kernel_size": 3, "padding": 1},
    "strided": {
        "in_channels": 6,
        "out_channels": 8,
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "dilation": 2,
        "groups": 2,
    },
    "same": {"in_channels": 4, "out_channels": 4, "kernel_size": (2, 4), "padding": "same", "groups": 4},
    "valid": {"in_channels": 3, "out_channels": 9, "kernel_size": 1, "padding": "valid"},
}
MAKE = {"int8": bm.nn.Int8Conv2d.from_float, "sparse": bm.nn.SparseConv2d.from_dense}
CLASS = {"int8": bm.nn.Int8Conv2d, "sparse": bm.nn.SparseConv2d}


def dense_conv(shape="plain", bias=True, dtype=torch.float32, sparsity=0.5):
    conv = nn.Conv2d(**SHAPES[shape], bias=bias)
    with torch.no_grad():
        conv.weight[torch.rand(conv.weight.shape) < sparsity] = 0.0
    return conv.to(dtype)


def layer_of(kind, shape="plain", **kw):
    return MAKE[kind](dense_conv(shape, **kw))


def image(shape="plain", b=2):
    return torch.randn(b, SHAPES[shape]["in_channels"], 10, 9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depth, self.point = nn.Conv2d(16, 16, 3, padding="same", groups=16), nn.Conv2d(16, 70, 1)
        self.reflect, self.head = nn.Conv2d(70, 8, 3, padding=1, padding_mode="reflect"), nn.Linear(8, 4)
        self.eval()

    def forward(self, x):
        return self.head(self.reflect(self.point(self.depth(self.stem(x)))).mean((2, 3)))
