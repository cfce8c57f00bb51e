import importlib.util
from pathlib import Path

import pytest
from bigmodel_ext import _native
from emulation import SANITIZED, SCHEDULES

BUILD = Path(__file__).parent.parent.parent / "build"


@pytest.fixture(scope="session")
def kernels():
    """The module of tests/emulator/kernels.cu, which `make build` leaves in its build folder."""
    builds = [b for b in BUILD.glob("*/csrc/emulator/emulator_kernels*.so") if ("asan" in b.parts) == SANITIZED]
    found = sorted(builds, key=lambda p: p.stat().st_mtime)
    if not found:
        pytest.skip("needs the build folder of `make build`")
    spec = importlib.util.spec_from_file_location("emulator_kernels", found[-1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated():
    if not _native.has_emulated():
        pytest.skip("built without BIGMODEL_EMULATE")
    return _native.load_emulated()


@pytest.fixture(params=SCHEDULES, ids=lambda p: f"{p[0]}{p[1] or ''}")
def schedule(request, kernels):
    kernels.configure(schedule=request.param[0], seed=request.param[1])
    yield request.param
    kernels.configure()


@pytest.fixture
def steered(emulated):
    """The emulator, with its settings as they were afterwards."""
    emulated.take_reports()
    yield emulated
    emulated.configure()
