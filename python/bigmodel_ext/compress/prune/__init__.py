"""Pruning: what is unimportant (importance), how much of it goes (policy), and taking it out (mechanism), apart."""

from bigmodel_ext._pruned import replay_surgery as replay_surgery
from bigmodel_ext._pruned import surgery_plan as surgery_plan
from bigmodel_ext.compress.prune.importance import IMPORTANCES as IMPORTANCES
from bigmodel_ext.compress.prune.importance import scores as scores
from bigmodel_ext.compress.prune.masks import MaskPruner as MaskPruner
from bigmodel_ext.compress.prune.policy import Policy as Policy
from bigmodel_ext.compress.prune.reconstruct import LayerFit as LayerFit
from bigmodel_ext.compress.prune.reconstruct import Reconstruction as Reconstruction
from bigmodel_ext.compress.prune.reconstruct import reconstruct_ as reconstruct_
from bigmodel_ext.compress.prune.schedule import GradualPruner as GradualPruner
from bigmodel_ext.compress.prune.schedule import cubic as cubic
from bigmodel_ext.compress.prune.schedule import cubic_sparsity as cubic_sparsity
from bigmodel_ext.compress.prune.structured.heads import Heads as Heads
from bigmodel_ext.compress.prune.structured.pruner import Pruned as Pruned
from bigmodel_ext.compress.prune.structured.pruner import StructuredPruner as StructuredPruner
from bigmodel_ext.compress.prune.units import MaskedHeads as MaskedHeads
