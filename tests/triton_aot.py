"""Compiles Triton kernels for devices that are not there, with the types that their launchers pass."""

import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import triton
from bigmodel_ext.triton_kernels import _launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """What a launcher would run: a kernel, its arguments, and one of its configurations."""

    kernel: object
    args: dict
    config: _launch.Config

    def source(self) -> ASTSource:
        constants, signature, attributes = dict(self.config.constants), {}, {}
        for i, parameter in enumerate(self.kernel.params):
            name = parameter.name
            value = self.args.get(name)
            if name in constants or parameter.is_constexpr or value is None:
                constants[name], signature[name] = constants.get(name, value), "constexpr"
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif value == 1:
                constants[name], signature[name] = 1, "constexpr"
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)

    def compiled(self, target: str) -> "Compiled":
        options = self.config.options(target)
        return Compiled(triton.compile(self.source(), target=TARGETS[target], options=options), target)


@dataclass(frozen=True)
class Compiled:
    kernel: object
    target: str

    @cached_property
    def sass(self) -> str:
        return self._tool("nvdisasm", "-c")

    @cached_property
    def usage(self) -> dict[str, int]:
        """REG, STACK, LOCAL and so on, as cuobjdump tells; on AMD vgpr_count and the like, from the metadata."""
        if self.target.startswith("gfx"):
            return {
                name: int(n) for name, n in re.findall(r"\.(\w+(?:count|size)):\s+(\d+)", self.kernel.asm["amdgcn"])
            }
        return {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", self._tool("cuobjdump", "-res-usage"))}

    def _tool(self, name: str, *options: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            done = subprocess.run([BIN / name, *options, file.name], capture_output=True, text=True, check=True)
        return done.stdout

    @property
    def spills(self) -> int:
        if self.target.startswith("gfx"):
            return self.usage["vgpr_spill_count"] + self.usage["sgpr_spill_count"]
        return self.usage["LOCAL"] + self.usage["STACK"]


@contextmanager
def recorded():
    """Launches inside are collected, one Launch per configuration, and not run."""
    found: list[Launch] = []
    _launch.record(lambda kernel, args, configs: found.extend(Launch(kernel, args, c) for c in configs))
    try:
        yield found
    finally:
        _launch.record(None)
