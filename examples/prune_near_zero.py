"""Near-zero pruning: half of the hidden neurons go at once, judged in five ways; then a model is pruned gradually to
70 % zero weights while it trains on, made sparse, and trained further in that form with its pattern kept."""

import copy

import bigmodel_ext as bm
import torch
from bigmodel_ext.compress.prune import IMPORTANCES, GradualPruner, MaskPruner
from bigmodel_ext.train import tasks
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit

torch.manual_seed(0)
task = tasks.get("digits")
data = task.load(0)
dense = task.build({"width": 64, "depth": 2, "heads": 4, "mlp": 256})
config, loss = TrainConfig(epochs=6, batch_size=32, learning_rate=2e-3), CrossEntropy(0.0)
fit(dense, data.train, loss, config, seed=0)
print(f"dense: test accuracy {accuracy(dense, data.test):.2%}")


def calibrate(model):
    loss(model, data.train.inputs[:512], data.train.targets[:512]).backward()


for importance in IMPORTANCES:
    model = copy.deepcopy(dense)
    run = calibrate if importance == "taylor" else lambda m: m(data.train.inputs[:512])
    MaskPruner(model, importance=importance, granularity="neuron", pruning_ratio=0.5, forward_loop=run,
               filter_fn=lambda layer, fqn: fqn.endswith("fc1")).step()  # fmt: skip
    print(f"half of the hidden neurons zero by {importance:10s}: {accuracy(model, data.test):.2%}")

pruner = MaskPruner(dense, pruning_ratio=0.7, ignored_layers=["embed", "head"])
fit(dense, data.train, loss, config, seed=1, on_step=GradualPruner(pruner, config.steps(len(data.train))))
print(f"70 % of the weights zero, gradually: {accuracy(dense, data.test):.2%}")
bm.sparsify_(dense, bm.UnstructuredSparseWeightConfig(rows=()), filter_fn=lambda layer, fqn: fqn in pruner.masks)
fit(dense, data.train, loss, TrainConfig(3, 32, 5e-4), seed=2)  # forward and backward touch stored weights only
print(f"trained on as SparseLinear, {dense.blocks[0].fc1.nnz} of {64 * 256}: {accuracy(dense, data.test):.2%}")
