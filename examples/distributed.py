"""Training in two processes (torchrun starts this file again in each): a sparse model on digits, the same weights in
both, and those of one process with the double batch up to rounding."""

import os
import subprocess
import sys

if "RANK" not in os.environ:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    sys.exit(subprocess.call(launch))

import bigmodel_ext as bm
import torch
from bigmodel_ext.compress.prune import MaskPruner
from bigmodel_ext.train import tasks
from bigmodel_ext.train.distributed import Processes
from bigmodel_ext.train.loop import ALONE, CrossEntropy, TrainConfig, accuracy, fit

task = tasks.get("digits")
data, across = task.load(0), Processes(cpu=True)


def train(batch_size, across):
    torch.manual_seed(0)
    model = task.build({"width": 32, "depth": 1, "heads": 2, "mlp": 128})
    MaskPruner(model, pruning_ratio=0.8, ignored_layers=["embed", "head"]).step()
    bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(rows=()), filter_fn=lambda layer, fqn: "blocks" in fqn)
    config = TrainConfig(4, batch_size, 0.1, weight_decay=1e-4, optimizer="sgd", nesterov=True)
    fit(model, data.train, CrossEntropy(), config, seed=0, across=across)
    return model


model, alone = train(16, across), train(32, ALONE)
weights, expected = (torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (model, alone))
equal = torch.equal(*across.gather(weights))
if across.rank == 0:
    print(f"{across.processes} processes: test accuracy {accuracy(model, data.test):.2%}, equal weights: {equal}")
    print(f"furthest from one process with the double batch: {float((weights - expected).abs().max()):.1e}")
across.close()
