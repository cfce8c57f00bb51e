"""What nvcc makes of the kernels of unstructured sparse weights: checked wherever there is an nvcc, without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "86", "89", "90a", "100")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")

STREAM, COPY = r"ld\.global\.nc\.L1::no_allocate\.v4", r"cp\.async\.cg\.shared\.global .*, 16,"
MATRIX = r"ldmatrix\.sync\.aligned\.m8n8\.x4\."
# By file: its kernels, the registers of which two blocks of 256 threads have room on a multiprocessor (or fewer),
# and what all of them contain: at least so many of an instruction.
FILES = {
    "sparse_derive": (1, 40, {}),
    "sparse_dense": (4, 40, {r"popc\.b32": 1}),
    "sparse_rows_f32": (4, 128, {r"ld\.global\.nc\.v2": 8, "bar.sync": 2}),
    "sparse_rows_bf16": (8, 128, {r"ld\.global\.nc\.v2": 8, "bar.sync": 2}),
    "sparse_rows_i32": (4, 128, {r"ld\.global\.nc\.v2": 8, r"dp4a\.s32\.s32": 8}),
    "sparse_bits_bf16": (4, 128, {STREAM: 10, r"popc\.b32": 1, r"bfind\.u32|clz\.b32": 24, r"redux\.sync\.max": 1}),
    "sparse_bits_f16": (4, 128, {STREAM: 10, r"popc\.b32": 1, r"bfind\.u32|clz\.b32": 24, r"redux\.sync\.max": 1}),
    "sparse_tiles_bf16": (5, 128, {COPY: 4, MATRIX: 8, r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.bf16": 16}),
    "sparse_tiles_f16": (5, 128, {COPY: 4, MATRIX: 8, r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16": 16}),
    "sparse_int8_tiles": (2, 128, {COPY: 8, MATRIX: 8, r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8": 8}),
}


@pytest.mark.parametrize("name", FILES)
def test_registers_spills_and_instructions(tmp_path, name):
    count, registers, instructions = FILES[name]
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", "--keep", "--keep-dir", tmp_path, "-c"]
    command = [NVCC, *options, *targets, "-o", tmp_path / "out.o", SOURCES / f"{name}.cu"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr, result.stderr
    used = [int(r) for r in re.findall(r"Used (\d+) registers", result.stderr)]
    assert len(used) == count * len(ARCHITECTURES), f"ptxas reports {len(used)} kernels"
    assert max(used) <= registers, used
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert set(spills) == {("0", "0")}, result.stderr
    texts = list(tmp_path.glob("*.ptx"))
    assert len(texts) == len(ARCHITECTURES)
    for text in texts:
        bodies = text.read_text().split(".entry")[1:]
        assert len(bodies) == count
        for body in bodies:
            for instruction, least in instructions.items():
                found = len(re.findall(instruction, body))
                assert found >= least, f"{text.name}: {found} of {instruction} in {body[:200].split('(')[0].strip()}"
