"""What is pruned together: single weights, 1x4 blocks, 2:4 groups, neurons, channels, attention heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Size, Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Granularity:
    """units: scores of weights -> scores of units [rows, units of a row], sums over a unit's weights; weights: bool
    [rows, units of a row] and the weight's shape -> bool of that shape."""

    unit: str  # what one is called in messages
    kinds: tuple[type[nn.Module], ...]
    units: Callable[[Tensor], Tensor]
    weights: Callable[[Tensor, Size], Tensor]
    of_outputs: bool = False  # a unit is an output with all of its weights, and its bias goes with it


def _blocks(score: Tensor) -> Tensor:
    flat = score.flatten(1)
    return F.pad(flat, (0, -flat.shape[1] % 4)).unflatten(1, (-1, 4)).sum(-1)


def _of_blocks(keep: Tensor, shape: Size) -> Tensor:
    return keep.repeat_interleave(4, dim=1)[:, : shape[1:].numel()].reshape(shape)


def _of_rows(keep: Tensor, shape: Size) -> Tensor:
    return keep.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def _rows(score: Tensor) -> Tensor:
    return score.flatten(1).sum(1).unsqueeze(0)


BOTH = (nn.Linear, nn.Conv2d)
GRANULARITIES = {
    "weight": Granularity("weight", BOTH, lambda score: score.flatten(1), lambda keep, shape: keep.view(shape)),
    "1x4": Granularity("1x4 block", BOTH, _blocks, _of_blocks),
    "2:4": Granularity("weight", BOTH, lambda score: score.flatten(1), lambda keep, shape: keep.view(shape)),
    "neuron": Granularity("neuron", (nn.Linear,), _rows, _of_rows, of_outputs=True),
    "channel": Granularity("channel", (nn.Conv2d,), _rows, _of_rows, of_outputs=True),
}
HEAD = "head"  # a unit over several layers: see MaskedHeads


@dataclass(frozen=True)
class MaskedHeads:
    """The heads of one attention, told by the layer that joins them (the "out projection").

    Args:
        count: heads; head h feeds the out projection's columns h*d to (h+1)*d - 1, d = in_features / count.
        feeding: names of the layers whose rows make the heads: q, k, v, or one joined layer laid out [parts, heads, d].
            Their rows go with the head, and so do its biases. With fewer key than query heads (grouped-query
            attention) a key head stays as long as one of its query heads does.
    """

    count: int
    feeding: tuple[str, ...] = ()

    def check(self, fqn: str, layers: Mapping[str, nn.Module]) -> None:
        """Raises ValueError, TypeError: these are not the heads of the layer `fqn`."""
        linears: dict[str, nn.Linear] = {}
        for name in (fqn, *self.feeding):
            layer = layers.get(name)
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"heads: {name!r} must be an nn.Linear of the model, got {type(layer).__name__}")
            linears[name] = layer
        columns = linears[fqn].in_features
        if self.count < 1 or columns % self.count:
            raise ValueError(f"heads: {fqn} has {columns} columns, which {self.count} heads can't share evenly")
        for name in self.feeding:
            rows, size = linears[name].out_features, columns // self.count
            own = rows // size
            if rows % size or own == 0 or (own % self.count and self.count % own):
                raise ValueError(
                    f"heads: {name} has {rows} rows, which don't fit {self.count} heads of {size} of {fqn}"
                )

    def units(self, fqn: str, scores: Mapping[str, Tensor]) -> Tensor:
        """[1, count]: the sum over the columns and rows of each head."""
        total = scores[fqn].unflatten(1, (self.count, -1)).sum((0, 2))
        for name in self.feeding:
            size = scores[fqn].shape[1] // self.count
            heads = scores[name].sum(1).unflatten(0, (-1, size)).sum(1)  # of this layer's own heads
            if len(heads) < self.count:
                heads = heads.repeat_interleave(self.count // len(heads)) * (len(heads) / self.count)
            total = total + heads.view(-1, self.count).sum(0)
        return total.unsqueeze(0)

    def weights(self, fqn: str, keep: Tensor, shapes: Mapping[str, Size]) -> dict[str, Tensor]:
        """keep bool [1, count] -> a mask for each of the layers."""
        size = shapes[fqn][1] // self.count
        masks = {fqn: keep.repeat_interleave(size, dim=1).expand(shapes[fqn]).clone()}
        for name in self.feeding:
            own = shapes[name][0] // size
            heads = keep.view(own, -1).any(1) if own < self.count else keep.flatten().repeat(own // self.count)
            masks[name] = _of_rows(heads.repeat_interleave(size), shapes[name])
        return masks
