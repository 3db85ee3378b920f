"""What every recommender offers: histories in, preferences out; items or comments in, vectors out.

A score is the dot product of a preference and a vector. Similarity and temperature are inside them, so training,
evaluation, an index of one's own and serving all compute the same number. `reeltalk.losses` and the objectives know the
rest.

Shapes: R rows, L positions, N items, T targets, U distinct comments, D width, E text width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from reeltalk.data.batch import Batch


@dataclass(frozen=True)
class Items:
    """What a model may know of the items when it is made; row 0 of both belongs to no item.

    title_vectors_NE: frozen text vectors, of width 0 where the model does not read text. known_N: bool, the items with
    a training event.
    """

    title_vectors_NE: Tensor
    known_N: Tensor

    def with_titles(self) -> Tensor:
        """The items whose titles may be learnt from: [M], of those with a training event; of all where none has one."""
        has_title_N = self.title_vectors_NE.any(1)
        is_known_N = has_title_N & self.known_N
        return (is_known_N if is_known_N.any() else has_title_N).nonzero()[:, 0]


@dataclass(frozen=True)
class Step:
    """What a training step reads of a model: preferences, the vectors they are held against, a loss of the model's own.

    Shapes as those of the methods that give each alone. The loss is a (sum, count), or None where there is none.
    is_predicted_RL: of the item history, the entries whose next one this step predicts (cloze training); None: all.
    """

    preferences: Tensor
    vectors: Tensor
    regularisation: tuple[Tensor, int] | None = None
    is_predicted_RL: Tensor | None = None


class Recommender(nn.Module):
    """The interface; a model implements the methods of the tasks that its `ModelSpec` names."""

    has_start: bool
    """Whether each history begins with a learned start entry, which speaks for users with no event."""

    is_causal = True
    """Whether one pass over a history gives the preference after each entry, whatever follows.

    Where it is not, the model looks both ways: it gives the preference after the last entry alone, and trains on hidden
    entries.
    """

    def fit(self, items: Items) -> None:
        """Learn what is learnt from the items once, before training: codes, or where weights start.

        `build` calls it with the random state of the seed; a loaded model has all from its file.
        """

    def item_vectors(self) -> Tensor:
        """Vectors of all items as targets: [N + 1, D], row item_id; row 0 belongs to no item and means nothing."""
        raise NotImplementedError

    def item_preferences(self, batch: Batch) -> Tensor:
        """The preference after each entry of the item history: [R, L, D], finite but meaningless at padding.

        Of a model that is not causal, after the last entry of each history alone; zeros elsewhere.
        """
        raise NotImplementedError

    def comment_vectors(self, text_UE: Tensor) -> Tensor:
        """Vectors of comments as candidates, from their text vectors: [U, D]."""
        raise NotImplementedError

    def comment_preferences(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        """The preference for talk under watched items item_T, after the entries position_T of the records: [T, D]."""
        raise NotImplementedError

    def item_step(self, batch: Batch, *, regularise: bool) -> Step:
        """Item preferences and vectors at once; a model whose parts share work overrides it."""
        return Step(self.item_preferences(batch), self.item_vectors())

    def comment_step(self, batch: Batch, position_T: Tensor, item_T: Tensor, *, regularise: bool) -> Step:
        """Comment preferences and the vectors of the batch's comments at once; overridden as `item_step` is."""
        return Step(self.comment_preferences(batch, position_T, item_T), self.comment_vectors(batch.comment_text_UE))


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for matrices, zeros and ones elsewhere: what BERT and LSVCR's reference start from.

    Recurrent layers start uniform, scaled by their width (Xavier), as RecBole's GRU4Rec: small weights would let a
    state fade. A model whose public code starts otherwise draws its own weights after.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.GRU):
            for weight in part.parameters():
                nn.init.xavier_uniform_(weight)
