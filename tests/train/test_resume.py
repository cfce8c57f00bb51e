import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bigmodel_ext.compress.prune import GradualPruner, MaskPruner
from bigmodel_ext.train import resume
from bigmodel_ext.train.augment import Augment
from bigmodel_ext.train.loop import CrossEntropy, Examples, Resume, TrainConfig, fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2)
OPTIMIZERS = ({}, {"optimizer": "adam"}, {"optimizer": "sgd", "learning_rate": 0.1})
STEPS = 12  # four batches in each of three epochs


class Stop(Exception):
    pass


class Hook:
    """A pruner's, whose state is kept, and the end of the process or of training after some step."""

    def __init__(self, model, stop):
        self.pruner = GradualPruner(MaskPruner(model, pruning_ratio=0.5), STEPS, ramp=0.5, every=2)
        self.stop = stop
        self.state, self.restore = self.pruner.state, self.pruner.restore

    def __call__(self, step):
        self.pruner(step)
        if step == self.stop:
            raise Stop
        if self.stop is not None and step == -self.stop:
            os.kill(os.getpid(), signal.SIGKILL)


class OwnParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, model, inputs, targets):
        return nn.functional.cross_entropy(model(inputs) * self.scale, targets)


def images():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(70, 1, 4, 4, generator=generator)
    return Examples(inputs, torch.randint(3, (70,), generator=generator))


def loader():
    data = images()
    return DataLoader(TensorDataset(data.inputs[:64], data.targets[:64]), batch_size=16, shuffle=True)


def run(path, config=CONFIG, stop=None, make=images):
    """Everything that has a state: dropout, batch norm, augmentation, masks, the loss's own parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
    loss = OwnParameters()
    kept = None if path is None else Resume(path, every=3)
    means = fit(
        model, make(), loss, config, seed=0, augment=Augment({"noise": 0.1, "rotate": 5.0}, 3),
        on_step=Hook(model, stop), resume=kept,
    )  # fmt: skip
    return {**model.state_dict(), "scale": loss.scale.detach()}, means


def same(one, other):
    assert set(one[0]) == set(other[0])
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("changes", OPTIMIZERS)
@pytest.mark.parametrize("make", [images, loader])
def test_stopped_anywhere_and_resumed_it_ends_the_same(tmp_path, changes, make):
    config = replace(CONFIG, **changes)
    straight = run(None, config, make=make)
    for stop in (1, 4, 5, 7, 11, 12):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stop):
            run(path, config, stop, make)
        torch.rand(stop)  # the next process's generators are elsewhere
        same(run(path, config, make=make), straight)


def test_stopped_again_and_again(tmp_path):
    path = tmp_path / "run.safetensors"
    for stop in range(1, STEPS + 1):
        with contextlib.suppress(Stop):
            run(path, stop=stop)
    same(run(path), run(None))


def test_killed_and_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    code = f"import test_resume as t, pathlib; t.run(pathlib.Path({str(path)!r}), stop=-8)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert resume.read(path)[1]["step"] == 6
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    same(run(path), run(None))


def test_a_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "run.safetensors"
    first = run(path)
    same(run(path, stop=1), first)  # not one step


def test_where_it_was_killed_matters_to_what_is_kept(tmp_path):
    """Without the states of masks and generators a resumed run would end elsewhere."""
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(path, stop=8)
    parts, position = resume.read(path)
    straight = run(None)
    for part in ("augment", "now", "on_step", "own", "optimizer"):
        other = {name: dict(named) for name, named in parts.items()}
        if part == "on_step":
            other[part] = {"steps": torch.tensor(0)}
        elif part == "optimizer":
            other[part] = {name: torch.zeros_like(t) + t.mean() for name, t in other[part].items()}
        elif part == "own":
            other[part] = {"0": torch.full((3,), 0.5)}
        else:
            torch.manual_seed(77)
            other[part] = {name: torch.get_rng_state()[None] for name in other[part]}
        resume.write(path, other, position)
        changed, _ = run(path)
        assert not all(torch.equal(changed[name], straight[0][name]) for name in changed), part


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"learning_rate": 2e-2}, r"of another run: config is \{.*0.01.*\} there and \{.*0.02.*\} here"),
     ({"batch_size": 8}, "of another run: config is")],
)  # fmt: skip
def test_another_run_is_refused(tmp_path, changes, message):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(path, stop=4)
    with pytest.raises(ValueError, match=message):
        run(path, replace(CONFIG, **changes))


def test_another_model_is_refused_and_stays(tmp_path):
    path = tmp_path / "run.safetensors"
    model = nn.Linear(4, 3)
    data = Examples(torch.randn(32, 4), torch.randint(3, (32,)))
    go = partial(fit, examples=data, loss=CrossEntropy(), config=CONFIG, seed=0, resume=Resume(path))
    go(model)
    for other in (nn.Linear(4, 3, bias=False), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))):
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(ValueError, match="of another run: "):
            go(other)
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))
    with pytest.raises(ValueError, match=r"with a state is \[\] there and \['augment'\] here"):
        go(model, augment=Augment({}, 0))


def test_damage_is_told(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(path, stop=4)
    good = path.read_bytes()
    for at in (3, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ValueError, match=r"run\.safetensors' can't be resumed from: "):
            run(path)
        path.write_bytes(good[:at])
        with pytest.raises(ValueError, match=r"run\.safetensors' can't be resumed from: "):
            run(path)
    assert b"pickle" not in good
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Resume(path, every=0)
