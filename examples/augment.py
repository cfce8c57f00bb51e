"""Data augmentation: what each name does to a batch, and accuracy on moved and turned digits with and without it."""

import torch
from bigmodel_ext.train import tasks
from bigmodel_ext.train.augment import ALIASES, NAMES, Augment
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit

task = tasks.get("digits")
data = task.load(0)
images = data.train.inputs[:64].expand(-1, 3, -1, -1)
print("mean change of a pixel:")
for name in (*NAMES, *ALIASES):
    strength = 15.0 if name == "rotate" else 0.2
    changed = Augment({name: strength}, seed=0)(images)
    print(f"  {name:16s} {strength:5.1f}  {float((changed - images).abs().mean()):.3f}")

few = Examples(data.train.inputs[:300], data.train.targets[:300])
moved = Augment({"position": 0.1, "rotate": 15.0, "scale": 0.15, "lighting": 0.1}, seed=1)(data.test.inputs)
for strengths in ({}, {"position": 0.1, "rotate": 15.0, "scale": 0.15, "lighting": 0.1, "noise": 0.03}):
    torch.manual_seed(0)
    model = task.build({"model": "cnn", "width": 16, "depth": 1})
    fit(model, few, CrossEntropy(), TrainConfig(20, 32, 1e-2), seed=0, augment=Augment(strengths, seed=0))
    told = "with" if strengths else "without"
    after = Examples(moved, data.test.targets)
    print(f"{told:8s} augmentation, 300 examples: test accuracy {accuracy(model, data.test):.2%}, "
          f"of moved, turned and relit digits {accuracy(model, after):.2%}")  # fmt: skip
