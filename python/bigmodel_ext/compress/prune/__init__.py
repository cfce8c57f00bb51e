"""Pruning: what is unimportant (importance), how much of it goes (policy), and taking it out (mechanism), apart."""

from bigmodel_ext.compress.prune.importance import IMPORTANCES as IMPORTANCES
from bigmodel_ext.compress.prune.importance import scores as scores
from bigmodel_ext.compress.prune.schedule import GradualPruner as GradualPruner
from bigmodel_ext.compress.prune.schedule import cubic_sparsity as cubic_sparsity
