"""What is measured on what: the facts that stand in every row."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

import torch

import bigmodel_ext
from bigmodel_ext import _native

PACKAGES = ("onnxruntime", "torchao", "transformers")  # peers beside torch whose versions decide a row


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return f"{fields['model name']} family {fields['cpu family']} model {fields['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def slug() -> str:
    """The processor's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-") or "unknown"


def cache_bytes() -> int:
    """The last-level cache; 32 MiB where the system does not tell."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = index.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=32 << 20)


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], cwd=Path.cwd(), capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def commit() -> str:
    """The commit that is measured, "-dirty" if code, not just earlier results, differs from it. Only in a checkout of
    this project: elsewhere the version."""
    root = _git("rev-parse", "--show-toplevel")
    if not root or not (Path(root) / "csrc" / "bindings" / "module.cpp").exists():
        return f"v{bigmodel_ext.__version__}"
    changed = _git("status", "--porcelain", "--", ":/", ":!/bench/results", ":!/README.md")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def load() -> float:
    """Processes that wanted to run in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def facts() -> dict[str, object]:
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "isa": _native.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packages": packages(),
    }
