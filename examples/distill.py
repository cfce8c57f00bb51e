"""A small student with few labels, alone and with a teacher of its logits and a hidden layer."""

import torch
from bigmodel_ext.compress.distill import DistillationLoss, Hidden, Labels, Logits
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)
images, digits = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
few, train, test = order[:60], order[:1200], order[1200:]


def mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def fit(model: nn.Module, loss: DistillationLoss, rows: torch.Tensor, steps: int) -> float:
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=5e-3)
    for step in range(steps):
        batch = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:32]]
        optimizer.zero_grad()
        loss(model, images[batch], digits[batch]).backward()
        optimizer.step()
    return (model(images[test]).argmax(1) == digits[test]).float().mean().item()


labels = DistillationLoss(None, terms={"labels": Labels()})
teacher = mlp(256)
print(f"teacher, {len(train)} labels:        {fit(teacher, labels, train, 400):.1%}")
print(f"student alone, {len(few)} labels:    {fit(mlp(12), labels, few, 400):.1%}")
pairs = {("", ""): Logits(temperature=4.0, weight=0.9), ("1", "1"): Hidden(12, 256, weight=0.1)}
taught = DistillationLoss(teacher, pairs, {"labels": Labels(0.1)})
print(f"student taught, the same {len(few)}: {fit(mlp(12), taught, few, 400):.1%}")
print("its last loss:", ", ".join(f"{name} {value:.4f}" for name, value in taught.parts.items()))
