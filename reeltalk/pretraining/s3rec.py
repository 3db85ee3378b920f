"""What S3-Rec is pre-trained for: contrasts between items, their attributes, histories and segments of histories.

Paper: Zhou et al., S3-Rec (CIKM 2020), arXiv 2008.07873, section 4.2: the losses AAP `item_attribute`, MIP
    `history_item`, MAP `history_attribute` and SP `history_segment`, each an InfoNCE of a bilinear score, x W y, in
    `s3rec_objective` and `segment_loss`; hidden entries and the pass that looks both ways `S3RecInPretraining.encoded`.
Differs from the paper: an item's one attribute is its title, as a text vector and a linear map of it. Text vectors are
    no classes to be told one by one, so AAP and MAP are the paper's InfoNCE, a title among the distinct titles of the
    batch, and not its code's binary cross-entropy over all attributes; items without a title have no part in them.
    Scores go into the softmax without the sigmoid, within whose bounds no choice among many can be sure. Negatives are
    all others in place of one that is drawn: of MIP all items that existed then, of the rest those of the batch (of MAP
    those that existed then); segments of the same items are none. The last event of a history is always hidden, as in
    the authors' code. AAP takes each item of a batch once. Losses are means, then weighted; in their code they are
    sums. Every training event of a user is in one window or two; their code takes every prefix of a history as another
    one.
Checked against: loops in float64 (tests/test_s3rec.py).

Shapes: R rows, L positions, B histories, T targets, U distinct items of the batch, V distinct titles, D width, N items,
E text width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, ItemTargets, PackedHistory
from reeltalk.losses import full_softmax, widened
from reeltalk.models.cloze import is_end
from reeltalk.models.recommender import Recommender, initialise
from reeltalk.models.s3rec import S3Rec
from reeltalk.objectives import Terms


class S3RecPretraining(BaseModel):
    """Defaults are its authors'; a loss of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_share: float = Field(0.2, gt=0, lt=1, description="of the events before the last, how many a step hides")
    item_attribute: float = Field(0.2, ge=0, description="AAP: the attribute of an item")
    history_item: float = Field(1.0, ge=0, description="MIP: a hidden item, from both sides of it")
    history_attribute: float = Field(1.0, ge=0, description="MAP: the attribute of a hidden item")
    history_segment: float = Field(0.5, ge=0, description="SP: the hidden segment of a history")


class S3RecInPretraining(Recommender):
    """S3-Rec with what pre-training alone uses. It looks both ways, and its start entries make room: see `whole`."""

    has_start, is_causal = True, False
    title_vectors_NE: Tensor
    title_N: Tensor
    key_N: Tensor

    def __init__(self, recommender: S3Rec, title_vectors_NE: Tensor) -> None:
        super().__init__()
        self.recommender = recommender
        num_rows, dim = recommender.item_embedding.weight.shape
        self.hidden_entry = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.attribute = nn.Linear(title_vectors_NE.shape[1], dim, bias=False)
        self.item_to_attribute, self.history_to_item, self.history_to_attribute, self.history_to_segment = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        for part in self.children():
            if part is not recommender:
                initialise(part)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("title_vectors_NE", title_vectors_NE, persistent=False)
        self.register_buffer("title_N", first_of_each(title_vectors_NE), persistent=False)
        self.register_buffer("key_N", torch.randint(1 << 62, (num_rows,), generator=generator), persistent=False)

    def item_vectors(self) -> Tensor:
        return self.recommender.item_vectors()

    def item_preferences(self, batch: Batch) -> Tensor:
        """MIP where the entry yet to come is the one hidden: what validation ranks by."""
        history = self.whole(batch.items)
        is_end_RL = is_end(history)
        preference_RLD: Tensor = self.history_to_item(self.encoded(history, is_end_RL))
        return preference_RLD * is_end_RL[..., None]

    def encoded(self, history: PackedHistory, is_hidden_RL: Tensor) -> Tensor:
        """The pass that looks both ways, over a history some of whose entries are hidden: [R, L, D]."""
        x_RLD = torch.where(
            is_hidden_RL[..., None], self.hidden_entry, self.recommender.item_embedding(history.item_RL)
        )
        encoded_RLD: Tensor = self.recommender.history_encoder(x_RLD, history, looks_ahead=True)
        return encoded_RLD

    def attributes(self, item_V: Tensor) -> Tensor:
        """e_a of items' titles: [V, D]."""
        attribute_VD: Tensor = self.attribute(self.title_vectors_NE[item_V].to(self.attribute.weight.dtype))
        return attribute_VD

    def whole(self, history: PackedHistory, targets: ItemTargets | None = None) -> PackedHistory:
        """Each entry makes way for the one after it, so that the last target has a place too; without targets, item 0.

        A history that is then longer than the position table loses its first entry to padding.
        """
        item_RL = F.pad(history.item_RL[:, 1:], (0, 1)).masked_fill(is_end(history), 0)
        if targets is not None:
            item_RL = item_RL.flatten().scatter(0, targets.position_T, targets.item_T).view_as(item_RL)
        end_B, owner_RL = ends(history)
        count_B = history.position_RL.flatten()[end_B] + 2
        excess_B = (count_B - self.recommender.history_encoder.positions.num_embeddings).clamp(min=0)
        position_RL = history.position_RL + 1 - excess_B[owner_RL]
        return replace(
            history,
            item_RL=item_RL,
            position_RL=position_RL,
            segment_RL=torch.where(position_RL >= 0, history.segment_RL, 0),
        )


