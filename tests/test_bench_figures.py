"""The README's tables and the plots, drawn from rows with round figures."""

import sys
from pathlib import Path

import pytest
from bigmodel_ext.bench import results

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_runs import bench

from bench import readme
from bench.quality import _table as quality
from bench.quality._row import Row


def _synthetic(folder: Path) -> None:
    """Rows as a run writes them, with round figures."""
    facts = {
        "date": "2026-01-02", "commit": "abc1234", "cpu": "Some CPU", "isa": "avx2", "threads": 1, "torch": "2.13.0",
        "packages": "onnxruntime 1.0", "load": 0.1, "cache": "warm", "p20": 0.5, "p80": 9, "rounds": 7,
    }  # fmt: skip

    def row(op, shape, peer, speedup, **more):
        return {**facts, "op": op, "shape": shape, "ours": op, "peer": peer, "speedup": speedup, **more}

    lines = {"limit": "fp32 peak", "limit_us": 5, "limit_percent": 40.0, "peak_gops": 200, "memory_gbps": 20}
    sparse = []
    for sparsity, ratio in ((0.0, 0.5), (0.5, 1.5), (0.9, 8.0)):
        for peer, dtype, times in (
            ("torch fp32", "fp32", 2.0),
            ("oneDNN packed fp32", "fp32", 1.0),
            ("torch bf16", "bf16", 0.6),
        ):
            sparse.append(row(
                "sparse_linear", f"M=8 N=64 K=64 {sparsity:.0%}", peer, ratio * times, m=8, n=64, k=64,
                sparsity=sparsity, dtype="fp32", peer_dtype=dtype, gbps=5, real_gops=50, gops=100, **lines,
            ))  # fmt: skip
    for peer, ratio in (("forward pass, M=128", 2.0), ("reference", 30.0)):
        sparse.append(row(
            "pack_panel_csr", "N=64 K=64 50%", peer, ratio, n=64, k=64, sparsity=0.5, dtype="fp32", gbps=5,
            real_gops=0, **lines,
        ))  # fmt: skip
    results.update(folder / "sparse.csv", sparse)
    results.update(folder / "int8.csv", [
        row("int8_linear", "M=1 N=64 K=64", peer, ratio, m=1, n=64, k=64, dtype="int8", peer_dtype=dtype, gbps=20,
            real_gops=40, gops=40, **{**lines, "limit_percent": 80.0})
        for peer, dtype, ratio in (
            ("torch fp32", "fp32", 8.0), ("torch dynamic x86", "int8", 1.25), ("onnxruntime int8", "int8", 0.8),
        )
    ])  # fmt: skip
    results.update(folder / "dropout.csv", [
        row("dropout plain", "64x768 float32 fwd", peer, ratio, gbps=20, bytes=393216, ours_us=20, peer_us=20 * ratio,
            **{**lines, "limit_percent": 50.0})
        for peer, ratio in (("torch eager", 12.0), ("inductor", 15.0), ("memcpy", 0.5))
    ])  # fmt: skip


def test_readme_tables_come_from_the_rows(tmp_path):
    _synthetic(tmp_path / "some-cpu")
    text = readme.render(tmp_path)
    assert text.startswith(readme.BEGIN)
    assert text.endswith(readme.END)
    assert "Some CPU, avx2, 1 thread(s), torch 2.13.0, onnxruntime 1.0, 2026-01-02 (abc1234)" in text
    int8 = next(line for line in text.splitlines() if line.startswith("| int8_linear"))
    assert (
        int8 == "| int8_linear | M=1 N=64 K=64 | 8.00x [0.50, 9.00] | **0.80x** onnxruntime int8 [0.50, 9.00] | 80 % |"
    )
    assert "**INT8 linear: at least as fast as the best other of the dtype in 0 of 1, geometric mean 0.80x**" in text
    assert "| 12.00x [0.50, 9.00] | 15.00x inductor [0.50, 9.00] | **0.50x** [0.50, 9.00] | 50 % |" in text
    assert "| pack_panel_csr | N=64 K=64 50% |  |  |  | 0.50 | 40 % |" in text, (
        "in forward passes; no peer is the reference"
    )
    assert "**Sparse linear: at least as fast as the best other of the dtype in 2 of 3" in text
    dense = text.split("**Where a dense layer is faster**")[1].splitlines()
    assert [line.split(" | ")[1:] for line in dense if line.startswith("| ")][2:] == [
        ["M=1 N=64 K=64", "**0.80x** onnxruntime int8 [0.50, 9.00] |"],
        ["M=8 N=64 K=64 0%", "**0.30x** torch bf16 [0.50, 9.00] |"],
        ["M=8 N=64 K=64 50%", "**0.90x** torch bf16 [0.50, 9.00] |"],
    ]
    assert "png" not in text  # none is there


def test_readme_text_around_the_figures_stays(tmp_path, monkeypatch):
    _synthetic(tmp_path / "results" / "some-cpu")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme.render, "__defaults__", (tmp_path / "results",))
    quality = f"{readme.QUALITY_BEGIN}\nold\n{readme.QUALITY_END}\n"
    readme.README.write_text(f"first\n{quality}before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.main()
    text = readme.README.read_text()
    assert text.startswith(f"first\n{readme.QUALITY_BEGIN}\n")
    assert f"before\n{readme.BEGIN}\n\nSome CPU" in text
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "\nold\n" not in text


def test_quality_rows_are_kept_and_misses_stand_in_bold(tmp_path):
    file = tmp_path / "quality.csv"
    rows = [Row("a", "loss", 1.0, "peer", 2.5, factor=0.5), Row("b", "loss", 2.0, "peer", 2.0, factor=0.5)]
    quality.write("oneshot", rows, file)
    quality.write("controller", [Row("c", "accuracy", 0.9, "other", 0.8, lower_is_better=False)], file)
    quality.write("controller", [Row("c", "accuracy", 0.9, "other", 0.9, lower_is_better=False)], file)
    assert quality.read(file) == {
        "controller": [Row("c", "accuracy", 0.9, "other", 0.9, lower_is_better=False)],
        "oneshot": rows,
    }
    text = "\n".join(quality.markdown(file))
    assert "| peer | loss | **1 of 2** | 0.7 (at most 0.5 wanted) |" in text
    assert "| other | accuracy | 1 of 1 | 1 (at least 1) |" in text
    assert quality.markdown(tmp_path / "none.csv") == []


def test_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from bigmodel_ext.bench import plot

    assert bench(tmp_path, "--plot") == 1
    assert "no rows to draw" in capsys.readouterr().err
    folder = tmp_path / "some-cpu"
    _synthetic(folder)
    assert bench(tmp_path, "--plot") == 0
    assert sorted(p.name for p in folder.glob("*.png")) == ["dropout.png", "roofline.png", "sparsity.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))
    assert {row["op"] for row in plot._points_of_roofline(folder)} == {"sparse_linear", "int8_linear"}
    curves = plot._curves(results.read(folder / "sparse.csv"), "fp32")
    assert curves["best dense fp32"] == [(0.0, 0.5), (0.5, 1.5), (0.9, 8.0)]
    assert plot.crossover(curves["best dense fp32"]) == pytest.approx(0.25)
    assert plot.crossover(curves["torch float32"]) == 0.0
    assert plot.crossover([(0.0, 0.5), (0.5, 0.9)]) is None
