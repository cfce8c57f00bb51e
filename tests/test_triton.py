"""Triton's kernels as a backend: when it is there, what it says, how it chooses configurations. The op tests run on it
by `make test-interpret`."""

import importlib.util
import json

import pytest
import torch
from bigmodel_ext import _dispatch, _reference
from shapes import EXECUTED
from test_dispatch import python

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
interpreted = pytest.mark.skipif(EXECUTED != "triton", reason="runs with BIGMODEL_BACKEND=triton, in the interpreter")
raw = torch.ops.bigmodel_ext


class TestChoice:
    def test_forced_without_triton(self):
        code = """
            import sys, importlib.util
            found = importlib.util.find_spec
            importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
            import bigmodel_ext
        """
        status, _, error = python(code, BIGMODEL_BACKEND="triton", TRITON_INTERPRET="1")
        assert status != 0
        assert error == "RuntimeError: BIGMODEL_BACKEND=triton can't be had: triton is not installed"

    @needs_triton
    def test_forced_without_a_device_and_interpreter(self):
        if torch.cuda.is_available():
            pytest.skip("there is a device")
        status, _, error = python("import bigmodel_ext", BIGMODEL_BACKEND="triton", TRITON_INTERPRET="0")
        assert status != 0
        assert error.startswith(
            "RuntimeError: BIGMODEL_BACKEND=triton can't be had: torch.cuda.is_available() is False"
        )

    @needs_triton
    def test_forced(self):
        code = """
            import sys, torch, bigmodel_ext
            from bigmodel_ext import _dispatch, functional as F
            print("triton" in sys.modules)
            print(_dispatch.explain("quantize_rows", torch.randn(2, 3)).kernel)
            print(F.int8_mm(torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 3, dtype=torch.int8)).tolist())
            try:
                weight = torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None
                window = [1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 1
                torch.ops.bigmodel_ext.int8_conv2d(torch.ones(1, 1, 3, 3), *weight, *window)
            except RuntimeError as error:
                print(error)
        """
        status, out, error = python(code, BIGMODEL_BACKEND="triton", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
        assert status == 0, error
        assert out.splitlines() == [
            "False",
            "triton/quantize_rows",
            str([[3] * 4] * 2),
            "int8_conv2d: BIGMODEL_BACKEND=triton is forced and has no kernel for these tensors",
        ]

    @needs_triton
    def test_the_interpreter_alone_changes_nothing(self):
        """Not forced, CPU tensors keep the CPU's kernels."""
        code = """
            import torch, bigmodel_ext
            from bigmodel_ext import _dispatch
            print(_dispatch.explain("quantize_rows", torch.randn(2, 3)).backend)
        """
        status, out, error = python(code, TRITON_INTERPRET="1")
        assert (status, out) == (0, "cpu"), error

    def test_several_backends_on_a_device(self, monkeypatch):
        """In the order of their registration, the reference last."""
        monkeypatch.setattr(_dispatch, "_table", {})
        monkeypatch.setattr(_dispatch, "forced_backend", lambda: None)
        implemented = []
        monkeypatch.setattr(_dispatch._ops.library, "impl", lambda *args: implemented.append(args))
        refuses = lambda x: "only floats" if not x.is_floating_point() else None  # noqa: E731
        first = _dispatch.Candidate("cuda", lambda x: "cuda", refuses)
        second = _dispatch.Candidate("triton", lambda x: "triton")
        _dispatch.register("cuda", {"quantize_rows": first})
        _dispatch.register("cuda", {"quantize_rows": second})
        assert [c.backend for c in _dispatch._table["quantize_rows", "cuda"]] == ["cuda", "triton", "reference"]
        assert implemented == [("quantize_rows", first.run, "CUDA")]


@interpreted
class TestKernels:
    def test_float64_and_long_rows_are_refused_with_a_reason(self):
        x = torch.ones(2, 8193)
        args = (None, None, None, None, None, 0.0, "none", "layer", 1e-5)
        with pytest.raises(
            RuntimeError, match="forced backend 'triton' cannot run this: rows of more than 8192 features"
        ):
            raw.fused_dropout_norm(x, *args)
        with pytest.raises(RuntimeError, match="forced backend 'triton' cannot run this: float64"):
            raw.fused_dropout(x.double(), None, None, None, 0.0, "none")

    def test_what_is_not_finite_in_many_rows(self):
        """More rows than a program looks at, marked ones and others in each of them."""
        from bigmodel_ext.formats import csr, two_four

        weight = torch.zeros(40, 64)
        weight[:, ::4], weight[:, 1::8] = 2.0, 3.0
        x = torch.randn(150, 64)
        clean = x.clone()
        x[[0, 63, 64, 149], 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])  # a column nobody stores
        for rows in (x, clean):
            y = raw.sparse_linear(rows, *csr.pack(weight), None, 40, 128)
            torch.testing.assert_close(y, clean @ weight.T)
            index = two_four.pack(weight)
            y = raw.semi_sparse_linear(rows, *index, None, 40)
            torch.testing.assert_close(y, clean @ weight.T)

    def test_bits_of_bfloat16(self):
        """All of them, through a kernel that changes nothing, and rounded from float32 like torch rounds."""
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
        out = raw.fused_dropout(every, None, None, None, 0.0, "none")
        assert torch.equal(out.isnan(), every.isnan())
        assert torch.equal(out[~every.isnan()].view(torch.int16), every[~every.isnan()].view(torch.int16))
        bias = torch.randn(1 << 12)
        x = torch.randn(1 << 12).bfloat16()
        assert torch.equal(raw.fused_dropout(x, bias, None, None, 0.0, "none"), (x.float() + bias).bfloat16())

    def test_the_reference_agrees_on_the_inverse_of_an_order(self):
        from bigmodel_ext.formats import csr
        from bigmodel_ext.triton_kernels.sparse_linear import inverse_order, order_block

        for n in (1, 17, 64, 1030):
            assert order_block(n) == _reference.order_rows(n)
            *_, order = csr.pack_sorted(torch.randn(n, 40) * (torch.rand(n, 40) > 0.5), panel=16)
            places = inverse_order(order, n, 3)
            block = order_block(n)
            for panel in range(3):
                rows = torch.arange(n) // block * block + order.view(3, n)[panel]
                assert torch.equal(places[panel][rows.long()], torch.arange(n, dtype=torch.int32))


