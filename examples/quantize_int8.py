"""INT8 four ways on a small transformer with outlier channels: what each costs in accuracy and saves in bytes."""

import copy

import torch
from bigmodel_ext import Int8DynamicActivationInt8WeightConfig
from bigmodel_ext.compress.quantize import (
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    SmoothQuantConfig,
    quantize_,
)
from bigmodel_ext.train.vit import ViT, ViTConfig

torch.manual_seed(0)
model = ViT(ViTConfig(width=128, depth=2, heads=4, mlp=512)).eval()
with torch.no_grad():
    for block in model.blocks:
        block.norm1.weight[:3] *= 30
        block.norm2.weight[:3] *= 30
calibration, images = torch.rand(64, 1, 8, 8), torch.rand(64, 1, 8, 8)
wanted = model(images)

for config in (
    Int8DynamicActivationInt8WeightConfig(rows=()),
    Int8StaticActivationInt8WeightConfig(observer="mse", rows=()),
    SmoothQuantConfig(rows=()),
    Int8WeightOnlyConfig(rows=()),
):
    quantized = copy.deepcopy(model)
    report = quantize_(quantized, config, forward_loop=lambda m: m(calibration))
    error = (quantized(images) - wanted).norm() / wanted.norm()
    smaller = sum(row.bytes_before for row in report.layers) / sum(row.bytes for row in report.layers)
    print(f"{type(config).__name__}: output error {error:.2%}, linear layers {smaller:.1f}x smaller")
print(report)
