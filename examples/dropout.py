"""Dropout: nn.FusedDropout drops the share it says, keeps the mean, stores no mask, and makes a network that learned 36
examples by heart fit unseen ones better."""

import bigmodel_ext as bm
import torch
from torch import nn

torch.manual_seed(0)
x = torch.ones(1000, 1000)
y = bm.nn.FusedDropout(0.3)(x)
print(f"p = 0.3: {float((y == 0).float().mean()):.4f} dropped, mean {float(y.mean()):.4f}, eval changes nothing:",
      torch.equal(bm.nn.FusedDropout(0.3).eval()(x), x))  # fmt: skip
same = [bm.functional.fused_dropout(x, 0.3, seed=5) for _ in range(2)]
print("the mask is a function of the seed:", torch.equal(*same))


def data(n):
    inputs = torch.randn(n, 40)
    return inputs, (inputs[:, :5].sum(1) + 0.5 * torch.randn(n) > 0).float()


train, test = data(36), data(4000)
for p in (0.0, 0.5):
    torch.manual_seed(1)
    model = nn.Sequential(
        bm.nn.FusedDropout(p), nn.Linear(40, 128), bm.nn.FusedDropout(p, activation="relu"), nn.Linear(128, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(train[0])[:, 0], train[1]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = [nn.functional.binary_cross_entropy_with_logits(model.eval()(x)[:, 0], y) for x, y in (train, test)]
    print(f"p = {p}: loss on what it learned {float(loss[0]):.3f}, on unseen examples {float(loss[1]):.3f}")
