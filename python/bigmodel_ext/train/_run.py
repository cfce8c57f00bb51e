"""One training run: where it is, its steps, and keeping all that in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bigmodel_ext.train import optimizers, resume
from bigmodel_ext.train.settings import Batches, Examples, Loss, NonFiniteLossError, OnStep, TrainConfig, cosine


class Across(Protocol):
    """The processes that train one model together."""

    rank: int
    processes: int
    sharded: bool  # parameters are spread over the processes while it trains

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is trained: it averages gradients over the processes."""

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""

    def gather(self, value: Tensor) -> Tensor:
        """[processes, ...], each one's value."""

    def finish(self, model: nn.Module, wrapped: nn.Module) -> None:
        """Bring what was trained back into the model."""

    def wait(self) -> None:
        """Until all processes have come here."""


class _Alone:
    rank, processes, sharded = 0, 1, False

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def mean(self, value: Tensor) -> Tensor:
        return value

    def gather(self, value: Tensor) -> Tensor:
        return value[None]

    def finish(self, model: nn.Module, wrapped: nn.Module) -> None:
        pass

    def wait(self) -> None:
        pass


ALONE = _Alone()


def device_of(model: nn.Module, otherwise: torch.device) -> torch.device:
    """Where the model's parameters (or, without any, its buffers) are."""
    return next((t.device for tensors in (model.parameters(), model.buffers()) for t in tensors), otherwise)


def _row(states: Tensor, rank: int) -> Tensor:
    """One process's state of a generator, at the start of memory: torch's set_state reads from there, whatever part of
    it a tensor is (seen in 2.13)."""
    return states[rank].clone()


