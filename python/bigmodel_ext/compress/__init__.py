"""From a trained model to a smaller and faster one: prune, distill, quantize, choose kernels, check, report."""

from bigmodel_ext.compress.controller.forms import forms as forms
from bigmodel_ext.compress.pipeline.run import Result as Result
from bigmodel_ext.compress.pipeline.run import compress as compress
from bigmodel_ext.compress.pipeline.steps import ChooseLayers as ChooseLayers
from bigmodel_ext.compress.pipeline.steps import Distill as Distill
from bigmodel_ext.compress.pipeline.steps import PruneStructure as PruneStructure
from bigmodel_ext.compress.pipeline.steps import Quantize as Quantize
