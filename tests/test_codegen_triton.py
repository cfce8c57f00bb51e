"""What Triton makes of its kernels for devices that are not there: no spills, registers, opcodes, 16-byte moves."""

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton, and not its interpreter", allow_module_level=True)

from bigmodel_ext.formats.int8 import pack
from bigmodel_ext.triton_kernels import fused_dropout, fused_dropout_norm, int8_linear, int8_weight_only_linear
from triton_aot import TARGETS, recorded

DTYPES = (torch.float32, torch.bfloat16)


def dropouts():
    for dtype in DTYPES:
        x, features = torch.zeros(64, 4096, dtype=dtype), torch.zeros(4096)
        fused_dropout.run(x, features, x, torch.tensor(1), 0.3, "gelu", False)
        fused_dropout.run(x, features, x, torch.tensor(1), 0.3, "gelu", True)
        rows = torch.zeros(64)
        fused_dropout_norm.forward(x, features, x, torch.tensor(1), features, features, 0.3, "gelu", "layer", 1e-5)
        fused_dropout_norm.backward(
            x, x, x, rows, rows, x, features, torch.tensor(1), features, 0.3, "gelu", "layer"
        )  # fmt: skip


def int8_layers():
    weight = torch.zeros(512, 512, dtype=torch.int8)
    for m in (8, 64, 1024):
        for w in (weight, pack(weight)):
            x = torch.zeros(m, 512, dtype=torch.bfloat16)
            int8_linear.run(x, w, torch.zeros(512), None, "gelu", None)
        for dtype in DTYPES:
            x = torch.zeros(m, 512, dtype=dtype)
            int8_weight_only_linear.run(x, pack(weight), torch.zeros(512), None, "none")


def compiled(run, target):
    with recorded() as found:
        run()
    assert found
    for launch in found:
        if launch.config.only in (None, target):
            yield launch, launch.compiled(target), f"{launch.kernel.__name__} {launch.config} on {target}"


@pytest.mark.parametrize("target", TARGETS)
def test_dropout(target):
    for _, made, name in compiled(dropouts, target):
        assert made.spills == 0, name
        if target.startswith("sm"):
            # The norm's backward pass holds rows of four tensors and sums over rows: it trades occupancy for one pass.
            most = 168 if "norm_backward" in name else 128
            assert made.usage["REG"] <= most, name
            assert "LDG.E.128" in made.sass, name
            assert "STG.E.128" in made.sass, name


@pytest.mark.parametrize("target", TARGETS)
def test_int8(target):
    for launch, made, name in compiled(int8_layers, target):
        assert made.spills == 0, name
        if launch.kernel.__name__ != "int8_kernel":
            continue
        if target.startswith("gfx"):
            assert made.kernel.metadata.shared <= 65536, name
            assert "v_mfma_i32" in made.kernel.asm["amdgcn"], name
            continue
        # Warp groups multiply 64 rows together: for fewer sm_90 has the older instruction too.
        wide = target == "sm_90" and launch.config.constants["BM"] >= 64
        assert ("IGMMA" if wide else "IMMA.16832.S8.S8") in made.sass, name
        assert "LDGSTS.E.BYPASS.128" in made.sass, name
