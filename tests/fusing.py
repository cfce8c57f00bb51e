"""What the tests of fuse_activation_ share."""

import bigmodel_ext as bm
from layers import INT8, blocks, sparse
from torch import nn

CONVERSIONS = {
    "Int8Linear": lambda m: bm.quantize_(m, INT8),
    "SparseLinear": lambda m: bm.sparsify_(m, sparse(0.5)),
    "Int8SparseLinear": lambda m: bm.sparsify_(m, blocks(0.5)),
}


def quantized(model):
    return bm.quantize_(model, INT8)


def absorbed(model):
    return [fqn for fqn, m in model.named_modules() if isinstance(m, bm.nn.Absorbed)]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.act, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))
