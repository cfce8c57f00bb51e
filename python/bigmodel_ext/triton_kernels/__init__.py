"""Triton kernels: a module per op, each with its @triton.jit functions and a launcher that allocates the outputs. They
import nothing of the compiled parts; backends/triton.py registers them, and imports them when the first one is called.

Floating-point contraction is off in all of them (see _launch): what is not written as a fused multiply-add is rounded
twice, as on the CPU, and results that the CPU gives exactly are the same here.
"""
