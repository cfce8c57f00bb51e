"""What nvcc makes of the CUDA kernels: checked wherever there is an nvcc, without a GPU. All sources compile for all
architectures without a spill or a warning; each family moves its data and multiplies with the instructions that it was
written for. A part of it runs with the other tests, `make test-codegen` runs all."""

import re
import subprocess

import pytest
from cuda_codegen import ARCHITECTURES, NVCC, SOURCES, compile_source, why_no_disassembly

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")

_STAGES = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4")  # asynchronous copies, and fragments by ldmatrix

# By the beginning of a source's name: the most registers, and instructions of which there must be some.
GATES = {
    "fused_dropout_norm_": (128, ("LDG.E.128.CONSTANT", "STG.E.128", "LDS.128")),
    "semi_sparse_linear_bf16": (255, ("HMMA.SP.16832.F32.BF16", *_STAGES, "LDSM.16.MT88.4")),
    "semi_sparse_linear_f16": (255, ("HMMA.SP.16832.F32", *_STAGES, "LDSM.16.MT88.4")),
    "semi_sparse_linear_f32": (96, ("FFMA", "LDS.128")),
    "int8_semi_sparse_linear": (255, ("IMMA.SP.16864.S8.S8", *_STAGES)),
    "block_product_f32": (168, ("FFMA", "LDGSTS.E.BYPASS.128")),
    "block_product_f16": (200, ("HMMA.16816.F32", *_STAGES, "LDSM.16.MT88.4")),
    "block_product_": (200, ("HMMA.16816.F32.BF16", *_STAGES, "LDSM.16.MT88.4")),
    "sampled_product_f32": (168, ("FFMA", "LDGSTS.E.BYPASS.128")),
    "sampled_product_f16": (168, ("HMMA.16816.F32", "LDGSTS.E.BYPASS.128", "LDSM.16.MT88.4")),
    "sampled_product_": (168, ("HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDSM.16.MT88.4")),
    "fused_dropout_": (96, ("LDG.E.128.CONSTANT", "STG.E.128")),
    "int8_weight_only_linear_f16": (128, ("LDG.E.NA.128.CONSTANT", "HMMA.16816.F32")),
    "int8_weight_only_linear_": (128, ("LDG.E.NA.128.CONSTANT", "HMMA.16816.F32.BF16")),
    "binary_coded_linear_": (128, ("LDG.E.NA.128.CONSTANT", "IMMA.16832.S8.S8")),
}


def source_named(name):
    return SOURCES / f"{name}.cu"


def cases():
    """Quick ones: one dtype of each family on sm_80 and sm_90a."""
    for source in sorted(SOURCES.glob("*.cu")):
        other_dtype = source.stem.endswith(("_f32", "_f16"))
        for architecture in ("90a",) if source.stem.endswith("_sm90") else ARCHITECTURES:
            quick = architecture in ("80", "90a") and not other_dtype and source.stem.startswith(tuple(GATES))
            marks = () if quick else (pytest.mark.long,)
            yield pytest.param(source.stem, architecture, id=f"{source.stem}-{architecture}", marks=marks)


@pytest.mark.parametrize(("name", "architecture"), list(cases()))
def test_no_spills_no_warnings_and_the_expected_instructions(tmp_path, name, architecture):
    compiled = compile_source(source_named(name), architecture, tmp_path)
    assert compiled.kernels, "ptxas reports no kernel"
    assert compiled.warnings == ()
    assert [k for k in compiled.kernels if k.spills] == [], "registers are spilled"
    prefix = next((p for p in GATES if name.startswith(p)), None)
    if prefix is None:
        return
    most, expected = GATES[prefix]
    assert [k for k in compiled.kernels if k.stack] == [], "arrays are indexed at run time"
    greedy = [k for k in compiled.kernels if k.registers > most]
    assert greedy == [], f"more than {most} registers"
    if why_no_disassembly():
        pytest.skip(f"registers and spills are fine; instructions not looked at: {why_no_disassembly()}")
    opcodes = compiled.opcodes()
    assert [o for o in expected if not opcodes[o]] == [], f"missing among {sorted(opcodes)}"


def test_the_gates_notice_a_spill(tmp_path):
    source = tmp_path / "spilling.cu"
    source.write_text("""
        __global__ void spilling(float* p, const int* order) {
          float v[40];
          for (int i = 0; i < 40; ++i) v[i] = p[i * 32 + threadIdx.x];
          for (int i = 0; i < 40; ++i) p[i * 32 + threadIdx.x] = v[order[i]];
        }""")
    (kernel,) = compile_source(source, "80", tmp_path).kernels
    assert kernel.stack > 0
    assert kernel.registers > 0


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("80", "f32"), pytest.param("90a", "bf16", marks=pytest.mark.long)]
)  # fmt: skip
def test_dropout_moves_vectors_only(tmp_path, architecture, dtype):
    """One kernel's PTX at a time: x and the other operand are read, the result is written, in 16-byte vectors."""
    source, ptx = source_named(f"fused_dropout_{dtype}"), tmp_path / "out.ptx"
    command = [NVCC, "-std=c++17", "-O3", f"-arch=compute_{architecture}", "-ptx", "-o", ptx, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    bodies = ptx.read_text().split(".entry")[1:]
    assert len(bodies) == 16, "8 activations, 2 directions"
    steps = 2 if dtype == "f32" else 1
    for body in bodies:
        name = body[:200].split("(")[0].strip()
        assert len(re.findall(r"ld\.global\.nc\.v4", body)) >= 2 * steps, name
        assert len(re.findall(r"st\.global\.v4", body)) == steps, name
