"""Half the multiply-accumulates: channels are taken out of a residual network for digits, which is saved and loaded."""

import tempfile
from pathlib import Path

import bigmodel_ext as bm
import torch
from bigmodel_ext.compress.prune import StructuredPruner
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import CrossEntropy, TrainConfig, accuracy, fit
from bigmodel_ext.train.tasks import digits

torch.manual_seed(0)
torch.set_num_threads(1)
data = digits.load(seed=0)
model = CNN(CNNConfig(width=16, depth=1))
fit(model, data.train, CrossEntropy(), TrainConfig(epochs=8, batch_size=32, learning_rate=3e-3), seed=0)
print(f"dense: accuracy {accuracy(model, data.test):.3f}")

pruner = StructuredPruner(
    model,
    example_inputs=data.train.inputs[:1],
    importance="reconstruction",  # what the layers that read a channel lose when the other channels make up for it
    target_macs=0.5,
    forward_loop=lambda m: m(data.train.inputs[:512]),  # no labels needed
)
print(pruner.step())
print(f"pruned: accuracy {accuracy(model, data.test):.3f}")

fit(model, data.train, CrossEntropy(), TrainConfig(epochs=2, batch_size=32, learning_rate=1e-3), seed=0)
print(f"after two epochs: accuracy {accuracy(model, data.test):.3f}")

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.safetensors"
    bm.save_model(model, file)  # the plan of what was taken out goes with it
    again = bm.load_model(CNN(CNNConfig(width=16, depth=1)), file).eval()
print("loaded: equal outputs", torch.equal(again(data.test.inputs), model(data.test.inputs)))