def s3rec_objective(model: S3RecInPretraining, batch: Batch, targets: ItemTargets, settings: S3RecPretraining) -> Terms:
    """A term a loss, each with its weight. Events are hidden at random."""
    history = model.whole(batch.items, targets)
    item_U = history.item_RL[history.segment_RL > 0].unique()  # type: ignore[no-untyped-call]
    item_ND = model.item_vectors()
    items = Choices(torch.arange(len(item_ND), device=item_ND.device), item_ND)  # targets leave out row 0
    title_V = model.title_N[item_U].unique()  # type: ignore[no-untyped-call]
    titles = Choices(title_V[title_V > 0], model.attributes(title_V[title_V > 0]))
    terms: Terms = {}
    if settings.item_attribute:
        terms["item_attribute"] = titles.loss(model.item_to_attribute(item_ND[item_U]), model.title_N[item_U])
    if settings.history_item or settings.history_attribute:
        is_hidden_RL, hidden = drawn(history, targets, settings.hidden_share)
        x_TD = F.embedding(hidden.position_T, model.encoded(history, is_hidden_RL).flatten(0, 1))
        item_T = hidden.item_T
        if settings.history_item:
            terms["history_item"] = items.loss(model.history_to_item(x_TD), item_T, hidden)
        if settings.history_attribute:
            terms["history_attribute"] = titles.loss(model.history_to_attribute(x_TD), model.title_N[item_T], hidden)
    if settings.history_segment:
        terms["history_segment"] = segment_loss(model, history)
    weights = settings.model_dump()
    return {name: (weights[name] * total, count) for name, (total, count) in terms.items()}


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: ids in order of creation, each once, and their vectors."""

    id_V: Tensor
    vector_VD: Tensor

    def loss(self, x_TD: Tensor, id_T: Tensor, targets: ItemTargets | None = None) -> tuple[Tensor, int]:
        """InfoNCE of each row with its id among all; with the targets, among those that compete with each.

        A row whose id is 0 has none and adds nothing.
        """
        has_id_T = id_T > 0
        place_T = torch.searchsorted(self.id_V, id_T[has_id_T])
        first_T, existing_T = torch.zeros_like(place_T), torch.full_like(place_T, len(self.id_V))
        if targets is not None:  # an older item may have the same title
            first_T = torch.searchsorted(self.id_V, targets.first_T[has_id_T], right=True).minimum(place_T)
            existing_T = torch.searchsorted(self.id_V, targets.existing_T[has_id_T], right=True)
        x_TD = x_TD[has_id_T]
        return full_softmax(x_TD, self.vector_VD, place_T, first_T=first_T, existing_T=existing_T), len(x_TD)


def drawn(history: PackedHistory, targets: ItemTargets, share: float) -> tuple[Tensor, ItemTargets]:
    """The events that a step hides, [R, L]: each on its own with this chance, the last of a history always.

    And the targets that they are.
    """
    is_there_T = history.segment_RL.flatten()[targets.position_T] > 0
    is_end_T = is_end(history).flatten()[targets.position_T]
    is_hidden_T = ((torch.rand(is_there_T.shape, device=is_there_T.device) < share) | is_end_T) & is_there_T
    is_hidden_RL = torch.zeros_like(history.item_RL, dtype=torch.bool)
    is_hidden_RL.view(-1)[targets.position_T] = is_hidden_T
    return is_hidden_RL, targets[is_hidden_T]


def drawn_segments(history: PackedHistory) -> Tensor:
    """A stretch of each history, at most half of it, anywhere; of one event none: bool [R, L]."""
    end_B, owner_RL = ends(history)
    count_B = history.position_RL.flatten()[end_B] + 1
    draw_2B = torch.rand(2, *count_B.shape, device=count_B.device)
    length_B = (1 + (draw_2B[0] * (count_B // 2)).long()).where(count_B > 1, 0)
    first_B = (draw_2B[1] * (count_B - length_B + 1)).long()
    place_RL = history.position_RL - first_B[owner_RL]
    return (place_RL >= 0) & (place_RL < length_B[owner_RL]) & (history.segment_RL > 0)


def segment_loss(model: S3RecInPretraining, history: PackedHistory) -> tuple[Tensor, int]:
    """SP: the segment of a history among those of all, told from what else the history holds.

    Both are read from the last entry: where the segment is hidden, and where all but the segment is. Segments of the
    same items are no negatives of each other.
    """
    is_segment_RL = drawn_segments(history)
    end_B, owner_RL = ends(history)
    key_RL = model.key_N[history.item_RL] * is_segment_RL
    key_B = torch.zeros_like(end_B).index_add(0, owner_RL.flatten(), key_RL.flatten())
    is_long_B = history.position_RL.flatten()[end_B] > 0
    end_B, key_B = end_B[is_long_B], key_B[is_long_B]
    rest_BD, segment_BD = (
        F.embedding(end_B, model.encoded(history, is_hidden_RL).flatten(0, 1))
        for is_hidden_RL in (is_segment_RL, ~is_segment_RL)
    )
    rest_BD = model.history_to_segment(rest_BD)
    with torch.autocast(rest_BD.device.type, enabled=False):
        score_BB = widened(rest_BD) @ widened(segment_BD).T
    is_left_out_BB = (key_B[:, None] == key_B).fill_diagonal_(False)
    target_B = torch.arange(len(end_B), device=end_B.device)
    return F.cross_entropy(score_BB.masked_fill(is_left_out_BB, -torch.inf), target_B, reduction="sum"), len(end_B)


def ends(history: PackedHistory) -> tuple[Tensor, Tensor]:
    """The flat cell of each history's last entry, and which of these histories an entry is of; of padding any.

    [B] and [R, L].
    """
    is_end_X = is_end(history).flatten()
    end_B = is_end_X.nonzero()[:, 0]
    owner_RL = (is_end_X.cumsum(0) - is_end_X.long()).clamp(max=len(end_B) - 1).view_as(history.item_RL)
    return end_B, owner_RL


def first_of_each(title_vectors_NE: Tensor) -> Tensor:
    """Of each item, the first one with its title; 0 where it has none."""
    _, place_N = title_vectors_NE.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    item_N = torch.arange(len(place_N), device=place_N.device)
    first_N = torch.full_like(item_N, len(item_N)).scatter_reduce(0, place_N, item_N, "amin")[place_N]
    return torch.where(title_vectors_NE.any(1), first_N, 0)
