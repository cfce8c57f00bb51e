"""A layer in each of its forms."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, second_moments
from bigmodel_ext.compress.controller.forms import DENSE, Form
from bigmodel_ext.compress.prune.moments import own_moments
from bigmodel_ext.compress.prune.reconstruct import reconstruct_, reconstruct_layer_
from bigmodel_ext.compress.quantize.hamiltonian import HamiltonianConfig, spins_of
from bigmodel_ext.nn import (
    BinaryCodedLinear,
    Int8Conv2d,
    Int8Linear,
    Int8SparseLinear,
    SemiSparseLinear,
    SparseConv2d,
    SparseLinear,
)

_CONV = ("dense", "int8", "sparse")  # what there are convolution kernels for


def fits(layer: nn.Module, form: Form) -> bool:
    """Whether there is a kernel of this form for this class of layer."""
    return form.kind in _CONV or isinstance(layer, nn.Linear)


class Builder:
    """builder(fqn, form): the layer in that form, pruned at once and its weights reconstructed on calibration
    data. The same module each time: copy it before it goes into a model.

    Args:
        layers: of the model, by name; they are not changed.
        forward_loop: runs the model on calibration data.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], forward_loop: ForwardLoop) -> None:
        self._layers, self._forward_loop = layers, forward_loop
        self._model, self._moments = model, own_moments(model, forward_loop, layers)
        self._made: dict[tuple[str, Form], nn.Module] = {}

    def __call__(self, fqn: str, form: Form) -> nn.Module:
        key = (fqn, form)
        if key not in self._made:
            layer = copy.deepcopy(self._layers[fqn])
            if form.granularity is not None:
                reconstruct_layer_(fqn, layer, self._moments[fqn], form.sparsity, form.granularity)
            self._made[key] = self.convert(fqn, layer, form)
        return self._made[key]

    def convert(self, fqn: str, layer: Any, form: Form) -> nn.Module:
        """`layer`, which stands at `fqn` and whose pruned weights are zero already, in its form's kernel."""
        if form.kind != "binary_coded":
            return _converted(layer, form)
        try:
            state = spins_of(layer, self._second[fqn], HamiltonianConfig(form.bits))
        except ValueError as error:
            raise ValueError(f"{fqn}: {error}") from error
        return BinaryCodedLinear.from_codes(layer, state.spins, state.alpha, HamiltonianConfig.group_size)

    @cached_property
    def _second(self) -> dict[str, Tensor]:
        linear = {fqn: layer for fqn, layer in self._layers.items() if isinstance(layer, nn.Linear)}
        return second_moments(self._model, self._forward_loop, linear)

    def prune_(self, model: nn.Module, chosen: Mapping[str, Form]) -> None:
        """Prune a copy of the model, in place, each layer to its form's share: layer by layer, each making up for what
        those before it lost."""
        ratios: dict[str, dict[str, float]] = {}
        for fqn, form in chosen.items():
            if form.granularity is not None:
                ratios.setdefault(form.granularity, {})[fqn] = form.sparsity
        for granularity, own in ratios.items():
            shares: Any = {} if granularity == "2:4" else {"pruning_ratio_dict": own}
            names = partial(is_in, own)
            reconstruct_(model, self._forward_loop, granularity=granularity, filter_fn=names, **shares)


def is_in(names: Container[str], layer: nn.Module, fqn: str) -> bool:
    """A filter_fn with its first argument given."""
    return fqn in names


def _converted(layer: Any, form: Form) -> nn.Module:
    conv = isinstance(layer, nn.Conv2d)
    if form == DENSE:
        return layer
    if form.kind == "int8":
        return Int8Conv2d.from_float(layer) if conv else Int8Linear.from_float(layer)
    if form.kind == "sparse":
        return SparseConv2d.from_dense(layer) if conv else SparseLinear.from_dense(layer)
    kinds: dict[str, Any] = {"int8_sparse": Int8SparseLinear, "semi_sparse": SemiSparseLinear}
    made: nn.Module = kinds[form.kind].from_dense(layer)
    return made
