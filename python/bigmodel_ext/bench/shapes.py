"""The layers that are measured, N x K, by the model they come from."""

from __future__ import annotations

LLAMA = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
BERT = ((2304, 768), (768, 768), (3072, 768), (768, 3072))  # ViT-B's too
MINILM = ((1152, 384), (384, 384), (1536, 384), (384, 1536))
MODELS = (*LLAMA, *BERT, *MINILM)
MS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def every(ms: tuple[int, ...], nks: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """M, N, K for each of both."""
    return tuple((m, n, k) for n, k in nks for m in ms)