@interpreted
class TestConfigurations:
    @pytest.fixture
    def launcher(self, monkeypatch, tmp_path):
        from bigmodel_ext.triton_kernels import _launch, int8_mm

        monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path))
        monkeypatch.setattr(_launch, "_chosen", {})
        two = [int8_mm._config(16, 16, 32, 4, 1), int8_mm._config(32, 32, 32, 4, 1)]
        monkeypatch.setattr(int8_mm, "configs", lambda m, k: [*two, _launch.Config({}, only="sm_90")])
        measured = []

        def measure(call):
            call()
            measured.append(call)
            return 1.0 / len(measured)  # the later the faster

        monkeypatch.setattr(_launch, "measure", measure)
        return _launch, two, measured

    def test_measured_once_and_kept(self, launcher, monkeypatch, tmp_path):
        _launch, two, measured = launcher
        a, b = (torch.randint(-128, 128, (20, 30), dtype=torch.int8) for _ in range(2))
        exact = (a.long() @ b.long().T).int()
        for _ in range(2):
            assert torch.equal(raw.int8_mm(a, b), exact)
        assert len(measured) == 2, "each configuration for this device, once"
        (file,) = tmp_path.iterdir()
        assert list(json.loads(file.read_text()).values()) == [str(two[1])]
        raw.int8_mm(a[:17], b)  # the same class of shapes: rows up to 32
        assert len(measured) == 2
        raw.int8_mm(a[:, :20], b[:, :20])
        assert len(measured) == 4
        monkeypatch.setattr(_launch, "_chosen", {})  # another process
        assert torch.equal(raw.int8_mm(a, b), exact)
        assert len(measured) == 4
        for broken in ("{", '["x"]', '{"int8_kernel": 3}'):
            file.write_text(broken)
            monkeypatch.setattr(_launch, "_chosen", {})
            before = len(measured)
            raw.int8_mm(a, b)
            assert len(measured) == before + 2

    def test_nothing_is_kept_where_nothing_may_be(self, launcher, monkeypatch, tmp_path):
        _launch, _, measured = launcher
        monkeypatch.setenv("BIGMODEL_CACHE", "off")
        a = torch.ones(3, 5, dtype=torch.int8)
        raw.int8_mm(a, a)
        assert len(measured) == 2
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "file"))
        monkeypatch.setattr(_launch, "_chosen", {})
        assert torch.equal(raw.int8_mm(a, a), torch.full((3, 3), 5, dtype=torch.int32))

    def test_a_capture_is_not_disturbed(self, launcher, monkeypatch):
        _launch, _, measured = launcher
        monkeypatch.setattr(_launch, "capturing", lambda device: True)
        a = torch.ones(3, 5, dtype=torch.int8)
        assert torch.equal(raw.int8_mm(a, a), torch.full((3, 3), 5, dtype=torch.int32))
        assert not measured
        assert not _launch._chosen, "the first one without a capture measures"
