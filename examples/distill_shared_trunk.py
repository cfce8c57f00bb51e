"""One trunk, two heads with a teacher each: which digit it is, and whether it is odd."""

import torch
from bigmodel_ext.compress.distill import DistillationLoss, Labels, Logits, SharedTrunk, TrunkLoss
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)
images, digits = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
targets, CLASSES = {"digit": digits, "odd": digits % 2}, {"digit": 10, "odd": 2}
torch.manual_seed(0)
train, test = torch.randperm(len(images)).split([1200, len(images) - 1200])


def body(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def fit(model: nn.Module, loss: nn.Module, tasks: dict[str, torch.Tensor], steps: int = 300) -> None:
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=3e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (32,))]
        optimizer.zero_grad()
        loss(model, images[batch], {name: t[batch] for name, t in tasks.items()}).backward()
        optimizer.step()


losses = {}
for name, classes in CLASSES.items():
    teacher = SharedTrunk(body(128), {name: nn.Linear(128, classes)})
    fit(teacher, TrunkLoss({name: DistillationLoss(None, terms={"labels": Labels()})}), targets)
    losses[name] = DistillationLoss(teacher.only(name), {("", ""): Logits(2.0, weight=0.9)}, {"labels": Labels(0.1)})
model = SharedTrunk(body(32), {name: nn.Linear(32, classes) for name, classes in CLASSES.items()})
fit(model, TrunkLoss(losses, "uncertainty"), targets)
size, *singles = [sum(p.numel() for p in m.parameters()) for m in (model, *map(model.only, targets))]
print(f"{size} parameters, two students {sum(singles)}: {1 - size / sum(singles):.0%} fewer")
for name in targets:
    print(f"{name}: {(model.only(name)(images[test]).argmax(1) == targets[name][test]).float().mean():.1%}")
