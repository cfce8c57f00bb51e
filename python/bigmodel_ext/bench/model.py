"""BERT-base- and MiniLM-shaped encoders from transformers (random weights, nothing is downloaded), end to end: dense in
float32 and bfloat16, torch's dynamic int8, and ours, each converted and their activations fused in one line.

The limit is what is left when linear layers and the activations behind them cost nothing (Amdahl's law): attention,
LayerNorm, residual additions, embeddings. Big outputs are given back to the system after each layer and their pages
must be cleared again, so every shape is measured a second time, all candidates alike, with an allocator that keeps
memory ("memory kept": what the environment variables MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=17179869184 do for a
program of one's own).
"""

from __future__ import annotations

import copy
import ctypes
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bigmodel_ext as bm
from bigmodel_ext._fuse import activation_of
from bigmodel_ext.bench import peers
from bigmodel_ext.bench.harness import Call, Case
from bigmodel_ext.bench.limits import Limit
from bigmodel_ext.bench.selection import Selection
from bigmodel_ext.convert import block_mask, magnitude_mask

SPARSITY = 0.9
# Largest error at the outputs (a LayerNorm's, so of size 1) against the model in float32 with the same weights pruned.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.15, "int8": 0.3}


@dataclass(frozen=True)
class Encoder:
    name: str
    layers: int
    hidden: int
    batch: int = 32
    tokens: int = 128

    def build(self) -> nn.Module:
        transformers = peers.package("transformers")
        with peers.quiet():  # it imports more only now
            config = transformers.BertConfig(
                hidden_size=self.hidden, num_hidden_layers=self.layers, num_attention_heads=12,
                intermediate_size=4 * self.hidden, attn_implementation="sdpa",
            )  # fmt: skip
            model: nn.Module = transformers.BertModel(config, add_pooling_layer=False).eval()
        return model


MINILM, MINILM_12, BERT = Encoder("MiniLM-6", 6, 384), Encoder("MiniLM-12", 12, 384), Encoder("BERT-base", 12, 768)
ENCODERS = {"quick": (MINILM,), "default": (MINILM, BERT), "full": (MINILM, MINILM_12, BERT)}


def _int8(model: nn.Module) -> nn.Module:
    return bm.fuse_activation_(bm.quantize_(model, bm.Int8DynamicActivationInt8WeightConfig(rows=())))


def _sparse(model: nn.Module) -> nn.Module:
    return bm.fuse_activation_(bm.sparsify_(model, bm.UnstructuredSparseWeightConfig(SPARSITY, rows=())))


def _sparse_int8(model: nn.Module) -> nn.Module:
    return bm.fuse_activation_(bm.sparsify_(model, bm.Int8BlockSparseWeightConfig(SPARSITY, rows=())))


@dataclass(frozen=True)
class Variant:
    """One way to convert a model; `mask` says which weights it prunes, `dtype` what its errors are like."""

    name: str
    convert: Callable[[nn.Module], nn.Module]
    dtype: str
    mask: Callable[[Tensor, float], Tensor] | None = None


OURS = (
    Variant("int8", _int8, "int8"),
    Variant("sparse 90 %", _sparse, "fp32", magnitude_mask),
    Variant("sparse int8 90 %", _sparse_int8, "int8", block_mask),
    Variant("int8, bf16 activations", lambda model: _int8(model).bfloat16(), "int8"),
    Variant("sparse int8 90 %, bf16 activations", lambda model: _sparse_int8(model).bfloat16(), "int8", block_mask),
)


def _dynamic(engine: str) -> Callable[[nn.Module], nn.Module]:
    def convert(model: nn.Module) -> nn.Module:
        if engine not in torch.backends.quantized.supported_engines:
            raise peers.Missing(f"this torch has no engine {engine}")
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = engine
            with peers.quiet():
                quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
            return quantized
        finally:
            torch.backends.quantized.engine = before

    return convert


PEERS = (
    Variant("torch fp32", lambda model: model, "fp32"),
    Variant("torch bf16", lambda model: model.bfloat16(), "bf16"),
    *(Variant(f"torch dynamic {engine}", _dynamic(engine), "int8") for engine in ("x86", "fbgemm", "onednn")),
)


