"""S3-Rec's recommender: the causal transformer that it fine-tunes, from fresh weights or pre-trained.

Paper: Zhou et al., S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information Maximization
    (CIKM 2020), arXiv 2008.07873. Section 4.1: embeddings and self-attention blocks; section 4.3: the score of the next
    item, read from the last position of a causal pass. Both are `SASRec`'s, as in the authors' code. Section 4.2, what
    it is pre-trained for, is `reeltalk.pretraining.s3rec`.
Differs from the paper: exact softmax over all items that existed, in place of one sampled negative. Without
    pre-training it is SASRec: attributes enter the model through the pre-training losses alone.
Checked against: the slow loop of SASRec in float64 (tests/test_lsvcr.py).
"""

from __future__ import annotations

from reeltalk.models.sasrec import SASRec, SASRecSettings


class S3RecSettings(SASRecSettings):
    """Sizes of S3-Rec; its defaults are SASRec's."""


class S3Rec(SASRec):
    """SASRec, to be pre-trained as S3-Rec is."""
