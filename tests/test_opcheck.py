"""torch.library.opcheck on every op: schema, fake tensors, autograd registration, AOTAutograd with dynamic shapes."""

import pytest
import torch
from bigmodel_ext import _reference
from bigmodel_ext._checks import FLOATS
from bigmodel_ext._ops import NAMESPACE, OPS
from bigmodel_ext.formats import binary_coded, block, block_sparse, csr, int8, int8_conv, two_four

M, N, K = 5, 12, 19


def _matrix(dtype=torch.float32, rows=M, columns=K, grad=False):
    return torch.randn(rows, columns, dtype=dtype).requires_grad_(grad)


def _int8(n=N, k=K):
    return torch.randint(-128, 128, (n, k), dtype=torch.int8)


def _sparse(dtype, grad):
    values, crow, col = csr.pack(_matrix(dtype, N) * (torch.rand(N, K) < 0.4))
    return values.requires_grad_(grad), crow, col


def _square_blocks(dtype, grad):
    weight = _matrix(dtype, N + 10)
    weight[:16, :16] = 0
    values, crow, col = block_sparse.pack(weight[:N], blocksize=16)
    return values.requires_grad_(grad), crow, col


def _two_four(dtype, grad):
    values, index = two_four.pack(_matrix(dtype, N) * (torch.arange(K) % 4 > 1))
    return values.requires_grad_(grad), index


def _int8_two_four():
    return two_four.pack_int8(_int8() * (torch.arange(K) % 4 > 1))


def _codes():
    return torch.randint(0, 4, (N, K), dtype=torch.uint8)


