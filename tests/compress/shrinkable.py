"""Models to prune in tests: all have units that nothing reads, if asked for, and batch norms that do something."""

import torch
from bigmodel_ext.compress.prune import StructuredPruner
from bigmodel_ext.train.cnn import CNN, CNNConfig
from bigmodel_ext.train.transformer import Transformer, TransformerConfig
from bigmodel_ext.train.vit import ViT, ViTConfig
from torch import nn
from torch.nn import functional as F


class Depthwise(nn.Module):
    """Residual blocks around a depthwise convolution, group norm, PReLU and a flattened map before the head."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.act = nn.PReLU(2 * width)
        self.shrink = nn.Conv2d(2 * width, width, 1)
        self.norm2 = nn.GroupNorm(2, width)
        self.hidden = nn.Linear(width * 16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.shrink(self.act(self.depthwise(F.relu(self.norm1(self.expand(x))))))
        x = F.max_pool2d(F.relu(self.norm2(x)), 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def images():
    return torch.randn(5, 1, 8, 8)


def tokens():
    return torch.randint(40, (3, 7))


MODELS = {
    "grouped": (lambda: CNN(CNNConfig(16, 1)), images),
    "depthwise": (Depthwise, images),
    "fused qkv": (lambda: ViT(ViTConfig(32, 2, 4, 48)), images),
    "grouped-query": (lambda: Transformer(TransformerConfig(32, 2, 8, 2, 48, 40)), tokens),
}


def make(name, seed=0):
    """A model in eval mode, with statistics and no weight at its initial value of 0 or 1."""
    torch.manual_seed(seed)
    model = MODELS[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


def inputs(name):
    return MODELS[name][1]()


def fingerprint(model):
    """All that must be as before after an error."""
    held = [
        (
            fqn,
            {k: v for k, v in vars(m).items() if isinstance(v, (int, tuple, bool, str))},
            type(m),
            len(m._forward_hooks),
        )
        for fqn, m in model.named_modules()
    ]
    tensors = {n: (id(t), t.clone(), t.requires_grad) for n, t in (*model.named_parameters(), *model.named_buffers())}
    return held, tensors


def assert_untouched(model, before):
    held, tensors = fingerprint(model)
    assert held == before[0]
    assert list(tensors) == list(before[1])
    for name, (key, value, requires_grad) in tensors.items():
        assert (key, requires_grad) == (before[1][name][0], before[1][name][2]), name
        assert torch.equal(value, before[1][name][1]), name


def calibration(name):
    batches = [inputs(name) for _ in range(4)]

    def loop(model):
        for x in batches:
            model(x)

    return loop


def groups_of(model, name, **arguments):
    return StructuredPruner(model, inputs(name), **arguments)._graph.groups


def silence(model, groups, share):
    """Nothing reads some units of each group any more (the same ones of each of its blocks). Returns the number by
    group."""
    counts = {}
    for group in groups.values():
        per_block = group.size // group.blocks
        gone = torch.randperm(per_block)[: int(share * per_block)].tolist()
        units = [b * per_block + u for b in range(group.blocks) for u in gone]
        counts[group.name] = len(units)
        for s in group.slices:
            if s.role == "in":
                weight = model.get_submodule(s.fqn).weight.data
                weight[:, [i for u in units for i in s.index[u]]] = 0.0
    return counts
