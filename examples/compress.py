"""One call: prune, choose kernels and quantize a model of one's own under an accuracy budget; save and reload it."""

import tempfile
from pathlib import Path

import torch
from bigmodel_ext import load_model, save_model
from bigmodel_ext.compress import ChooseLayers, compress, forms
from torch import nn


def batches(seed, count=24):
    """Sixteen clusters in 256 dimensions."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    labels = [torch.randint(16, (64,), generator=g) for _ in range(count)]
    return [(centres[y] + 3 * torch.randn(64, 256, generator=g), y) for y in labels]


def accuracy(model):
    return sum((model(x).argmax(1) == y).double().mean().item() for x, y in held_out) / len(held_out)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 16))
train, held_out = batches(1), batches(2, 8)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for x, y in train * 2:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

result = compress(model, train, accuracy, max_drop=0.01, steps=[ChooseLayers(forms(ratios=(0.5, 0.8, 0.95)), trials=8)])
print(result.report)
with tempfile.TemporaryDirectory() as folder:
    save_model(result.model, Path(folder) / "small.safetensors")
    again = load_model(result.fresh(), Path(folder) / "small.safetensors").eval()
    print("reloaded, the same outputs:", torch.equal(again(held_out[0][0]), result.model(held_out[0][0])))
