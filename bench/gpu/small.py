"""Small shapes of every CUDA kernel, for compute-sanitizer: only that they run is looked at."""

from __future__ import annotations

import gpu


def run() -> None:
    import bigmodel_ext as bm
    import torch
    from bigmodel_ext import functional as F

    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for m, features in ((3, 70), (5, 1304)):
            x, residual = (
                torch.randn(m, features, device=gpu.DEVICE, dtype=dtype, requires_grad=True) for _ in range(2)
            )
            bias, weight = (torch.randn(features, device=gpu.DEVICE, requires_grad=True) for _ in range(2))
            seed = torch.tensor(5, device=gpu.DEVICE)
            y, h = F.fused_dropout_norm(x, 0.3, True, bias, "gelu", residual, weight, seed=seed)
            (y.sum() + h.sum()).backward()
            F.fused_dropout(x, 0.3, bias=bias, activation="relu", residual=residual, seed=seed).sum().backward()
    for n, k in ((70, 200), (129, 528)):
        linear = torch.nn.Linear(k, n).to(gpu.DEVICE)
        pruned = torch.nn.Linear(k, n).to(gpu.DEVICE)
        with torch.no_grad():
            pruned.weight.view(-1, 4)[:, :2] = 0
        layers = [
            bm.nn.Int8Linear.from_float(linear), bm.nn.Int8WeightOnlyLinear.from_float(linear),
            bm.nn.BinaryCodedLinear.from_float(linear, bits=2, group_size=64), bm.nn.SparseLinear.from_dense(pruned),
            bm.nn.SemiSparseLinear.from_dense(pruned), bm.nn.BlockSparseLinear.from_dense(pruned, blocksize=16),
            bm.nn.Int8SparseLinear.from_dense(pruned), bm.nn.Int8SemiSparseLinear.from_dense(pruned),
        ]  # fmt: skip
        with torch.inference_mode():
            for m in (1, 9, 40):
                for dtype in (torch.float32, torch.bfloat16):
                    for layer in layers:
                        layer(torch.randn(m, k, device=gpu.DEVICE, dtype=dtype))
    torch.cuda.synchronize()
