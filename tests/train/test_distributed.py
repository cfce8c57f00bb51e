"""Two processes on one machine, started as users start them: by torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import CASES, STEPS, alone
from safetensors.torch import load_file

pytest.importorskip("accelerate")
WORKER = Path(__file__).parent / "processes.py"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found: case -> name -> tensor; and what they were told."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = []
    for rank in range(2):
        cases = {}
        for name, tensor in load_file(folder / f"rank{rank}.safetensors").items():
            case, own = name.split("/", 1)
            cases.setdefault(case, {})[own] = tensor
        ranks.append(cases)
    return ranks, [(folder / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]


@pytest.mark.parametrize("name", [*CASES, "pruned", "own"])
def test_two_train_as_one_with_the_double_batch(both, name):
    (first, second), _ = both
    expected = alone(name)
    assert set(first[name]) == set(expected)
    for key, value in expected.items():
        assert torch.equal(first[name][key], second[name][key]), f"{key} differs between the processes"
        assert torch.allclose(first[name][key].float(), value.float(), rtol=1e-3, atol=1e-4), key


def test_training_changed_what_it_compares(both):
    """Two epochs are far from the start, and from what one process finds with its own half of each batch."""
    (first, _), _ = both
    for name, (make, *_) in CASES.items():
        start = make().state_dict()
        moved = [
            (first[name][key].float() - t.float()).abs().max() for key, t in start.items() if t.is_floating_point()
        ]
        assert max(moved) > 0.02, name


def test_masks_are_alike_and_hold(both):
    (first, second), _ = both
    masks = {key for key in first["pruned"] if key.startswith("mask ")}
    assert len(masks) == 3
    for key in masks:
        assert torch.equal(first["pruned"][key], second["pruned"][key])
        weight = first["pruned"][key.removeprefix("mask ") + ".weight"]
        assert torch.equal(weight == 0, ~first["pruned"][key])
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert STEPS == 12


def test_a_stopped_run_of_two_resumes_bit_for_bit(both):
    for rank in both[0]:
        for key, value in rank["straight"].items():
            assert torch.equal(rank["resumed"][key], value), key


def test_errors_are_told_in_each_process(both):
    for few, not_finite, few_sharded, hook in both[1]:
        assert few == few_sharded == "examples are too few for one batch: 2 processes of 8 each need 16, got 10"
        assert not_finite == "the loss became nan in stage 'train', epoch 1"
        assert hook == "sharded training (FSDP) can't be combined with on_step"
