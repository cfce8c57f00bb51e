"""A layer in each of its forms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bigmodel_ext.compress.calibrate import ForwardLoop, second_moments
from bigmodel_ext.compress.controller.forms import DENSE, Form
from bigmodel_ext.nn import (
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
    """builder(fqn, form): the layer in that form, pruned at once and its weights reconstructed on calibration data. The
    same module each time: copy it before it goes into a model.

    Args:
        layers: of the model, by name; they are not changed.
        forward_loop: runs the model on calibration data.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], forward_loop: ForwardLoop) -> None:
        self._layers = layers
        self._moments = second_moments(model, forward_loop, layers)
        self._made: dict[tuple[str, Form], nn.Module] = {}

    def __call__(self, fqn: str, form: Form) -> nn.Module:
        key = (fqn, form)
        if key not in self._made:
            layer = self._layers[fqn]
            pruned = layer if form.granularity is None else _with_weight(layer, self._pruned(fqn, form))
            self._made[key] = self.from_pruned(fqn, pruned, form)
        return self._made[key]

    def _pruned(self, fqn: str, form: Form) -> Tensor:
        from bigmodel_ext.convert import block_mask, magnitude_mask, two_four_mask

        w = self._layers[fqn].weight.detach()
        m = {"weight": magnitude_mask, "1x4": block_mask}.get(form.granularity)
        return w * (m(w.flatten(1), form.sparsity).view_as(w) if m else two_four_mask(w))

    def from_pruned(self, fqn: str, layer: Any, form: Form) -> nn.Module:
        """A layer whose pruned weights are zero already, in its form's kernel."""
        made: Any
        conv = isinstance(layer, nn.Conv2d)
        if form == DENSE:
            return layer
        if form.kind == "int8":
            made = Int8Conv2d.from_float(layer) if conv else Int8Linear.from_float(layer)
        elif form.kind == "sparse":
            made = SparseConv2d.from_dense(layer) if conv else SparseLinear.from_dense(layer)
        else:
            kinds: dict[str, Any] = {"int8_sparse": Int8SparseLinear, "semi_sparse": SemiSparseLinear}
            made = kinds[form.kind].from_dense(layer)
        return made


def _with_weight(layer: Any, weight: Tensor) -> nn.Module:
    """A copy of the layer with another weight and the same bias."""
    new = copy.copy(layer)
    new._parameters = {**layer._parameters, "weight": nn.Parameter(weight.to(layer.weight.dtype).view_as(layer.weight))}
    return new
