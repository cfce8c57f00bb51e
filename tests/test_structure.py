"""The dependency direction, read off imports, #includes and object files."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "bigmodel_ext"
PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})

# Of our own modules, what each part may import (by prefix); parts not listed are free.
ALLOWED = {
    "_reference": ("_reference",),
    "_checks": ("_checks",),
    "_ops.py": ("_checks",),
    "functional": ("_checks", "_autograd", "_dispatch", "backends", "functional"),
    "formats": ("_checks", "_native", "_reference", "formats"),
    "nn": ("functional", "formats", "nn"),
    "compress": (
        "nn", "functional", "formats", "convert", "checkpoint", "_pruned", "_files", "compress", "train", "_measure",
        "_choose", "_machine",
    ),
    "train": ("nn", "functional", "convert", "checkpoint", "compress", "train", "_files"),
}  # fmt: skip


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "bigmodel_ext":
                found |= {f"bigmodel_ext.{alias.name}" for alias in node.names}
            else:
                found.add(node.module or "")
    return {m.removeprefix("bigmodel_ext.") for m in found if m.startswith("bigmodel_ext.")}


def includes(path: Path) -> list[str]:
    return re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text())


def test_there_is_something_to_check():
    assert len(PYTHON) > 10
    assert len(NATIVE) > 10
    assert own_imports(PACKAGE / "functional" / "__init__.py"), "the import reader finds nothing"


def test_only_native_imports_the_compiled_modules():
    users = {p.name for p in PYTHON if any(m.startswith("_C") for m in own_imports(p))}
    assert users == {"_native.py"}


@pytest.mark.parametrize("part", ALLOWED)
def test_python_imports_point_one_way(part):
    where = PACKAGE / part
    for path in [where] if where.is_file() else sorted(where.rglob("*.py")):
        for module in own_imports(path):
            assert module.startswith(ALLOWED[part]) if ALLOWED[part] else False, f"{path.name} imports {module}"


def test_no_native_file_includes_torch():
    assert not [(p.name, i) for p in NATIVE for i in includes(p) if re.match(r"(torch|ATen|c10)/", i)]


def test_python_headers_stay_in_the_bindings():
    for path in NATIVE:
        if "bindings" not in path.parts:
            assert not [i for i in includes(path) if i == "Python.h" or "pybind11" in i], path


CUDA = sorted(p for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix in {".cpp", ".h", ".cu", ".cuh"})


def code(path: Path) -> str:
    """Without comments."""
    return re.sub(r"//[^\n]*", "", path.read_text())


def test_kernels_are_written_for_both_compilers():
    """What the emulator has no twin for stays behind the named wrappers and helpers."""
    for path in CUDA:
        text = code(path)
        if not path.name.startswith("ptx"):
            assert not re.search(r"\basm\b", text), f"{path.name}: PTX belongs in ptx*.h"
        if path.name != "device.h":
            assert "__shared__" not in text, f"{path.name}: shared memory comes from device.h's helpers"
        if path.name not in {"device.h", "guard.h", "tensor_map.h"}:
            assert not [i for i in includes(path) if "cuda" in i], f"{path.name} includes CUDA's own headers"
        assert "<<<" not in text, f"{path.name}: kernels are launched by launch.h"


def test_every_wrapper_has_a_twin():
    wrapper = re.compile(r"__device__ __forceinline__ [\w]+ (\w+)\(")
    for path in (p for p in CUDA if p.name.startswith("ptx")):
        twins = set(re.findall(r"^inline [\w]+ (\w+)\(", (ROOT / "csrc" / "emulator" / path.name).read_text(), re.M))
        names = set(wrapper.findall(code(path))) | set(re.findall(r"BIGMODEL_WGMMA\((wgmma_\w+),", code(path)))
        names -= {"name", "matrix_descriptor"}  # a macro's parameter; the same function for both
        assert names, path.name
        assert names == twins, path.name


def test_isa_objects_share_no_code():
    """A weak symbol (inline function, template) compiled with wide instructions can replace the portable files' copy at
    link time and crash older machines: objects built for an instruction set may not define any."""
    objects = sorted((ROOT / "build").glob("*/CMakeFiles/bigmodel_avx*.dir/**/*.o"))
    nm = shutil.which("nm")
    if not objects or nm is None:
        pytest.skip("needs the build folder of `make build`, and nm")
    for path in objects:
        symbols = subprocess.run([nm, "--defined-only", "-C", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if line[17:18] in "WVu" and "DW.ref" not in line]
        assert not weak, f"{path.name}: {weak[:5]}"


def test_only_the_command_line_imports_the_benchmarks():
    users = {str(p.relative_to(PACKAGE)) for p in PYTHON if any(m.split(".")[0] == "bench" for m in own_imports(p))}
    assert {user for user in users if not user.startswith("bench/")} == {"cli.py"}
    imported = {m.module for m in ast.parse((PACKAGE / "cli.py").read_text()).body if isinstance(m, ast.ImportFrom)}
    assert not [m for m in imported if m and "bench" in m], "only inside its function"


def test_nothing_imports_tests():
    assert not [p for p in PYTHON if re.search(r"^\s*(from|import)\s+tests\b", p.read_text(), re.M)]
