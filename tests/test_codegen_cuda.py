"""What nvcc makes of the CUDA kernels: checked wherever there is an nvcc, without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


@pytest.mark.parametrize(("arch", "dtype"), [("80", "f32"), ("90a", "f32"), ("90a", "bf16"), ("80", "f16")])
def test_no_spills_and_16_byte_moves(tmp_path, arch, dtype):
    source = SOURCES / f"fused_dropout_{dtype}.cu"
    gencode = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = [NVCC, "-std=c++17", "-O3", gencode, "-Xptxas", "-v", "--keep", "--keep-dir", tmp_path, "-cubin"]
    result = subprocess.run([*command, "-o", tmp_path / "out.cubin", source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert len(kernels) == 16, f"8 activations, 2 directions; ptxas reports {len(kernels)} kernels"
    assert set(kernels) == {("0", "0", "0")}, result.stderr

    # One kernel's PTX at a time: x and the other operand are read, the result is written, in 16-byte vectors.
    (ptx,) = tmp_path.glob("*.ptx")
    bodies = ptx.read_text().split(".entry")[1:]
    assert len(bodies) == 16
    steps = 2 if dtype == "f32" else 1
    for body in bodies:
        name = body[:200].split("(")[0].strip()
        assert len(re.findall(r"ld\.global\.nc\.v4", body)) >= 2 * steps, name
        assert len(re.findall(r"st\.global\.v4", body)) == steps, name
