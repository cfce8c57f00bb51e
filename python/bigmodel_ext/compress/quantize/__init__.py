"""Quantization that needs more than the weights: calibration data, training, or a budget of bits."""
