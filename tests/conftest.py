import os

import pytest
import torch
from bigmodel_ext import _gains, _measure, _native
from shapes import EXECUTED

pytest.register_assert_rewrite("checkpoints", "layers", "sparse_cases", "tolerances")
os.environ["BIGMODEL_CACHE"] = "off"  # the user's own measurements are neither used nor changed


ISAS = (EXECUTED,) if EXECUTED else _native.available_isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set of this processor in turn; once, where another backend's kernels run."""
    if EXECUTED:
        yield request.param
        return
    with _native.forced_isa(request.param):
        yield request.param


@pytest.fixture(params=[isa for isa in ISAS if isa not in ("avx512vnni", "avx512vbmi")])
def float_isa(request):
    """The same, less the sets that only add integer products and permutations of bytes."""
    if EXECUTED:
        yield request.param
        return
    with _native.forced_isa(request.param):
        yield request.param


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("cpu_only")
        if EXECUTED and marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"of the CPU only: {marker.kwargs['reason']}"))


@pytest.fixture
def one_thread():
    """For small work: waking a second thread takes longer, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1] if EXECUTED else [1, 2])
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
