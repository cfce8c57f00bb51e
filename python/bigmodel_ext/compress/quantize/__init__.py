"""Quantization that needs more than the weights: calibration data, training, or a budget of bits."""

from bigmodel_ext.compress.quantize._apply import METHODS as METHODS
from bigmodel_ext.compress.quantize._apply import quantize_ as quantize_
from bigmodel_ext.compress.quantize._exchange import exchange_made as exchange_made
from bigmodel_ext.compress.quantize._exchange import output_errors as output_errors
from bigmodel_ext.compress.quantize._report import LayerQuantized as LayerQuantized
from bigmodel_ext.compress.quantize._report import Report as Report
