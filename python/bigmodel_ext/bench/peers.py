"""What a user would take instead of ours: one function per peer, which packs the weights and returns the call to time,
or raises :class:`Missing` with the reason why it can't be had here. Packages are imported in there and nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from bigmodel_ext.bench import host
from bigmodel_ext.bench.harness import Call, rotating
from bigmodel_ext.bench.selection import Selection

# The largest error that a peer may make, as a share of the largest output of float32: what its dtype brings and some
# room. It is not to judge a peer's accuracy, but so that nobody times one that computes something else.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.03, "int8": 0.06}


T = TypeVar("T")


class Missing(Exception):
    """Why a peer can't be had here."""


def package(name: str) -> Any:
    try:
        with quiet():
            return importlib.import_module(name)
    except Exception as error:  # an installation may be broken in any way
        kind = "is not installed" if isinstance(error, ModuleNotFoundError) else f"can't be imported ({error})"
        raise Missing(f"{name} {kind}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what other packages have to say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def torch_fp32(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return lambda: linear(x, weight, bias)


def torch_bf16(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    x16, weight16, bias16 = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    return lambda: linear(x16, weight16, bias16)


def onednn_packed(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """float32 with weights in oneDNN's own layout, as inductor's frozen graphs have it."""
    if not torch.backends.mkldnn.is_available():
        raise Missing("this torch has no oneDNN")
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _dynamic(engine: str) -> Callable[[Tensor, Tensor, Tensor], Call]:
    """torch.ao's dynamically quantized linear layer (per-tensor u8 activations, per-channel s8 weights)."""

    def build(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
        if engine not in torch.backends.quantized.supported_engines:
            raise Missing(f"this torch has no engine {engine}")
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = engine
            with quiet():
                scale, zero = _scales(weight), torch.zeros(weight.shape[0], dtype=torch.int64)
                quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
                packed = torch.ops.quantized.linear_prepack(quantized, bias)
        finally:
            torch.backends.quantized.engine = before
        return lambda: torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)

    return build


def _scales(weight: Tensor) -> Tensor:
    return weight.abs().amax(1).clamp(min=1e-8) / 127


def _quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _scales(weight)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def onednn_qlinear(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """oneDNN's int8 product as inductor calls it, with u8 activations (s8 ones take a reference path), and what
    quantizing x per tensor costs in eager torch."""
    if not torch.backends.mkldnn.is_available():
        raise Missing("this torch has no oneDNN")
    weight_q, scale = _quantized_weight(weight)
    packed = torch.ops.onednn.qlinear_prepack(weight_q, list(x.shape))
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    product = torch.ops.onednn.qlinear_pointwise.default

    def run() -> Tensor:
        low, high = torch.aminmax(x)
        step = max((float(high) - float(low)) / 255, 1e-12)
        zero = min(max(round(-float(low) / step), 0), 255)
        x_q = torch.quantize_per_tensor(x, step, zero, torch.quint8).int_repr()
        return product(x_q, step, zero, packed, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], "")

    return run


def torch_int_mm(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """torch._int_mm between a quantization per row and an epilogue, each compiled by inductor."""
    weight_q, scale = _quantized_weight(weight)
    transposed = weight_q.t()

    def layer(x: Tensor, transposed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        x_scale = x.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        x_q = (x / x_scale).round().clamp(-127, 127).to(torch.int8)
        return torch._int_mm(x_q, transposed).float() * x_scale * scale + bias

    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    return lambda: compiled(x, transposed, scale, bias)


def torchao_int8(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """torchao's Int8DynamicActivationInt8WeightConfig, compiled."""
    quantization = package("torchao.quantization")
    module = torch.nn.Linear(weight.shape[1], weight.shape[0])
    module.weight, module.bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias)
    with quiet():
        quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
        compiled = torch.compile(module, dynamic=False)
        compiled(x)
    return lambda: compiled(x)


def _onnx_session(x: Tensor, nodes: Sequence[Any], weights: dict[str, Tensor]) -> Call:
    onnx, runtime = package("onnx"), package("onnxruntime")
    helper, numpy_helper = onnx.helper, package("onnx.numpy_helper")
    n = weights["bias"].shape[0]
    value = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", list(x.shape)), ("y", [x.shape[0], n]))
    ]
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()]
    graph = helper.make_graph(nodes, "linear", value[:1], value[1:], constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    )
    model.ir_version = 8
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if torch.get_num_threads() == 1 else "1")
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)[0]


def onnxruntime_fp32(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    node = package("onnx.helper").make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    return _onnx_session(x, [node], {"weight": weight, "bias": bias})


def onnxruntime_int8(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """DynamicQuantizeLinear, MatMulInteger and the scales after it, which onnxruntime fuses: what its quantize_dynamic
    makes of a MatMul, with a scale per output."""
    make = package("onnx.helper").make_node
    weight_q, scale = _quantized_weight(weight)
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["x_q", "x_scale", "x_zero"]),
        make("MatMulInteger", ["x_q", "weight", "x_zero", "weight_zero"], ["sums"]),
        make("Cast", ["sums"], ["sums_float"], to=1),
        make("Mul", ["x_scale", "weight_scale"], ["scales"]),
        make("Mul", ["sums_float", "scales"], ["product"]),
        make("Add", ["product", "bias"], ["y"]),
    ]
    constants = {
        "weight": weight_q.t().contiguous(), "weight_zero": torch.zeros(weight.shape[0], dtype=torch.int8),
        "weight_scale": scale, "bias": bias,
    }  # fmt: skip
    return _onnx_session(x, nodes, constants)


def torch_csr(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """torch's own sparse product (MKL, where this torch has it)."""
    with quiet():
        sparse = weight.to_sparse_csr()
    try:
        torch.addmm(bias[:, None], sparse, x.t())
    except RuntimeError as error:
        raise Missing(str(error).splitlines()[0]) from error
    return lambda: torch.addmm(bias[:, None], sparse, x.t()).t()


@dataclass(frozen=True)
class Peer:
    build: Callable[[Tensor, Tensor, Tensor], Call]
    dtype: str
    weight_bytes: float  # for each weight, zeros counted too
    needs: tuple[str, ...] = ()  # packages
    compiles: bool = False  # for seconds, each shape anew


ONNX = ("onnx", "onnxruntime")
LINEAR = {
    "torch fp32": Peer(torch_fp32, "fp32", 4),
    "oneDNN packed fp32": Peer(onednn_packed, "fp32", 4),
    "onnxruntime fp32": Peer(onnxruntime_fp32, "fp32", 4, ONNX),
    "torch bf16": Peer(torch_bf16, "bf16", 2),
    "torch CSR": Peer(torch_csr, "fp32", 0.5),
    "torch dynamic x86": Peer(_dynamic("x86"), "int8", 1),
    "torch dynamic fbgemm": Peer(_dynamic("fbgemm"), "int8", 1),
    "torch dynamic onednn": Peer(_dynamic("onednn"), "int8", 1),
    "oneDNN qlinear u8": Peer(onednn_qlinear, "int8", 1),
    "torch _int_mm": Peer(torch_int_mm, "int8", 1, compiles=True),
    "torchao int8": Peer(torchao_int8, "int8", 1, ("torchao",), compiles=True),
    "onnxruntime int8": Peer(onnxruntime_int8, "int8", 1, ONNX),
}
INT8 = tuple(name for name in LINEAR if name != "torch CSR")
FP32 = tuple(name for name, peer in LINEAR.items() if peer.dtype != "int8")

_told: set[str] = set()


def tell_once(name: str, reason: object) -> None:
    """Say on standard output that a peer is left out, once a process."""
    line = f"left out: {name}: {' '.join(str(reason).split())[:160]}"
    if line not in _told:
        _told.add(line)
        print(line, flush=True)


def tried(name: str, build: Callable[[], T]) -> T | None:
    """What build returns; or None, and said why, where the peer can't be had: its failure is not ours."""
    try:
        return build()
    except Missing as reason:
        tell_once(name, reason)
    except Exception as error:
        tell_once(name, f"{type(error).__name__}: {error}")
    return None


def copies(weight_bytes: float) -> int:
    """How many weights of this size must take turns so that none is still in a cache when it is its turn again."""
    return 1 + int(2 * host.cache_bytes() / weight_bytes)


def check(run: Call, expected: Tensor, dtype: str) -> None:
    """Raises Missing if the peer's output is not float32's, within what its dtype brings."""
    out = torch.as_tensor(run()).float()
    error = float((out - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not error <= TOLERANCE[dtype]:
        raise Missing(f"wrong by {error:.3g} of the largest output (at most {TOLERANCE[dtype]:g})")


def linear_peers(
    names: Sequence[str], selection: Selection, x: Tensor, weight: Tensor, bias: Tensor, cache: str = "warm"
) -> dict[str, Call]:
    """The chosen ones of `names` that can be had, verified. Cold ones call copies of the weights in turn, as many as it
    takes for each to have left the caches."""
    torch.compiler.reset()  # a shape compiled before counts towards the number of recompilations otherwise
    expected = linear(x, weight, bias)

    def build(peer: Peer) -> Call:
        if peer.compiles and selection.size == "quick" and not selection.peers:
            raise Missing("it compiles too long for --quick; ask for it by --peers")
        run = peer.build(x, weight, bias)
        check(run, expected, peer.dtype)
        if cache == "cold":
            more = range(copies(peer.weight_bytes * weight.numel()) - 1)
            run = rotating([run, *(peer.build(x, weight.clone(), bias) for _ in more)])
        return run

    found = {name: tried(name, partial(build, LINEAR[name])) for name in filter(selection.wants, names)}
    return {name: run for name, run in found.items() if run}


def missing_packages() -> dict[str, tuple[str, ...]]:
    """Every linear peer, and what would have to be installed for it."""
    return {
        name: tuple(package for package in peer.needs if importlib.util.find_spec(package) is None)
        for name, peer in LINEAR.items()
    }
