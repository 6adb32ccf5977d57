"""The objectives, each in its own file. Scores are (B, P), B queries and P passages, before the temperature."""

from threefold.train.losses.contrastive import info_nce
from threefold.train.losses.distillation import soft_cross_entropy, teacher_scores
from threefold.train.losses.embedding import embedding_distillation
from threefold.train.losses.idf import idf_distance
from threefold.train.losses.joint import LossWeights, joint_loss

__all__ = [
    "LossWeights", "embedding_distillation", "idf_distance", "info_nce", "joint_loss", "soft_cross_entropy",
    "teacher_scores",
]  # fmt: skip
