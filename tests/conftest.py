import os
from contextlib import nullcontext

import pytest
import torch
from bigmodel_ext import _dispatch, _gains, _measure, _native

pytest.register_assert_rewrite("checkpoints", "layers", "sparse_cases", "tolerances")
os.environ["BIGMODEL_CACHE"] = "off"  # the user's own measurements are neither used nor changed


DEVICE = os.environ.get("BIGMODEL_TEST_DEVICE")  # where the op tests' tensors are, for make gpu-check
if DEVICE:
    torch.set_default_device(DEVICE)
FORCED = DEVICE or _dispatch.forced_backend()
OTHER_KERNELS = FORCED not in (None, "cpu", "reference")  # the op tests run on them, instead of each instruction set
ISAS = (FORCED,) if OTHER_KERNELS else _native.available_isas()


def pytest_collection_modifyitems(config, items):
    """Tests of the CPU's kernels are no tests of others."""
    if OTHER_KERNELS:
        left_out = [item for item in items if item.get_closest_marker("cpu_only")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def on_isa(name):
    return nullcontext() if OTHER_KERNELS else _native.forced_isa(name)


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set of this processor in turn."""
    with on_isa(request.param):
        yield request.param


@pytest.fixture(params=[isa for isa in ISAS if isa not in ("avx512vnni", "avx512vbmi")])
def float_isa(request):
    """The same, less the sets that only add integer products and permutations of bytes."""
    with on_isa(request.param):
        yield request.param


@pytest.fixture
def one_thread():
    """For small work: waking a second thread takes longer, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1] if OTHER_KERNELS else [1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Figures:
    """Stands for the measurement: gains by class and rows, 2.0 where nothing is given, and what was asked."""

    def __init__(self):
        self.given, self.asked, self.dense = {}, [], []

    def __call__(self, dense, *others, clock):
        self.dense.append(dense.func)
        result = []
        for other in others:
            form, x = other.func, other.args[0]
            assert other().shape == dense().shape
            assert x is dense.args[0]
            assert torch.is_inference_mode_enabled()
            name = type(form).__name__
            self.asked.append((name, len(x)))
            key = (name, len(x))
            result.append(self.given.get((*key, getattr(form, "panel", None)), self.given.get(key, 2.0)))
        return result


@pytest.fixture
def figures(monkeypatch, tmp_path):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_gains, "_memory", _gains._Memory())
    given = Figures()
    monkeypatch.setattr(_measure, "gains", given)
    return given
