"""Distillation: a student learns a teacher's answers and features, not only the labels."""

from bigmodel_ext.compress.distill.losses import Distillation as Distillation
from bigmodel_ext.compress.distill.losses import distillation_loss as distillation_loss
from bigmodel_ext.compress.distill.losses import similarity_loss as similarity_loss
