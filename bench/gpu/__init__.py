"""The phases of gpu_check.py. Each runs in a process of its own, as ``python -m gpu <phase>`` from the folder bench."""

DEVICE = "cuda"  # but in a rehearsal without a GPU
