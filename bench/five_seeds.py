"""The main job for seeds 0 to 4, each in a process of its own, and all five results side by side.

    python bench/five_seeds.py [--out runs/seeds] [--threads N]

Exit code 1 if a seed misses what is promised: accuracy drop at most 0.01, 1/8 of the teacher's bytes, 1/4 of its
latency, and a reloaded model with the same outputs bit for bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MAX_DROP, TIMES_SMALLER, TIMES_FASTER = 0.01, 8.0, 4.0
HEADER = ("seed", "teacher", "compressed", "drop", "size", "smaller", "faster", "reloaded", "seconds", "promise")


def run(seed: int, out: Path, threads: int | None) -> dict[str, Any]:
    folder = out / str(seed)
    command = [sys.executable, "-m", "bigmodel_ext", "compress", "--task", "digits", "--max-drop", str(MAX_DROP)]
    command += ["--seed", str(seed), "--out", str(folder)] + (["--threads", str(threads)] if threads else [])
    subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def kept(report: dict[str, Any]) -> bool:
    done = report["compressed"]
    return (
        done["drop"] <= MAX_DROP
        and done["times_smaller"] >= TIMES_SMALLER
        and done["times_faster"] >= TIMES_FASTER
        and report["reloaded"]["bit_equal"]
    )


def cells(report: dict[str, Any]) -> tuple[str, ...]:
    done = report["compressed"]
    return (
        str(report["seed"]), f"{report['baseline']['score']:.2%}", f"{done['score']:.2%}",
        f"{done['drop']:+.4f}", f"{done['bytes'] / 1e3:.0f} kB", f"{done['times_smaller']:.1f}x",
        f"{done['times_faster']:.1f}x", "bit-equal" if report["reloaded"]["bit_equal"] else "DIFFERS",
        f"{report['seconds']:.0f}", "kept" if kept(report) else "MISSED",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    reports = [run(seed, args.out, args.threads) for seed in range(5)]
    print()
    for row in (HEADER, *map(cells, reports)):
        print("".join(cell.rjust(12) for cell in row))
    return 0 if all(map(kept, reports)) else 1


if __name__ == "__main__":
    sys.exit(main())
