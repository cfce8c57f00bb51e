import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu_check.py"


def gpu_check(tmp_path, *args):
    command = [sys.executable, SCRIPT, "--no-build", "--results", tmp_path, *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_dry_run_says_what_would_run(tmp_path):
    result = gpu_check(tmp_path, "--dry-run")
    built = "CUDA kernels built: yes" in result.stdout
    assert result.returncode == (0 if built else 1), result.stderr
    assert "would run check_masks" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: make gpu-check runs it all")
def test_without_a_gpu_it_fails_clearly(tmp_path):
    result = gpu_check(tmp_path)
    assert result.returncode == 2
    assert "finds no CUDA device" in result.stderr
