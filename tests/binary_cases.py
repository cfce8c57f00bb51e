"""Arguments of binary_coded_linear."""

import torch
from bigmodel_ext.formats import binary_coded as format


def codes(n, k, bits, group_size):
    """signs and alpha."""
    spins = torch.randint(0, 2, (n, bits, k), dtype=torch.int8) * 2 - 1
    return format.pack(spins), (torch.randn(n, -(-k // group_size), bits) * 0.02).half()


def make(m, n, k, bits=3, group_size=64, dtype=torch.float32, bias_dtype=torch.float32):
    """x, packed, scales, bias, out_features, group_size: the raw op's arguments."""
    x = (torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]).to(dtype)
    signs, alpha = codes(n, k, bits, group_size)
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype)
    return x, format.to_panels(signs, k, group_size), format.scales_to_panels(alpha), bias, n, group_size
