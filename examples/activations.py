"""Non-linear activations: each of the fused op's against torch's own, forward and backward, with a gradient check."""

import torch
from bigmodel_ext.functional import fused_dropout
from torch.nn import functional as F

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
}


def gradients(function, *inputs):
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y.square().sum(), inputs)


torch.manual_seed(0)
x, bias = torch.randn(64, 256, requires_grad=True), torch.randn(256, requires_grad=True)
print("activation   largest difference from torch's: output, gradient of x, of the bias; gradcheck")
for name, activation in ACTIVATIONS.items():
    ours = gradients(lambda x, b, name=name: fused_dropout(x, p=0.0, bias=b, activation=name), x, bias)
    theirs = gradients(lambda x, b, activation=activation: activation(x + b), x, bias)
    apart = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    few = (torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64))
    right = torch.autograd.gradcheck(lambda x, b, name=name: fused_dropout(x, 0.3, True, b, name, seed=7), few)
    print(f"{name:12s} {apart[0]:.1e}  {apart[1]:.1e}  {apart[2]:.1e}  {'passed' if right else 'FAILED'}")
    assert max(apart[:2]) < 1e-5
softmax = torch.autograd.gradcheck(torch.softmax, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True), 1))
print(f"softmax      torch's own, gradcheck {'passed' if softmax else 'FAILED'}")
