"""What runs is what was asked for, or an error; and explain() tells the truth about it."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from bigmodel_ext import _dispatch, _native, _reference
from bigmodel_ext._dispatch import Candidate
from bigmodel_ext._ops import OPS


def python(code, **env):
    """(exit status, stdout, last line of stderr) of a fresh interpreter."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BIGMODEL_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=clean | env, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


IMPORT = "import bigmodel_ext; from bigmodel_ext import _native; print(_native.active_isa())"


class TestIsa:
    @pytest.mark.parametrize("isa", ["", "scalar", _native.available_isas()[-1]])
    def test_forced(self, isa):
        status, out, error = python(IMPORT, BIGMODEL_ISA=isa)
        assert (status, out) == (0, isa or _native.available_isas()[-1]), error

    def test_unknown(self):
        status, _, error = python(IMPORT, BIGMODEL_ISA="sse9")
        assert status != 0
        assert "sse9" in error
        assert all(isa in error for isa in _native.ISAS)

    def test_unsupported(self):
        missing = [isa for isa in _native.ISAS if isa not in _native.available_isas()]
        if not missing:
            pytest.skip("this processor has every instruction set")
        status, _, error = python(IMPORT, BIGMODEL_ISA=missing[-1])
        assert status != 0
        assert missing[-1] in error

    def test_the_context_manager_restores(self):
        before = _native.active_isa()

        def fail():
            with _native.forced_isa("scalar"):
                raise KeyError(_native.active_isa())

        with pytest.raises(KeyError, match="scalar"):
            fail()
        assert _native.active_isa() == before
        with pytest.raises((ValueError, RuntimeError), match="sse9"), _native.forced_isa("sse9"):
            pass


class TestBackend:
    def test_reference(self):
        code = """
            import torch, bigmodel_ext as bm
            from bigmodel_ext import _dispatch
            config = bm.Int8DynamicActivationInt8WeightConfig(rows=())
            model = bm.quantize_(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
            model(torch.randn(2, 8))
            choice = _dispatch.explain("quantize_rows", torch.randn(2, 2))
            print(choice.kernel, choice.reason, sep="|")
            try:
                bm.explain(model, strict=True, batch=1)
            except RuntimeError as error:
                print(error)
        """
        status, out, error = python(code, BIGMODEL_BACKEND="reference")
        assert status == 0, error
        assert out.splitlines() == [
            "reference/quantize_rows|BIGMODEL_BACKEND=reference",
            "the requested kernel is not used for 0 (reference/int8_linear: BIGMODEL_BACKEND=reference)",
        ]

    def test_cpu_never_falls_back(self):
        code = """
            import torch
            from bigmodel_ext import _dispatch, functional as F
            q, _ = F.quantize_rows(torch.randn(2, 8))
            print(_dispatch.explain("quantize_rows", torch.randn(2, 2)).backend)
            x = torch.ones(4, dtype=torch.float64)
            for call in (lambda: F.fused_dropout(x, 0.5),
                         lambda: _dispatch.explain("fused_dropout", x, None, None, None, 0.0, "none")):
                try:
                    call()
                except RuntimeError as error:
                    print("refused:", error)
        """
        status, out, error = python(code, BIGMODEL_BACKEND="cpu")
        assert status == 0, error
        lines = out.splitlines()
        assert lines[0] == "cpu"
        assert sum(line.startswith("refused: fused_dropout: ") for line in lines) == 2

    def test_an_op_that_the_forced_backend_lacks(self, monkeypatch):
        monkeypatch.setattr(_dispatch, "forced_backend", lambda: "cpu")
        default = _dispatch._default("int8_mm")
        with pytest.raises(RuntimeError, match="int8_mm: BIGMODEL_BACKEND=cpu is forced and has no kernel"):
            default.run(torch.zeros(1, 1, dtype=torch.int8), torch.zeros(1, 1, dtype=torch.int8))
        assert default.refusal(torch.zeros(1, 1)) == "it has no kernel for int8_mm on these tensors"
        assert _dispatch._default("dropout_seed").backend == "reference"

    def test_unknown_and_impossible(self):
        status, _, error = python(IMPORT, BIGMODEL_BACKEND="tpu")
        assert status != 0
        assert error == "ValueError: BIGMODEL_BACKEND must be one of cpu, cuda, triton, emulated, reference, got 'tpu'"
        if not torch.cuda.is_available():
            status, _, error = python(IMPORT, BIGMODEL_BACKEND="cuda")
            assert status != 0
            assert error.startswith("RuntimeError: BIGMODEL_BACKEND=cuda can't be had")

    @pytest.mark.skipif(not _native.has_emulated(), reason="built without BIGMODEL_EMULATE")
    def test_emulated_architecture(self):
        code = """
            import torch
            from bigmodel_ext import _native, functional as F
            F.int8_mm(torch.ones(20, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8))
            print(_native.load_emulated().take_reports()[0]["kernel"])
        """
        for architecture, kernel in (("", "int8_wgmma"), ("90", "int8_wgmma"), ("80", "int8_tiles")):
            env = {"BIGMODEL_BACKEND": "emulated", "BIGMODEL_EMULATED_ARCHITECTURE": architecture}
            assert python(code, **env)[:2] == (0, kernel)
        status, _, error = python(code, BIGMODEL_BACKEND="emulated", BIGMODEL_EMULATED_ARCHITECTURE="8.0")
        assert status != 0
        assert "BIGMODEL_EMULATED_ARCHITECTURE must be 75, 80, 86, 89, 90 or 100, got '8.0'" in error

    @pytest.mark.skipif(not _native.has_emulated(), reason="built without BIGMODEL_EMULATE")
    def test_emulated(self):
        code = """
            import torch
            from bigmodel_ext import _dispatch, functional as F
            x = torch.ones(1000)
            F.fused_dropout(x, 0.5)
            print(_dispatch.explain("fused_dropout", x, None, None, None, 0.0, "none").kernel)
            print([r["kernel"] for r in _dispatch._native.load_emulated().take_reports()])
            try:
                F.fused_dropout(x.double(), 0.5)
            except RuntimeError as error:
                print(error)
        """
        status, out, error = python(code, BIGMODEL_BACKEND="emulated")
        assert status == 0, error
        assert out.splitlines() == [
            "emulated/fused_dropout",
            "['fused_dropout']",
            "fused_dropout: the forced backend 'emulated' cannot run this: float64 is computed by the reference",
        ]

    def test_emulated_that_was_not_built(self, monkeypatch):
        monkeypatch.setenv("BIGMODEL_BACKEND", "emulated")
        monkeypatch.setattr(_native, "has_emulated", lambda: False)
        with pytest.raises(RuntimeError, match="can't be had: bigmodel_ext was built without BIGMODEL_EMULATE"):
            _dispatch.forced_backend()


