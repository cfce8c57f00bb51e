import os

import pytest
import torch
from bigmodel_ext import _native

os.environ["BIGMODEL_CACHE"] = "off"  # the user's own measurements are neither used nor changed


@pytest.fixture(params=_native.available_isas())
def isa(request):
    """Each instruction set of this processor in turn."""
    with _native.forced_isa(request.param):
        yield request.param


@pytest.fixture(params=[isa for isa in _native.available_isas() if isa not in ("avx512vnni", "avx512vbmi")])
def float_isa(request):
    """The same, less the sets that only add integer products and permutations of bytes."""
    with _native.forced_isa(request.param):
        yield request.param


@pytest.fixture
def one_thread():
    """For small work: waking a second thread takes longer, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
