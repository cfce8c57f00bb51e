import pytest
import torch
from bigmodel_ext.train import tasks
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.loop import CrossEntropy, Examples, TrainConfig, accuracy, fit
from torch import nn


def test_it_has_a_residual_path_groups_and_batch_norms():
    """With each block's last norm at zero only the shortcuts are left."""
    model = CNN(CNNConfig(width=8, depth=2)).eval()
    for block in model.blocks:
        nn.init.zeros_(block.bn3.weight)
    x = torch.rand(3, 1, 8, 8)
    shortcut = model.bn(model.stem(x)).relu()
    for block in model.blocks:
        shortcut = block.shortcut(shortcut).relu()
    assert torch.allclose(model.features(x), shortcut.mean((2, 3)), atol=1e-6)
    assert [block.conv2.groups for block in model.blocks] == [4] * 4
    assert [isinstance(block.shortcut, nn.Identity) for block in model.blocks] == [True, True, False, True]
    assert model.features(x).shape == (3, 16)


def test_digits_builds_and_trains_it():
    task = tasks.get("digits")
    data = task.load(0)
    torch.manual_seed(0)
    model = task.build({"model": "cnn", "width": 16, "depth": 1})
    before = accuracy(model, data.test)
    few = Examples(data.train.inputs[::2], data.train.targets[::2])
    fit(model, few, CrossEntropy(), TrainConfig(epochs=4, batch_size=32, learning_rate=1e-2), seed=0)
    assert before < 0.3
    assert accuracy(model, data.test) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"model": "rnn"}, "model must be one of vit, cnn, got 'rnn'"),
     ({"model": "cnn", "width": 6, "depth": 1}, "width must be a multiple of groups, got 6 and 4"),
     ({"model": "cnn", "width": 8, "depth": 0}, "depth must be at least 1, got 0")],
)  # fmt: skip
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.get("digits").build(settings)
