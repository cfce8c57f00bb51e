import pytest
import torch
from bigmodel_ext import _native


@pytest.fixture(params=_native.available_isas())
def isa(request):
    """Each instruction set of this processor in turn."""
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
