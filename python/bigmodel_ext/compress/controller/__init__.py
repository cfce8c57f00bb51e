"""Prune-ratio control: the cheapest per-layer ratios, kernels and bits under an accuracy budget."""

from bigmodel_ext.compress.controller.budget import Budget as Budget
from bigmodel_ext.compress.controller.journal import Journal as Journal
from bigmodel_ext.compress.controller.search import Found as Found
from bigmodel_ext.compress.controller.search import Search as Search
from bigmodel_ext.compress.controller.search import Trial as Trial
