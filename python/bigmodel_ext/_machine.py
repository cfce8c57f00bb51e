"""What figures depend on: the processor."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_name() -> str:
    """The processor as the system tells it: name, family and model (the name may be that of a whole line)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in pairs}
    name = told.get("model name", "unknown")
    if name == "unknown":
        name = told.get("vendor_id", platform.machine())
    return f"{name} family {told['cpu family']} model {told.get('model', '?')}" if "cpu family" in told else name
