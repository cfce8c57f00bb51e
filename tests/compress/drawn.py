"""Models, inputs and configs that the tests of probabilistic quantization share."""

import torch
from bigmodel_ext.compress.quantize import ProbabilisticInt8Config
from torch import nn


def correlated(rows, width, seed=0):
    """Inputs of which a few directions hold most."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)[:, None]
    return torch.randn(rows, width, generator=generator) @ mix


def mlp(width=64):
    return nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, width), nn.Tanh(), nn.Linear(width, 10)).eval()


X = correlated(256, 64)


def run(model):
    return model(X)


def config(bits=4.0, **kw):
    return ProbabilisticInt8Config(bits, rows=(), **kw)
