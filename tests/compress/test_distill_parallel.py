"""Distillation in data-parallel training."""

import socket

import pytest
import torch
from bigmodel_ext.compress.distill import DistillationLoss, Hidden, Labels, Logits, SharedTrunk, TrunkLoss
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel


def _net(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def _parts():
    """(student, loss, x, y) as every process makes them."""
    loss = DistillationLoss(_net(16, 0), {("1", "1"): Hidden(4, 16), ("", ""): Logits(2.0)}, {"labels": Labels(0.5)})
    return _net(4, 1), loss, torch.randn(8, 6), torch.randint(3, (8,))


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    student, loss, x, y = _parts()
    wrapped, wrapped_loss = DistributedDataParallel(student), DistributedDataParallel(loss)
    half = slice(4 * rank, 4 * rank + 4)
    wrapped_loss(wrapped, x[half], y[half]).backward()
    grads = {name: p.grad for name, p in [*student.named_parameters(), *loss.named_parameters()]}
    torch.save(grads, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_gradients_of_student_and_projection_are_averaged(tmp_path):
    """Two processes with half the batch each have the gradients of one with all of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, (port, str(tmp_path)), nprocs=2)
    student, loss, x, y = _parts()
    loss(student, x, y).backward()
    wanted = {name: p.grad for name, p in [*student.named_parameters(), *loss.named_parameters()]}
    assert "own.0.projection.weight" in wanted
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(got) == set(wanted)
        for name in wanted:
            assert torch.allclose(got[name], wanted[name], atol=1e-6), name


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_names_are_those_inside_the_wrapper(group):
    student, loss, x, y = _parts()
    alone = loss(student, x, y).item()
    assert loss(DistributedDataParallel(student), x, y).item() == pytest.approx(alone)
    with pytest.raises(ValueError, match=r"the student \(Sequential\) has no submodule 'module.1'"):
        DistillationLoss(_net(16, 0), {("module.1", "1"): Hidden(4, 16)})(DistributedDataParallel(student), x, y)
    trunk = SharedTrunk(nn.Linear(6, 4), {"a": nn.Linear(4, 3)})
    trunk_loss = TrunkLoss({"a": DistillationLoss(None, terms={"labels": Labels()})})
    expected = trunk_loss(trunk, x, {"a": y}).item()
    assert trunk_loss(DistributedDataParallel(trunk), x, {"a": y}).item() == pytest.approx(expected)
