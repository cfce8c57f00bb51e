"""Mini-batch gradient descent: a small residual network on scikit-learn's digits with SGD (Nesterov's momentum), Adam
and AdamW, and the same run stopped in the middle and resumed."""

import tempfile
from pathlib import Path

import torch
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import CrossEntropy, Resume, TrainConfig, accuracy, fit

task = tasks.get("digits")
data = task.load(0)


def train(config, **options):
    torch.manual_seed(0)
    model = task.build({"model": "cnn", "width": 16, "depth": 1})
    fit(model, data.train, CrossEntropy(), config, seed=0, **options)
    return model


def stop(step):
    if step == 40:
        raise KeyboardInterrupt


sgd = TrainConfig(3, batch_size=32, learning_rate=0.2, weight_decay=5e-4, optimizer="sgd", nesterov=True)
for config in (sgd, TrainConfig(3, 32, 1e-2, 0.0, optimizer="adam"), TrainConfig(3, 32, 1e-2)):
    model = train(config)
    print(f"{config.optimizer:6s} test accuracy {accuracy(model, data.test):.2%}")
with tempfile.TemporaryDirectory() as folder:
    kept = Resume(Path(folder) / "run.safetensors", every=25)
    try:
        train(config, on_step=stop, resume=kept)
    except KeyboardInterrupt:
        again = train(config, resume=kept)
equal = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print(f"stopped after step 40 of {config.steps(len(data.train))} and resumed: the same weights, bit for bit: {equal}")
