"""Inputs that correlate as hidden activations do."""

import torch


def hidden_inputs(rows, k, rank=None):
    """Correlated, as hidden activations are; each call has other correlations."""
    mixed = torch.randn(rows, rank or k) @ torch.randn(rank or k, k) / (rank or k) ** 0.5
    return mixed + 0.2 * torch.randn(rows, k)
