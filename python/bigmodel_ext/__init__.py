"""Compressed PyTorch models that are measurably smaller and faster."""

from bigmodel_ext import functional as functional

__version__ = "0.1.0"
