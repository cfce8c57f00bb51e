"""What nvcc makes of the CUDA int8 kernels: registers, spills and, where there is a disassembler (CUDA's or that of
Triton's wheel), the instructions."""

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "90a", *(pytest.param(arch, marks=pytest.mark.long) for arch in ("86", "89", "100")))

# By file: how many kernels it has, the most registers of each (by a part of its name, the first that fits), and
# instructions that it must contain.
FILES = {
    "quantize_rows": (12, {"": 96}, (r"LDG\.E\.128", r"STG\.E\.64", r"REDUX\.MAX")),
    "int8_gemv": (9, {"": 128}, (r"LDG\.E\.NA\.128\.CONSTANT", r"IDP\.4A\.S8\.S8", r"LDS\.128", r"REDUX\.SUM")),
    "int8_skinny": (4, {"": 128}, (r"LDG\.E\.NA\.128\.CONSTANT", r"IMMA\.16832\.S8\.S8")),
    "int8_tiles_sm80": (
        6,
        {"sum_splits": 64, "TileE2E": 255, "TileE1E": 128, "TileE0E": 168},
        (r"IMMA\.16832\.S8\.S8", r"LDGSTS\.E\.BYPASS\.128", r"LDSM\.16\.M88\.4", r"STG\.E\.128"),
    ),
}

HOPPER = {  # columns of a warpgroup's blocks, and how many it has
    "Int8WgmmaE0E": (64, 1),
    "Int8WgmmaE1E": (128, 1),
    "Int8WgmmaE2E": (256, 1),
    "Int8WgmmaE3E": (192, 2),
}

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


def disassembler():
    triton = importlib.util.find_spec("triton")
    bundled = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return shutil.which("nvdisasm") or (str(bundled) if bundled and bundled.exists() else None)


def instructions(tool, cubin):
    """By kernel: its disassembly."""
    result = subprocess.run([tool, "-c", cubin], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    parts = re.split(r"^\.text\.(\S+):", result.stdout, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a file for an architecture, once."""
    return cache(lambda file, arch: compile_cubin(tmp_path_factory.mktemp("cubin"), file, arch))


def compile_cubin(folder, file, arch):
    """The machine code's path, and what ptxas says about each kernel: bytes of stack, stores and loads of spills; and
    registers."""
    cubin, gencode = folder / "out.cubin", f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = [NVCC, "-std=c++17", "-O3", gencode, "-Xptxas", "-v", "-cubin", "-o", cubin, SOURCES / f"{file}.cu"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Also what ptxas only mentions: products made to wait for one another, registers that do not move.
    assert not re.search(r"warning|serializ|setmaxnreg|C75\d\d", result.stderr), result.stderr
    pattern = (
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = re.findall(pattern, result.stderr, flags=re.S)
    return cubin, {name: ([int(n) for n in spills], int(used)) for name, *spills, used in found}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers_and_instructions(compiled, file, arch):
    count, caps, wanted = FILES[file]
    cubin, kernels = compiled(file, arch)
    assert len(kernels) == count, list(kernels)
    for name, (spills, registers) in kernels.items():
        assert spills == [0, 0, 0], name
        most = next(cap for part, cap in caps.items() if part in name)
        assert registers <= most, name
    tool = disassembler()
    if tool is None:
        pytest.skip("no nvdisasm: registers and spills are right, instructions were not looked at")
    code = instructions(tool, cubin)
    assert set(code) == set(kernels)
    for pattern in wanted:
        assert any(re.search(pattern, body) for body in code.values()), pattern
    for name, body in code.items():
        assert not re.search(r"\b(LDL|STL)\b", body), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_loop_of_the_tiles(compiled, arch):
    """From a barrier to the loop's end: as many copies, loads and products as a step has, and little else."""
    tool = disassembler()
    if tool is None:
        pytest.skip("no nvdisasm")
    cubin, _ = compiled("int8_tiles_sm80", arch)
    per_step = {"TileE0E": (8, 16, 32), "TileE1E": (4, 12, 32), "TileE2E": (6, 16, 64)}
    for part, (copies, loads, products) in per_step.items():
        (body,) = (b for name, b in instructions(tool, cubin).items() if part in name and "Li16E" in name)
        lines = [line for line in body.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
        last = max(i for i, line in enumerate(lines) if "IMMA" in line)
        first = max(i for i, line in enumerate(lines[:last]) if "BAR.SYNC" in line)
        loop = "\n".join(lines[first : last + 1])
        assert len(re.findall(r"LDGSTS", loop)) == copies
        assert len(re.findall(r"LDSM", loop)) == loads
        assert len(re.findall(r"IMMA", loop)) == products
        assert last - first < 1.5 * (copies + loads + products) + 60, part


def test_hopper(compiled):
    """Accumulators fit beside all else that the warpgroups which multiply need, and their loop is: a wait for the
    copies, the products of four times 32 of K, a wait for the products of the step before, a signal that its copies
    are used."""
    cubin, kernels = compiled("int8_tiles_sm90", "90a")
    assert len(kernels) == len(HOPPER), list(kernels)
    for name, (spills, registers) in kernels.items():
        assert (spills, registers) == ([0, 0, 0], 168), name  # a third of a multiprocessor's, until they are moved
    tool = disassembler()
    if tool is None:
        pytest.skip("no nvdisasm: registers and spills are right, instructions were not looked at")
    code = instructions(tool, cubin)
    for part, (columns, blocks) in HOPPER.items():
        (body,) = (b for name, b in code.items() if part in name)
        assert not re.search(r"\b(LDL|STL)\b", body), part
        assert len(re.findall(r"UTMALDG\.2D", body)) == 2, part
        assert re.search(r"USETMAXREG\.TRY_ALLOC\.CTAPOOL \S+ 0xf0", body), part
        assert re.search(r"USETMAXREG\.DEALLOC\.CTAPOOL 0x18", body), part
        assert re.search(r"LDS\.128", body), part
        assert re.search(r"STG\.E\.128", body), part
        lines = [line for line in body.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
        products = [i for i, line in enumerate(lines) if "IGMMA" in line]
        assert all(f"IGMMA.64x{columns}x32.S8.S8" in lines[i] for i in products)
        assert len(products) == 4 * blocks, part
        arrive = next(i for i, line in enumerate(lines) if "WARPGROUP.ARRIVE" in line)
        first = max(i for i, line in enumerate(lines[:arrive]) if "SYNCS.PHASECHK.TRANS64.TRYWAIT" in line)
        last = next(i for i, line in enumerate(lines) if i > products[-1] and "SYNCS.ARRIVE" in line)
        assert sum("WARPGROUP.DEPBAR" in line for line in lines[first:last]) == 1, part
        assert last - first < 50 + 16 * len(products), part
