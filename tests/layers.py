"""One of each converted layer, and models made of them, for tests that hold for all."""

import copy

import bigmodel_ext as bm
import torch
from torch import nn

IN, OUT = 37, 70  # no multiple of any tile

# Layers as small as those of the tests are faster dense: convert them without measuring.
INT8 = bm.Int8DynamicActivationInt8WeightConfig(rows=())


def sparse(sparsity: float | None) -> bm.UnstructuredSparseWeightConfig:
    return bm.UnstructuredSparseWeightConfig(sparsity, rows=())


def blocks(sparsity: float | None) -> bm.Int8BlockSparseWeightConfig:
    return bm.Int8BlockSparseWeightConfig(sparsity, rows=())


def dense(bias: bool = True, sparsity: float = 0.5, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(IN, OUT, bias=bias)
    with torch.no_grad():
        linear.weight[torch.rand(OUT, IN) < sparsity] = 0.0
    return linear.to(dtype)


def dense_blocks(**kw) -> nn.Linear:
    linear = dense(**kw)
    with torch.no_grad():
        linear.weight[:16, 16:32] = 0.0
        linear.weight[32:48] = 0.0
    return linear


def dense_two_four(**kw) -> nn.Linear:
    linear = dense(**kw)
    with torch.no_grad():
        linear.weight[~bm.convert.two_four_mask(linear.weight)] = 0.0
    return linear


def binary_coded(**kw) -> nn.Module:
    return bm.nn.BinaryCodedLinear.from_float(dense(**kw), bits=3, group_size=16)


LINEARS = {
    "int8": lambda **kw: bm.nn.Int8Linear.from_float(dense(**kw)),
    "binary_coded": binary_coded,
    "int8_static": lambda **kw: bm.nn.Int8Linear.from_float(dense(**kw), input_scale=0.03),
    "int8_weight_only": lambda **kw: bm.nn.Int8WeightOnlyLinear.from_float(dense(**kw)),
    "sparse": lambda **kw: bm.nn.SparseLinear.from_dense(dense(**kw)),
    "int8_sparse": lambda **kw: bm.nn.Int8SparseLinear.from_dense(dense(**kw)),
    "int8_semi_sparse": lambda **kw: bm.nn.Int8SemiSparseLinear.from_dense(dense_two_four(**kw)),
    "block_sparse": lambda **kw: bm.nn.BlockSparseLinear.from_dense(dense_blocks(**kw), blocksize=16),
    "semi_sparse": lambda **kw: bm.nn.SemiSparseLinear.from_dense(dense_two_four(**kw)),
}
FRESH = {
    "int8": lambda **kw: bm.nn.Int8Linear(IN, OUT, **kw),
    "binary_coded": lambda **kw: bm.nn.BinaryCodedLinear(IN, OUT, bits=3, group_size=16, **kw),
    "int8_static": lambda **kw: bm.nn.Int8Linear(IN, OUT, **kw, static_input=True),
    "int8_weight_only": lambda **kw: bm.nn.Int8WeightOnlyLinear(IN, OUT, **kw),
    "sparse": lambda **kw: bm.nn.SparseLinear(IN, OUT, **kw),
    "int8_sparse": lambda **kw: bm.nn.Int8SparseLinear(IN, OUT, **kw),
    "int8_semi_sparse": lambda **kw: bm.nn.Int8SemiSparseLinear(IN, OUT, **kw),
    "block_sparse": lambda **kw: bm.nn.BlockSparseLinear(IN, OUT, **kw),
    "semi_sparse": lambda **kw: bm.nn.SemiSparseLinear(IN, OUT, **kw),
}


def fused_dropout() -> nn.Module:
    layer = bm.nn.FusedDropout(0.25, "gelu", IN)
    nn.init.normal_(layer.bias)
    return layer


LAYERS = {**LINEARS, "dropout": fused_dropout}


class Mlp(nn.Module):
    """A residual block whose forward is a straight line."""

    def __init__(self, width: int, activation: nn.Module | None = None, p: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.fc1, self.act, self.drop1 = nn.Linear(width, 2 * width), activation or nn.GELU(), nn.Dropout(p)
        self.fc2, self.drop2 = nn.Linear(2 * width, width), nn.Dropout(p)

    def forward(self, x):
        return x + self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


def network(width: int = 24, p: float = 0.1) -> nn.Sequential:
    """A run of everything that conversion knows, in eval mode; takes [..., 7, width]."""
    run = nn.Sequential(nn.Linear(width, 40), nn.ReLU(), nn.Dropout(p), nn.Linear(40, width), nn.Dropout(p))
    encoder = nn.TransformerEncoderLayer(width, 2, dim_feedforward=48, dropout=p, batch_first=True)
    return nn.Sequential(run, Mlp(width, p=p), encoder, nn.BatchNorm1d(7), nn.Linear(width, 10)).eval()


def convert_all(model: nn.Sequential) -> nn.Sequential:
    bm.fuse_dropout_(model)
    bm.sparsify_(model, sparse(0.7), lambda m, fqn: fqn == "0.3")
    bm.sparsify_(model, blocks(0.5), lambda m, fqn: fqn == "1.fc2")
    bm.sparsify_(model, bm.BlockSparseWeightConfig(16, 0.5, rows=()), lambda m, fqn: fqn == "2.linear1")
    bm.sparsify_(model, bm.SemiSparseWeightConfig(prune=True, rows=()), lambda m, fqn: fqn == "2.linear2")
    return bm.quantize_(model, INT8)


def assert_same_in_eval(model, x):
    model.eval()
    expected = copy.deepcopy(model)(x)
    assert bm.fuse_dropout_(model) is model
    torch.testing.assert_close(model(x), expected)


def tensors(layer):
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
