"""Distillation: a student learns a teacher's answers and features, not only the labels.

``DistillationLoss(teacher, {("", ""): Logits(3.0), ("block.1", "block.3"): Hidden(64, 256)}, {"labels": Labels(0.1)})``
is a loss (model, inputs, targets) -> scalar for any loop.
"""

from bigmodel_ext.compress.distill.answers import cache_logits as cache_logits
from bigmodel_ext.compress.distill.cache import LogitCache as LogitCache
from bigmodel_ext.compress.distill.capture import capture as capture
from bigmodel_ext.compress.distill.distillation import Distillation as Distillation
from bigmodel_ext.compress.distill.distillation import DistillationLoss as DistillationLoss
from bigmodel_ext.compress.distill.distillation import indexed as indexed
from bigmodel_ext.compress.distill.losses import angle_relation_loss as angle_relation_loss
from bigmodel_ext.compress.distill.losses import attention_loss as attention_loss
from bigmodel_ext.compress.distill.losses import attention_transfer_loss as attention_transfer_loss
from bigmodel_ext.compress.distill.losses import distance_relation_loss as distance_relation_loss
from bigmodel_ext.compress.distill.losses import distillation_loss as distillation_loss
from bigmodel_ext.compress.distill.losses import self_relation_loss as self_relation_loss
from bigmodel_ext.compress.distill.losses import similarity_loss as similarity_loss
from bigmodel_ext.compress.distill.offline import CachedLogits as CachedLogits
from bigmodel_ext.compress.distill.offline import top_k_loss as top_k_loss
from bigmodel_ext.compress.distill.pairs import Attention as Attention
from bigmodel_ext.compress.distill.pairs import AttentionTransfer as AttentionTransfer
from bigmodel_ext.compress.distill.pairs import Hidden as Hidden
from bigmodel_ext.compress.distill.pairs import Logits as Logits
from bigmodel_ext.compress.distill.pairs import PairLoss as PairLoss
from bigmodel_ext.compress.distill.pairs import Relation as Relation
from bigmodel_ext.compress.distill.pairs import SelfRelation as SelfRelation
from bigmodel_ext.compress.distill.pairs import Similarity as Similarity
from bigmodel_ext.compress.distill.terms import ConfidencePenalty as ConfidencePenalty
from bigmodel_ext.compress.distill.terms import Labels as Labels
from bigmodel_ext.compress.distill.terms import LabelSmoothing as LabelSmoothing
from bigmodel_ext.compress.distill.terms import StartingPoint as StartingPoint
from bigmodel_ext.compress.distill.terms import Step as Step
from bigmodel_ext.compress.distill.terms import Term as Term
from bigmodel_ext.compress.distill.terms import WeightPenalty as WeightPenalty
from bigmodel_ext.compress.distill.trunk import SharedTrunk as SharedTrunk
from bigmodel_ext.compress.distill.trunk import TrunkLoss as TrunkLoss
from bigmodel_ext.compress.distill.trunk import together as together
