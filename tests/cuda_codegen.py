"""Compiles CUDA kernels for devices that are not there, and reads what became of them."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "86", "89", "90a", "100")


@cache
def _tool(name: str) -> str | None:
    """Of the CUDA toolkit; Triton's wheel has it too."""
    triton = find_spec("triton")
    found = [
        Path(place) / "backends/nvidia/bin" / name for place in (triton and triton.submodule_search_locations) or ()
    ]
    return shutil.which(name) or next((str(path) for path in found if path.exists()), None)


def why_no_disassembly() -> str | None:
    return None if _tool("nvdisasm") else "neither the CUDA toolkit's nvdisasm nor Triton's is there"


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one."""

    name: str
    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...]
    cubin: Path

    def opcodes(self) -> Counter:
        """How often each instruction, with all its suffixes, is there."""
        listing = subprocess.run([_tool("nvdisasm"), "-c", self.cubin], capture_output=True, text=True, check=True)
        return Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing.stdout, re.M))


def compile_source(source: Path, architecture: str, folder: Path) -> Compiled:
    """Compiles as the build does."""
    cubin = folder / f"{source.stem}_{architecture}.cubin"
    gencode = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [NVCC, "-std=c++17", "-O3", gencode, "-Xptxas", "-v", "-cubin", "-o", cubin, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pattern = (
        r"Function properties for (\S+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"\nptxas info\s+: Used (\d+) registers"
    )
    kernels = tuple(
        Kernel(name, int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in re.findall(pattern, result.stderr)
    )
    warnings = tuple(line for line in result.stderr.splitlines() if re.search(r"warning|serializ", line, re.I))
    return Compiled(kernels, warnings, cubin)
