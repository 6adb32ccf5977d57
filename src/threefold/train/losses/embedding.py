"""Learning the vectors of a teacher."""

from __future__ import annotations

from torch import Tensor


def embedding_distillation(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos between the student's vectors (n, d) and the teacher's (n, d), both of unit length.

    Reimers and Gurevych 2020 (arXiv 2004.09813) use the squared distance, which is twice this for unit vectors.
    """
    return (1.0 - (vectors * teacher).sum(dim=-1)).mean()