class _Nothing(nn.Module):
    """A linear layer's shape without its arithmetic: the same output each time."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.out: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.out_features)
        if self.out is None or self.out.shape != shape:
            self.out = torch.randn(shape, dtype=x.dtype)
        return self.out


def _without_linear(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Nothing(child.out_features))
            elif activation_of(child):
                setattr(module, name, nn.Identity())
    return model


def _limit(model: nn.Module, ids: Tensor) -> Limit:
    run = _call(_without_linear(model), ids)
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return Limit("all but linear layers and activations", min(times))


def _pruned(model: nn.Module, mask: Callable[[Tensor, float], Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(mask(module.weight, SPARSITY))
    return model


def _call(model: nn.Module, ids: Tensor) -> Call:
    def run() -> Tensor:
        with torch.inference_mode():
            out: Tensor = model(ids).last_hidden_state
            return out

    return run


def _megabytes(model: nn.Module) -> float:
    """Of its state dict as torch saves it."""
    buffer = io.BytesIO()
    with peers.quiet():
        torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


def _check(variant: Variant, converted: nn.Module, dense: nn.Module, ids: Tensor) -> None:
    """Raises ArithmeticError if the outputs are not those of the dense model with the same weights pruned."""
    reference = dense if variant.mask is None else _pruned(dense, variant.mask)
    expected, out = _call(reference, ids)(), _call(converted, ids)()
    error = float((torch.as_tensor(out).float() - torch.as_tensor(expected)).abs().max())
    if not error <= TOLERANCE[variant.dtype]:
        raise ArithmeticError(f"{variant.name}: outputs are off by {error:.3g}, at most {TOLERANCE[variant.dtype]:g}")


def _converted(variant: Variant, dense: nn.Module, ids: Tensor) -> nn.Module:
    model = variant.convert(copy.deepcopy(dense))
    _check(variant, model, dense, ids)
    return model


def _models(dense: nn.Module, ids: Tensor, selection: Selection) -> dict[str, nn.Module]:
    """Ours and the chosen peers, verified on two sequences: ours must be right, a peer is left out if it is not."""
    found: dict[str, nn.Module] = {}
    for variant in OURS:
        found[variant.name] = _converted(variant, dense, ids[:2])
    for variant in PEERS:
        if not selection.wants(variant.name):
            continue
        model = peers.tried(variant.name, partial(_converted, variant, dense, ids[:2]))
        if model:
            found[variant.name] = model
    return found


def _keep_memory() -> bool:
    """Tell glibc to give no memory back for the rest of the process; False where there is no glibc."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        libc: Any = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**31 - 1))
    except (OSError, AttributeError):
        return False


@dataclass(frozen=True)
class Built:
    """An encoder's variants, verified."""

    encoder: Encoder
    dense: nn.Module
    ids: Tensor
    models: dict[str, nn.Module]
    megabytes: dict[str, float]


def _build(encoder: Encoder, selection: Selection) -> Built:
    dense = encoder.build()
    ids = torch.randint(0, 30000, (encoder.batch, encoder.tokens))
    models = _models(dense, ids, selection)
    return Built(encoder, dense, ids, models, {name: round(_megabytes(model), 3) for name, model in models.items()})


def _case(built: Built, note: str = "") -> Case:
    encoder = built.encoder
    return Case(
        f"encoder {encoder.name}", f"{encoder.batch}x{encoder.tokens}{note}",
        {name: _call(model, built.ids) for name, model in built.models.items()}, lambda: None,  # verified before
        limit=_limit(built.dense, built.ids), ours=tuple(variant.name for variant in OURS),
        dtypes={variant.name: variant.dtype for variant in (*OURS, *PEERS)}, megabytes=built.megabytes,
        extra={"m": encoder.batch * encoder.tokens},
    )  # fmt: skip


def cases(selection: Selection) -> Iterator[Case]:
    try:
        peers.package("transformers")
    except peers.Missing as reason:
        peers.tell_once("suite model", reason)
        return
    every = [_build(encoder, selection) for encoder in ENCODERS[selection.size]]
    for built in every:
        yield _case(built)
    if selection.size != "quick" and _keep_memory():
        for built in every:
            yield _case(built, " memory kept")
