"""S3-Rec's recommender: the causal transformer that it fine-tunes, without its pre-training.

Paper: Zhou et al., S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information Maximization
    (CIKM 2020), arXiv 2008.07873. Section 4.1: embeddings and self-attention blocks; section 4.3: the score of the next
    item, read from the last position of a causal pass. Both are `SASRec`'s, as in the authors' code.
Differs from the paper: exact softmax over all items in place of one sampled negative. Without pre-training it is
    SASRec with S3-Rec's sizes: attributes enter the paper's model through the pre-training losses alone.
    Pre-training, a stage of its own, would need: titles' text vectors as the attributes of items, and a linear map of
    them to the width; a pass that looks both ways (`same_history_mask`) over histories with hidden entries
    (`reeltalk.models.cloze`) and with a hidden segment; a bilinear map for each of the four losses (item and
    attribute, history and item, history and attribute, history and segment); all weights but these maps handed on to
    fine-tuning, as those of an aligned model are.
Checked against: the slow loop of SASRec in float64 (tests/test_lsvcr.py).
"""

from __future__ import annotations

from reeltalk.models.sasrec import SASRec, SASRecSettings


class S3RecSettings(SASRecSettings):
    """Sizes of S3-Rec; its defaults are SASRec's."""


class S3Rec(SASRec):
    """SASRec under the name of what its weights are to be pre-trained with."""
