"""Quantization that needs more than the weights: calibration data, training, or a budget of bits."""

from bigmodel_ext.compress.quantize._apply import METHODS as METHODS
from bigmodel_ext.compress.quantize._apply import quantize_ as quantize_
from bigmodel_ext.compress.quantize._exchange import exchange_made as exchange_made
from bigmodel_ext.compress.quantize._exchange import output_errors as output_errors
from bigmodel_ext.compress.quantize._report import LayerQuantized as LayerQuantized
from bigmodel_ext.compress.quantize._report import Report as Report
from bigmodel_ext.compress.quantize.aware import convert as convert
from bigmodel_ext.compress.quantize.aware import prepare as prepare
from bigmodel_ext.compress.quantize.aware import prepared as prepared
from bigmodel_ext.compress.quantize.fallback import quantize_below_ as quantize_below_
from bigmodel_ext.compress.quantize.fallback import quantize_within_ as quantize_within_
from bigmodel_ext.compress.quantize.hamiltonian import HamiltonianConfig as HamiltonianConfig
from bigmodel_ext.compress.quantize.probabilistic import ProbabilisticInt8Config as ProbabilisticInt8Config
from bigmodel_ext.compress.quantize.smooth import SmoothQuantConfig as SmoothQuantConfig
from bigmodel_ext.compress.quantize.static import (
    Int8StaticActivationInt8WeightConfig as Int8StaticActivationInt8WeightConfig,
)
from bigmodel_ext.compress.quantize.weight_only import Int8WeightOnlyConfig as Int8WeightOnlyConfig