def _scales():
    return torch.rand(N, -(-K // 8), 2).half()


def _bias(grad, dtype=torch.float32):
    return torch.randn(N, dtype=dtype).requires_grad_(grad)


def _blocks():
    return block.pack(_int8() * (torch.rand(N, K) < 0.3))


def _dropout(dtype, grad, p, activation, bias, residual):
    x = torch.randn(3, 4, K, dtype=dtype, requires_grad=grad)
    b = torch.randn(K, requires_grad=grad) if bias else None
    r = torch.randn(3, 4, K, dtype=dtype, requires_grad=grad) if residual else None
    return x, b, r, torch.tensor(7) if p else None, p, activation


def _dropout_norm(dtype, grad, norm, whole):
    x, b, r, seed, p, activation = _dropout(dtype, grad, 0.3, "gelu", whole, whole)
    weight, norm_bias = (torch.randn(K, requires_grad=grad) for _ in range(2))
    return x, b, r, seed, weight, norm_bias if whole else None, p, activation, norm, 1e-3


def _dropout_norm_backward(dtype, norm, whole):
    x, b, r, seed, weight, _, p, activation, norm, _eps = args = _dropout_norm(dtype, False, norm, whole)
    _, h, mean, rstd = torch.ops.bigmodel_ext.fused_dropout_norm(*args)
    return torch.randn_like(x), r, h, mean, rstd, x, b, seed, weight, p, activation, norm


def _binary_code():
    """packed, scales; two groups of 3 planes."""
    signs = torch.randint(0, 256, (N, 3, -(-K // 8)), dtype=torch.uint8)
    alpha = (torch.rand(N, 2, 3) * 0.1).half()
    return binary_coded.to_panels(signs, K, 16), binary_coded.scales_to_panels(alpha)


GROUPS, KERNEL, WINDOW = 2, (3, 2), ([3, 2], [2, 1], [1, 1, 0, 1], [1, 2], 2)


def _image(dtype, grad, last=False):
    x = torch.randn(2, 2 * GROUPS, 7, 6, dtype=dtype)
    return (x.to(memory_format=torch.channels_last) if last else x).requires_grad_(grad)


def _int8_filters():
    return torch.randint(-128, 128, (N, 2, *KERNEL), dtype=torch.int8)


def _sparse_filters(dtype, grad):
    weight = torch.randn(N, 2, *KERNEL, dtype=dtype) * (torch.rand(N, 2, *KERNEL) < 0.4)
    values, crow, col = csr.pack(weight.flatten(1))
    return values.requires_grad_(grad), crow, col


# op -> (name of the case, arguments), from dtype and whether gradients are wanted
SAMPLES = {
    "quantize_rows": lambda dtype, grad: {"": (_matrix(dtype),)},
    "int8_mm": lambda dtype, grad: {"": (_int8(M), _int8())},
    "int8_linear": lambda dtype, grad: {
        "packed": (_matrix(dtype, grad=grad), int8.pack(_int8()), torch.rand(N), _bias(grad)),
        "3-d": (torch.randn(2, 3, K, dtype=dtype, requires_grad=grad), _int8(), torch.rand(N), _bias(grad, dtype)),
        "no bias": (_matrix(dtype, grad=grad), _int8(), torch.rand(N), None),
        "activation": (_matrix(dtype, grad=grad), _int8(), torch.rand(N) * 0.01, _bias(grad), "gelu"),
        "static": (_matrix(dtype, grad=grad), _int8(), torch.rand(N), _bias(grad), "none", torch.tensor(0.01)),
    },
    "binary_coded_linear": lambda dtype, grad: {
        "bias": (_matrix(dtype, grad=grad), *_binary_code(), _bias(grad), N, 16),
        "3-d": (torch.randn(2, 3, K, dtype=dtype, requires_grad=grad), *_binary_code(), None, N, 16),
        "activation": (_matrix(dtype, grad=grad), *_binary_code(), _bias(grad, dtype), N, 16, "gelu"),
    },
    "int8_weight_only_linear": lambda dtype, grad: {
        "bias": (_matrix(dtype, grad=grad), int8.pack(_int8()), torch.rand(N), _bias(grad), "none"),
        "3-d": (torch.randn(2, 3, K, dtype=dtype, requires_grad=grad), int8.pack(_int8()), torch.rand(N), None, "none"),
        "activation": (_matrix(dtype, grad=grad), int8.pack(_int8()), torch.rand(N) * 0.01, _bias(grad), "gelu"),
    },
    "int8_conv2d": lambda dtype, grad: (
        {
            name: (_image(dtype, grad, last), _reference.conv_rows(_int8_filters()), torch.rand(N), bias, *WINDOW)
            for name, last, bias in (("planes", False, _bias(grad)), ("channels last", True, None))
        }
        | {
            "packed": (
                _image(dtype, grad),
                int8_conv.pack(_int8_filters()[:, [0, 1, 0, 1]]),
                torch.rand(N),
                _bias(grad, dtype),
                *WINDOW[:4],
                1,
            )
        }
    ),
    "sparse_conv2d": lambda dtype, grad: {
        "bias": (_image(dtype, grad), *_sparse_filters(dtype, grad), _bias(grad), *WINDOW, N, csr.PANEL),
        "last": (_image(dtype, grad, True), *_sparse_filters(torch.float32, grad), None, *WINDOW, N, csr.PANEL),
    },
    "pack_panel_csr": lambda dtype, grad: {
        "sorted": (_matrix(dtype, N, grad=grad), torch.rand(N, K) < 0.4, csr.PANEL, True),
        "no mask": (_matrix(dtype, N, grad=grad), None, 16, False),
    },
    "sparse_linear": lambda dtype, grad: {
        "bias": (_matrix(dtype, grad=grad), *_sparse(dtype, grad), _bias(grad), N, csr.PANEL),
        "no bias": (_matrix(dtype, grad=grad), *_sparse(torch.float32, grad), None, N, csr.PANEL),
        "order": (_matrix(dtype, grad=grad), *_sparse(dtype, grad), None, N, csr.PANEL, csr.rows_in_order(N, 1)),
        "activation": (_matrix(dtype, grad=grad), *_sparse(dtype, grad), _bias(grad), N, csr.PANEL, None, "gelu"),
    },
    "sparse_linear_grad_input": lambda dtype, grad: {
        "": (_matrix(dtype, columns=N), *_sparse(dtype, False), K, csr.PANEL)
    },
    "sparse_linear_grad_values": lambda dtype, grad: {
        "": (_matrix(dtype, columns=N), _matrix(dtype), *_sparse(dtype, False)[1:], csr.PANEL)
    },
    "block_sparse_linear": lambda dtype, grad: {
        "bias": (_matrix(dtype, grad=grad), *_square_blocks(dtype, grad), _bias(grad), N),
        "no bias": (_matrix(dtype, grad=grad), *_square_blocks(torch.float32, grad), None, N),
    },
    "block_sparse_linear_grad_input": lambda dtype, grad: {
        "": (_matrix(dtype, columns=N), *_square_blocks(dtype, False), K)
    },
    "block_sparse_linear_grad_values": lambda dtype, grad: {
        "": (_matrix(dtype, columns=N), _matrix(dtype), *_square_blocks(dtype, False)[1:], 16)
    },
    "semi_sparse_linear": lambda dtype, grad: {
        "bias": (_matrix(dtype, grad=grad), *_two_four(dtype, grad), _bias(grad), N),
        "no bias": (_matrix(dtype, grad=grad), *_two_four(torch.float32, grad), None, N),
    },
    "semi_sparse_linear_grad_input": lambda dtype, grad: {"": (_matrix(dtype, columns=N), *_two_four(dtype, False), K)},
    "semi_sparse_linear_grad_values": lambda dtype, grad: {
        "": (_matrix(dtype, columns=N), _matrix(dtype), *_two_four(dtype, False)[1:])
    },
    "int8_semi_sparse_linear": lambda dtype, grad: {
        name: (_matrix(dtype, grad=grad), *_int8_two_four(), torch.rand(N) * 0.01, bias, *rest)
        for name, bias, rest in (("bias", _bias(grad), ()), ("no bias", None, ()), ("act", _bias(grad), ("silu",)))
    },
    "int8_sparse_linear": lambda dtype, grad: {
        name: (_matrix(dtype, grad=grad), *b[:3], torch.rand(N) * 0.01, b[3], bias, block.PANEL, *rest)
        for name, bias, rest in (("bias", _bias(grad), ()), ("no bias", None, ()), ("act", _bias(grad), (None, "silu")))
        for b in (_blocks(),)
    },
    "ising_start": lambda dtype, grad: {"": (_matrix(rows=N), torch.eye(K), torch.arange(K), _scales(), 8)},
    "ising_descend": lambda dtype, grad: {
        "both": (_matrix(rows=N), torch.eye(K), _codes(), _scales(), 8, [0.5, 0.0], True, True, 3),
        "scales": (_matrix(rows=N), torch.eye(K), _codes(), _scales(), 8, [0.0], False, True, 0),
    },
    "dropout_seed": lambda dtype, grad: {"": (_matrix(dtype),)},
    "fused_dropout": lambda dtype, grad: {
        "all": _dropout(dtype, grad, 0.3, "gelu", True, True),
        "plain": _dropout(dtype, grad, 0.3, "none", False, False),
        "eval": _dropout(dtype, grad, 0.0, "silu", True, False),
    },
    "fused_dropout_backward": lambda dtype, grad: {
        "": (lambda x, b, r, seed, p, act: (r, x, b, seed, p, act))(*_dropout(dtype, False, 0.3, "gelu", True, True))
    },
    "fused_dropout_backward_bias": lambda dtype, grad: {
        "": (lambda x, b, r, seed, p, act: (r, x, b, seed, p, act))(*_dropout(dtype, False, 0.3, "gelu", True, True))
    },
    "fused_dropout_norm": lambda dtype, grad: {
        "layer": _dropout_norm(dtype, grad, "layer", True),
        "rms": _dropout_norm(dtype, grad, "rms", False),
    },
    "fused_dropout_norm_backward": lambda dtype, grad: {
        "layer": _dropout_norm_backward(dtype, "layer", True),
        "rms": _dropout_norm_backward(dtype, "rms", False),
    },
}
IN_FLOAT64 = (
    "pack_panel_csr", "sparse_linear", "block_sparse_linear", "semi_sparse_linear", "sparse_conv2d", "fused_dropout",
    "fused_dropout_norm",
)  # fmt: skip
DIFFERENTIABLE = (
    "int8_linear",
    "int8_weight_only_linear",
    "binary_coded_linear",
    "int8_conv2d",
    "int8_sparse_linear",
    "int8_semi_sparse_linear",
    *IN_FLOAT64,
)
CASES = [
    (op, dtype, grad)
    for op in SAMPLES
    for dtype in FLOATS
    for grad in ((False, True) if op in DIFFERENTIABLE else (False,))
]


def test_every_op_has_samples():
    assert set(SAMPLES) == set(OPS)


@pytest.mark.parametrize(("op", "dtype", "grad"), CASES)
def test_opcheck(op, dtype, grad):
    overload = getattr(getattr(torch.ops, NAMESPACE), op).default
    # Two runs of the random op differ, so only what does not compare outputs applies to it.
    utils = ("test_schema", "test_faketensor") if op == "dropout_seed" else torch.library._OPCHECK_DEFAULT_UTILS
    for name, args in SAMPLES[op](dtype, grad).items():
        results = torch.library.opcheck(overload, args, test_utils=utils)
        assert set(results.values()) == {"SUCCESS"}, f"{name}: {results}"


def test_the_random_op_is_tagged():
    assert torch.Tag.nondeterministic_seeded in torch.ops.bigmodel_ext.dropout_seed.default.tags


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_in_float64_or_by_formula(op):
    """gradcheck in float64 where the reference takes it; int8 rounding has no derivative, so its straight-through
    formula is compared instead."""
    overload = getattr(torch.ops.bigmodel_ext, op).default
    if op in IN_FLOAT64:
        for name, args in SAMPLES[op](torch.float64, True).items():
            wide = [a.detach().double().requires_grad_() if _floating(a) else a for a in args]
            fast = op == "sparse_conv2d"
            assert torch.autograd.gradcheck(_differentiable_results(overload), wide, fast_mode=fast), name
        return
    for args in SAMPLES[op](torch.float32, True).values():
        x = args[0]
        if op == "int8_conv2d":
            weight = _reference.unpack_int8_conv(args[1], N, KERNEL, x.shape[1] // args[-1])
            y = overload(*args)
            grad, wide = torch.randn_like(y), x.detach().requires_grad_()
            y.backward(grad)
            exact = _reference.conv2d(wide, weight * args[2].view(-1, 1, 1, 1), args[3], *args[5:])
            wanted = torch.autograd.grad(exact, [wide, *([] if args[3] is None else [args[3]])], grad)
            torch.testing.assert_close(x.grad, wanted[0])
            if args[3] is not None:
                torch.testing.assert_close(args[3].grad, wanted[1])
            continue
        if op in ("int8_linear", "int8_weight_only_linear"):
            weight = args[1] if args[1].dim() == 2 else int8.unpack(args[1], N, K)
            scale, bias = args[2], args[3]
        elif op == "binary_coded_linear":
            signs, alpha = binary_coded.from_panels(args[1], N, K, 16), binary_coded.scales_from_panels(args[2], N)
            weight, scale, bias = binary_coded.decode(signs, alpha, K, 16), torch.ones(N), args[3]
        elif op == "int8_semi_sparse_linear":
            weight, scale, bias = two_four.unpack_int8(*args[1:3], N, K), args[3], args[4]
        else:
            weight, scale, bias = block.unpack(*args[1:4], N, K), args[4], args[6]
        y = overload(*args)
        grad = torch.randn_like(y)
        y.backward(grad)
        if isinstance(args[-1], str):
            z = overload(*(a.detach() if _floating(a) else a for a in args[:-1]))
            grad = grad * _reference.activation_slope(z, args[-1])
        wanted = grad @ (weight.float() * scale[:, None])
        if op == "int8_linear" and len(args) == 6:
            wanted[x.abs() > 127 * args[5]] = 0.0
            assert 0 < (wanted == 0).sum() < wanted.numel()
        torch.testing.assert_close(x.grad, wanted)
        if bias is not None:
            torch.testing.assert_close(bias.grad, grad.reshape(-1, N).sum(0))


def _differentiable_results(overload):
    def call(*args):
        results = overload(*args)
        return results if isinstance(results, torch.Tensor) else tuple(r for r in results if r.requires_grad)

    return call


def _floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()
