"""The loss of a student that learns from a teacher, any torch modules: pairs of named outputs and named other terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_ext.compress.distill.capture import capture, find
from bigmodel_ext.compress.distill.pairs import Logits, PairLoss, Similarity
from bigmodel_ext.compress.distill.terms import Labels, Step
from bigmodel_ext.train.loop import NonFiniteLossError, evaluating

Pair = Callable[[Tensor, Tensor], Tensor]
Pairs = Mapping[tuple[str, str], "Pair | Sequence[Pair]"]


class DistillationLoss(nn.Module):
    """``sum over pairs w * loss(student's output, teacher's output) + sum over terms w * term``.

    Args:
        teacher: any module, or None if there are no pairs. It is called in eval mode and without gradients, its modes
            are as before afterwards, and it is no submodule of this one.
        pairs: {(student's name, teacher's name): loss or losses}. Names are submodules', "" the whole model's output
            (`capture` tells what else a name may say). A loss is a `PairLoss`, or any callable (student's tensor,
            teacher's tensor) -> scalar, of weight 1.
        terms: {name: Term}: `Labels`, penalties, or any callable (Step) -> scalar.
        output: which of the student's outputs the terms see.
        indexed: targets are those of `indexed(targets)`.

    Called with (model, inputs, targets), it is a loss for `train.loop.fit`, or for a loop of one's own:
    ``loss(student, x, y).backward()``. Its own parameters (learned projections) have to be given to the optimizer,
    which `fit` does: ``AdamW([*student.parameters(), *loss.parameters()])``; they are in its state dict, not in the
    student's. In data-parallel training they need gradients averaged too: wrap the student and the loss, each in
    DistributedDataParallel. A student or teacher that torch.compile compiled as a whole can be asked for "" only.

    Raises:
        TypeError: a loss or term can't be called.
        ValueError: pairs without a teacher, no pairs and no terms, or a name that the teacher does not have.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        pairs: Pairs | None = None,
        terms: Mapping[str, Callable[[Step], Tensor]] | None = None,
        *,
        output: str = "",
        indexed: bool = False,
    ) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple: neither trained, nor saved, nor moved with this module
        self._pairs: list[tuple[str, str, str, Pair]] = []  # (label, student's name, teacher's name, loss)
        self._terms = dict(terms or {})
        self.output, self.indexed = output, indexed
        self._parts: dict[str, Tensor] = {}
        for key, given in (pairs or {}).items():
            student, named = _pair_of_names(key)
            for loss in given if isinstance(given, (list, tuple)) else (given,):
                self._pairs.append((self._label(student, named, loss), student, named, loss))
        self._check()
        own = [loss for *_, loss in self._pairs] + list(self._terms.values())
        self.own = nn.ModuleList(loss for loss in own if isinstance(loss, nn.Module))

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher[0]

    @property
    def parts(self) -> dict[str, float]:
        """What each pair and term added to the last total, by name, weights included: they sum to it."""
        return {name: float(value) for name, value in self._parts.items()}

    @property
    def student_names(self) -> tuple[str, ...]:
        """What has to be known of the student."""
        names = [student for _, student, *_ in self._pairs] + ([self.output] if self._terms else [])
        return tuple(dict.fromkeys(names))

    def _label(self, student: str, teacher: str, loss: Pair) -> str:
        kind = type(loss).__name__ if isinstance(loss, PairLoss) else getattr(loss, "__name__", type(loss).__name__)
        label = f"{kind}({student or 'output'}, {teacher or 'output'})"
        same = sum(known.split(" #")[0] == label for known, *_ in self._pairs)
        return f"{label} #{same + 1}" if same else label

    def _check(self) -> None:
        if not self._pairs and not self._terms:
            raise ValueError("pairs and terms are both empty: there is nothing to learn from")
        for name, loss in [(label, loss) for label, *_, loss in self._pairs] + list(self._terms.items()):
            if not callable(loss) or isinstance(loss, type):
                raise TypeError(f"{name} must be a loss that can be called, got {loss!r}")
        if self._pairs:
            if not isinstance(self.teacher, nn.Module):
                raise ValueError(f"pairs need a teacher that is a torch module, got {type(self.teacher).__name__}")
            find(self.teacher, self._teacher_names, "teacher")

    @property
    def _teacher_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(teacher for _, _, teacher, _ in self._pairs))

    def forward(self, model: nn.Module, inputs: Any, targets: Any = None, index: Tensor | None = None) -> Tensor:
        """The total, a scalar; `parts` has what it is made of.

        Args:
            model: the student.
            inputs: for both models; a mapping is given as keyword arguments, a tuple as several.
            targets: for the terms.
            index: the examples' numbers in their data set, [B], for cached answers of a teacher.

        Raises:
            ValueError: a name that the student does not have, or shapes that don't fit; the message names the pair.
            NonFiniteLossError: the teacher's output holds NaN or infinity.
        """
        find(model, self.student_names, "student")  # before the teacher's work
        known = self.teach(inputs)
        seen = capture(model, self.student_names, inputs, "student")
        return self.total(model, seen, known, inputs, targets, index)

    def teach(self, inputs: Any) -> dict[str, Tensor]:
        """What the teacher says, by its names."""
        if self.teacher is None or not self._pairs:
            return {}
        with evaluating(self.teacher):
            known = capture(self.teacher, self._teacher_names, inputs, "teacher")
        for name, value in known.items():
            if not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                told = f"{bad} of {value.numel()} values that are NaN or infinite"
                raise NonFiniteLossError(f"the teacher's output {name!r} holds {told}")
        return known

    def total(
        self,
        model: nn.Module,
        seen: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
        inputs: Any,
        targets: Any = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The loss of what was seen of the student, by `student_names`, and is known of the teacher."""
        if self.indexed and targets is not None:
            targets, index = unindexed(targets)
        parts = {}
        for label, student, teacher, loss in self._pairs:
            try:
                value = loss(seen[student], known[teacher])
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from error
            except RuntimeError as error:
                shapes = list(seen[student].shape), list(known[teacher].shape)
                if shapes[0] == shapes[1]:
                    raise
                raise ValueError(f"{label}: shapes {shapes[0]} and {shapes[1]} do not fit: {error}") from error
            parts[label] = getattr(loss, "weight", 1.0) * value
        if self._terms:
            step = Step(model, inputs, seen[self.output], targets, index)
            for label, term in self._terms.items():
                parts[label] = getattr(term, "weight", 1.0) * term(step)
        self._parts = {label: value.detach() for label, value in parts.items()}
        return _sum(parts.values())


def _pair_of_names(key: Any) -> tuple[str, str]:
    if not (isinstance(key, tuple) and len(key) == 2 and all(isinstance(name, str) for name in key)):
        raise TypeError(f"pairs must be named by (student's name, teacher's name), got {key!r}")
    return key


def _sum(values: Iterable[Tensor]) -> Tensor:
    total, *rest = values
    for value in rest:
        total = total + value.to(total.device)
    return total


def indexed(targets: Tensor) -> Tensor:
    """Targets [n] or [n, T] with each example's number as a last column, [n, 2] or [n, T + 1]: for a loop that hands on
    nothing but (model, inputs, targets), with `DistillationLoss(indexed=True)`.

    Raises:
        TypeError: targets are not int64.
    """
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 to carry an index, got {targets.dtype}")
    number = torch.arange(len(targets), device=targets.device)
    return torch.cat([targets.reshape(len(targets), -1), number[:, None]], 1)


def unindexed(targets: Tensor) -> tuple[Tensor, Tensor]:
    """(targets, example numbers) of `indexed`.

    Raises:
        ValueError: they have no index column.
    """
    if not isinstance(targets, Tensor) or targets.dim() != 2 or targets.shape[1] < 2:
        shape = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"targets must be those of indexed(targets), [B, 2] or wider, got {shape}")
    labels = targets[:, :-1]
    return labels.squeeze(1) if labels.shape[1] == 1 else labels, targets[:, -1]


class Distillation(DistillationLoss):
    """``soft_weight * Logits + (1 - soft_weight) * Labels + feature_weight * Similarity``, the last of what goes into
    each model's submodule ``head``."""

    def __init__(
        self, teacher: nn.Module, temperature: float = 3.0, soft_weight: float = 0.9, feature_weight: float = 0.0
    ) -> None:
        pairs: dict[tuple[str, str], Pair] = {("", ""): Logits(temperature, weight=soft_weight)}
        if feature_weight:
            pairs["head:input", "head:input"] = Similarity(feature_weight)
        super().__init__(teacher, pairs, {"labels": Labels(1 - soft_weight)})
