"""Pruning in one shot: 70 % of a trained model's weights go without retraining; those that stay are set so that the
outputs on calibration data change least. Beside it: plain magnitude, Wanda, and SparseGPT."""

import copy

import torch
from bigmodel_ext.compress.prune import MaskPruner, reconstruct_
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, evaluating, fit

torch.manual_seed(0)
task = tasks.get("digits")
data = task.load(0)
dense = task.build({"width": 64, "depth": 2, "heads": 4, "mlp": 256})
loss = CrossEntropy(0.0)
fit(dense, data.train, loss, TrainConfig(epochs=8, batch_size=32, learning_rate=2e-3), seed=0)
options = {"pruning_ratio": 0.7, "ignored_layers": ["embed", "head"]}


def calibrate(model):
    for batch in data.train.inputs[:512].split(128):
        model(batch)


def show(name, prune):
    model = copy.deepcopy(dense)
    report = prune(model)
    with evaluating(model):
        value = float(loss(model, data.test.inputs, data.test.targets))
    print(f"{name:10s} test loss {value:.4f}, accuracy {accuracy(model, data.test):.2%}")
    return report


show("dense", lambda model: None)
show("magnitude", lambda model: MaskPruner(model, **options).step())
show("wanda", lambda model: MaskPruner(model, importance="wanda", forward_loop=calibrate, **options).step())
show("sparsegpt", lambda model: reconstruct_(model, calibrate, method="sparsegpt", match="own", **options))
print(show("ours", lambda model: reconstruct_(model, calibrate, **options)))
