"""Train with the rounding that the model will run with: prepare, train, convert."""

import copy

import torch
from bigmodel_ext.compress.quantize import Int8StaticActivationInt8WeightConfig, convert, prepare, quantize_
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
teacher = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
x = torch.randn(512, 16)
target = teacher(x).detach()

config = Int8StaticActivationInt8WeightConfig("minmax", rows=())
calibration = 40 * x  # far too large a range: few int8 levels remain for the usual inputs
afterwards, aware = copy.deepcopy(teacher), copy.deepcopy(teacher)
quantize_(afterwards, config, lambda m: m(calibration))

prepare(aware, config, lambda m: m(calibration))
optimizer = torch.optim.Adam(aware.parameters(), 5e-3)
for _ in range(200):
    loss = F.mse_loss(aware(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
simulated = aware(x).detach()
convert(aware)

print(f"quantized afterwards: loss {F.mse_loss(afterwards(x), target).item():.5f}")
print(f"trained with it:      loss {F.mse_loss(aware(x), target).item():.5f}")
print(f"simulated and int8 outputs differ by {(aware(x) - simulated).abs().max().item():.1e}")