class TestExplain:
    def test_kernel(self):
        choice = _dispatch.explain("quantize_rows", torch.randn(2, 3))
        best = _native.ISAS.index("avx512")  # of the versions that quantize_rows has
        isa = _native.ISAS[min(best, _native.ISAS.index(_native.active_isa()))]
        assert choice.kernel == f"cpu/quantize_rows/{isa}"
        assert (choice.backend, choice.reason) == ("cpu", "first choice")
        with _native.forced_isa("scalar"):
            assert _dispatch.explain("quantize_rows", torch.randn(2, 3)).isa == "scalar"

    def test_other_devices_run_the_reference(self):
        choice = _dispatch.explain("quantize_rows", torch.randn(2, 3, device="meta"))
        assert (choice.kernel, choice.isa) == ("reference/quantize_rows", None)
        assert choice.reason == "no kernel for this op on meta"
        assert _dispatch.explain("dropout_seed", torch.ones(2)).reason == "first choice"

    def test_unknown_op(self):
        with pytest.raises(ValueError, match=r"op must be one of quantize_rows, .*, got 'conv'"):
            _dispatch.explain("conv")

    def test_it_agrees_with_what_runs(self, monkeypatch):
        ran = []

        def refusal(x):
            return "only 2 rows" if x.shape[0] != 2 else None

        def run(x):
            return _dispatch.fall_back("quantize_rows", x) if refusal(x) else ran.append("cpu")

        picky = Candidate("cpu", run, refusal)
        second = Candidate("reference", lambda x: ran.append("reference"))
        monkeypatch.setitem(_dispatch._table, ("quantize_rows", "cpu"), [picky, second])
        for rows, reason in ((2, "first choice"), (3, "cpu: only 2 rows")):
            x = torch.randn(rows, 4)
            run(x)
            choice = _dispatch.explain("quantize_rows", x)
            assert (choice.backend, choice.reason) == (ran[-1], reason)
        monkeypatch.setitem(_dispatch._table, ("quantize_rows", "cpu"), [picky])
        with pytest.raises(RuntimeError, match="forced backend 'cpu' cannot run this: only 2 rows"):
            run(torch.randn(3, 4))

    def test_the_reference_ignores_autocast(self):
        x, values = torch.randn(4, 8), torch.randn(8)
        crow, col = torch.arange(9, dtype=torch.int32), torch.arange(8, dtype=torch.uint8)
        reference = _dispatch._checked_reference("sparse_linear").run
        expected = reference(x, values, crow, col, None, 8, 128)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(reference(x, values, crow, col, None, 8, 128), expected)

    def test_every_op_has_a_reference(self):
        assert all(callable(getattr(_reference, op)) for op in OPS)
