"""What `import bigmodel_ext` may cost and may need."""

import os
import subprocess
import sys

import pytest

OPTIONAL = (
    "triton", "kornia", "torch_pruning", "sklearn", "matplotlib", "rich", "torchvision", "onnxruntime",
    "torchao", "transformers", "constriction", "accelerate",
)  # fmt: skip


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


def test_works_without_any_optional_package():
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # an import of it now raises ImportError
import torch, bigmodel_ext
from bigmodel_ext import functional as F
print(F.int8_mm(torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 3, dtype=torch.int8)).tolist())
"""
    result = python(code)
    assert result.stdout.strip() == str([[3] * 4] * 2), result.stderr
    assert result.stderr == ""


def test_imports_no_optional_package():
    code = f"""
import sys, torch
before = set(sys.modules)
import bigmodel_ext
print([name for name in {OPTIONAL!r} if name in set(sys.modules) - before])
"""
    assert python(code).stdout.strip() == "[]"


def test_loads_one_openmp_runtime():
    code = """
import torch, bigmodel_ext
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
bigmodel_ext.functional.quantize_rows(torch.ones(4096, 512))
print(len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rsplit("/", 1)[-1]}))
"""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs Linux's /proc to list loaded libraries")
    assert python(code).stdout.strip() == "1"


def test_the_compiled_module_links_no_torch():
    code = """
import importlib.util, pathlib
# The compiled module alone, without torch ever imported.
spec = importlib.util.find_spec("bigmodel_ext")
file = next(pathlib.Path(spec.submodule_search_locations[0]).glob("_C.*"))
spec = importlib.util.spec_from_file_location("_C", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.detected_isa())
"""
    assert python(code).stdout.strip() in ("scalar", "avx2", "avx512", "avx512vnni", "avx512vbmi")


def test_forced_isa_is_used_or_refused():
    show = "from bigmodel_ext import _native; print(_native.active_isa())"
    assert python(show, BIGMODEL_ISA="scalar").stdout.strip() == "scalar"
    refused = python(show, BIGMODEL_ISA="avx1024")
    assert refused.returncode != 0
    assert "BIGMODEL_ISA must be scalar, avx2, avx512, avx512vnni or avx512vbmi, got 'avx1024'" in refused.stderr