class Run:
    """See :func:`bigmodel_ext.train.loop.fit`, which explains the arguments."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples | Batches,
        loss: Loss,
        config: TrainConfig,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None,
        on_step: OnStep | None,
        stage: str,
        kept: resume.Resume | None,
        across: Across,
    ) -> None:
        self.model, self.examples, self.loss, self.config, self.seed = model, examples, loss, config, seed
        self.augment, self.on_step, self.stage, self.kept, self.across = augment, on_step, stage, kept, across
        self.own = [p for p in loss.parameters() if p.requires_grad] if isinstance(loss, nn.Module) else []
        self._check()
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.at, self.losses = 0, 0, 0.0  # at: batches done in this epoch
        self.means: list[float] = []
        self.after_skipping: dict[str, Tensor] | None = None
        across.wait()  # process 0 may still be writing what another run left
        saved = resume.read(kept.path) if kept is not None and kept.path.exists() else None
        if saved is not None:
            self._check_saved(*saved)
        self.wrapped = across.wrap(model)
        self.device = device_of(self.wrapped, torch.device("cpu"))
        trained = nn.ModuleList([self.wrapped, loss]) if isinstance(loss, nn.Module) else self.wrapped
        self.optimizer = optimizers.make(trained, config)
        if saved is not None:
            self._restore(*saved)
        else:
            self._alike()

    @property
    def epoch(self) -> int:
        return len(self.means)

    @property
    def per_epoch(self) -> int:
        if isinstance(self.examples, Examples):
            return self.config.steps_per_epoch(len(self.examples), self.across.processes)
        return len(self.examples)

    def train_epoch(self) -> None:
        """What is left of the current epoch."""
        self.model.train()
        self.wrapped.train()
        if self.at == 0:
            self.order_then, self.generators_then = self.generator.get_state(), resume.generators(self.device)
        batches = self._batches()
        for _ in range(self.at):  # done before the run was killed
            next(batches)
        if self.after_skipping is not None:
            resume.restore_generators(self.after_skipping, self.device)
            self.after_skipping = None
        for inputs, targets in batches:
            self._train(inputs.to(self.device), targets.to(self.device))
            if self.kept is not None and self.step % self.kept.every == 0 and self.at < self.per_epoch:
                self._save()
        self.means.append(self.losses / max(1, self.at))
        self.at, self.losses = 0, 0.0
        if self.kept is not None:
            self._save()

    def finish(self) -> None:
        self.across.finish(self.model, self.wrapped)
        self.model.eval()

    def _check(self) -> None:
        processes, batch = self.across.processes, self.config.batch_size
        if processes > 1 and isinstance(self.examples, Examples) and len(self.examples) < processes * batch:
            need = f"{processes} processes of {batch} each need {processes * batch}"
            raise ValueError(f"examples are too few for one batch: {need}, got {len(self.examples)}")
        given = {"on_step": self.on_step, "resume": self.kept, "a loss with parameters of its own": self.own or None}
        refused = [name for name, value in given.items() if value is not None]
        if self.across.sharded and refused:
            raise ValueError(f"sharded training (FSDP) can't be combined with {', '.join(refused)}")

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not isinstance(self.examples, Examples):
            yield from self.examples
            return
        order = torch.randperm(len(self.examples), generator=self.generator)
        size = self.config.batch_size
        for i in range(self.per_epoch):
            first = (i * self.across.processes + self.across.rank) * size
            batch = order[first : first + size].to(self.examples.inputs.device)
            yield self.examples.inputs[batch], self.examples.targets[batch]

    def _train(self, inputs: Tensor, targets: Tensor) -> None:
        value = self.loss(self.wrapped, inputs if self.augment is None else self.augment(inputs), targets)
        number = float(self.across.mean(value.detach()))
        if not math.isfinite(number):
            where = f"stage '{self.stage}', epoch {self.epoch + 1}"
            raise NonFiniteLossError(f"the loss became {number} in {where}")
        self.losses += number
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(self.step, self.per_epoch * config.epochs, config.warmup)
        self.optimizer.zero_grad()
        value.backward()
        for p in self.own:
            if p.grad is not None:
                p.grad = self.across.mean(p.grad)
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], config.clip)
        self.optimizer.step()
        self.step, self.at = self.step + 1, self.at + 1
        if self.on_step is not None:
            self.on_step(self.step)

    @torch.no_grad()
    def _alike(self) -> None:
        """The loss's own parameters begin alike in all processes, as the model's do."""
        for p in self.own:
            p.copy_(self.across.mean(p.detach()))

    # What is kept.

    def _identity(self) -> dict[str, Any]:
        return {
            "config": vars(self.config),
            "seed": self.seed,
            "stage": self.stage,
            "examples": len(self.examples),
            "processes": self.across.processes,
        }

    def _stateful(self) -> dict[str, resume.Stateful]:
        named: dict[str, object] = {"augment": self.augment, "on_step": self.on_step, "loss": self.loss}
        return {name: thing for name, thing in named.items() if isinstance(thing, resume.Stateful)}

    def _save(self) -> None:
        assert self.kept is not None
        now = resume.generators(self.device)
        then = self.generators_then if self.at else now
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "own": {str(i): p for i, p in enumerate(self.own)},
            "optimizer": resume.optimizer_state(self.optimizer),
            "order": {"then": self.order_then if self.at else self.generator.get_state()},
            "then": {name: self.across.gather(state) for name, state in then.items()},
            "now": {name: self.across.gather(state) for name, state in now.items()},
        }
        for name, thing in self._stateful().items():
            gather = self.across.gather if name == "augment" else torch.Tensor.clone  # the others are alike in all
            parts[name] = {key: gather(value) for key, value in thing.state().items()}
        position = {"run": self._identity(), "step": self.step, "at": self.at}
        if self.across.rank == 0:
            resume.write(self.kept.path, parts, {**position, "losses": self.losses, "means": self.means})

    def _check_saved(self, parts: dict[str, dict[str, Tensor]], position: dict[str, Any]) -> None:
        assert self.kept is not None
        resume.require_same(self.kept.path, position["run"], self._identity())
        saved, here = (resume.shapes(t.items()) for t in (parts.get("model", {}), self.model.state_dict()))
        resume.require_same(self.kept.path, saved, here)
        resume.require_same(self.kept.path, {"tensors": len(saved)}, {"tensors": len(here)})
        things = sorted(name for name in ("augment", "on_step", "loss") if name in parts)
        resume.require_same(self.kept.path, {"with a state": things}, {"with a state": sorted(self._stateful())})

    def _restore(self, parts: dict[str, dict[str, Tensor]], position: dict[str, Any]) -> None:
        rank = self.across.rank
        self.model.load_state_dict(parts["model"])
        with torch.no_grad():
            for i, p in enumerate(self.own):
                p.copy_(parts["own"][str(i)])
        resume.restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for name, thing in self._stateful().items():
            saved = parts[name].items()
            thing.restore({key: _row(value, rank) if name == "augment" else value for key, value in saved})
        self.step, self.at = position["step"], position["at"]
        self.losses, self.means = position["losses"], position["means"]
        self.order_then = parts["order"]["then"]
        self.generator.set_state(self.order_then)
        self.generators_then = {name: _row(state, rank) for name, state in parts["then"].items()}
        self.after_skipping = {name: _row(state, rank) for name, state in parts["now"].items()}
        resume.restore_generators(self.generators_then, self.device)
