"""torch.ops.bigmodel_ext with every backend registered.

The functions of this package call an op through its `_op`, which is the same without a Python frame (0.25 us of about
4), but for the compiler, which must see the op itself.
"""

import torch

from bigmodel_ext import _autograd, _dispatch  # noqa: F401
from bigmodel_ext.backends import cpu, cuda  # noqa: F401

ops = torch.ops.bigmodel_ext
compiling = torch.compiler.is_dynamo_compiling
