"""Texts through a language model that learns: memory follows a budget of tokens, not the number of texts.

Shapes: B texts of a batch, T tokens, U texts, E text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from reeltalk.data.ragged import Ints

Result = TypeVar("Result")
Again = Callable[[], AbstractContextManager[None]]
_MOST_PADDING = 0.05
TEXT_STEP = 4  # texts are padded to a multiple of this; they are short, and 16 would be half padding


def by_length(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Rows in order of length, as many at a time as `tokens_per_batch` has room for.

    A batch of a quarter of that is large enough to be quick, and ends where a longer row would leave much padding.
    """
    batches: list[list[int]] = []
    tokens = 0  # of the last batch
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(batches[-1]) + 1) * lengths[row] if batches else 0
        is_ragged = padded - tokens - lengths[row] > _MOST_PADDING * padded and 4 * tokens >= tokens_per_batch
        if not batches or padded > tokens_per_batch or is_ragged:
            batches.append([])
            tokens = 0
        batches[-1].append(row)
        tokens += lengths[row]
    return batches


def num_kept(batches: Sequence[Sequence[int]], lengths: Sequence[int], tokens_kept: int) -> int:
    """How many of the first batches hold no more tokens than that, padding included."""
    tokens = np.cumsum([len(rows) * lengths[rows[-1]] for rows in batches])
    return int(np.searchsorted(tokens, tokens_kept, side="right"))


def run_batches(
    run: Callable[[list[int]], Result],
    batches: Sequence[list[int]],
    *,
    num_kept: int,
    place: Tensor,
    again: Again | None = None,
) -> list[Result]:
    """The result of each batch. Those behind the first `num_kept`, unless there is one alone, run again backwards.

    `place` is any tensor on the device: it tells which random state the second run must start from. `again` is for a
    model whose layers are divided over processes: a second run is within it, and all processes run equally many
    batches and the same of them again. Where one has fewer, batches without rows follow its own.
    """
    if again is not None:
        batches, num_kept = _as_on_all(batches, num_kept, place.device)
    if len(batches) == 1 or not torch.is_grad_enabled():
        num_kept = len(batches)
    results = [run(rows) for rows in batches[:num_kept]]
    for rows in batches[num_kept:]:
        results.append(
            cast(
                Result,
                checkpoint(
                    lambda _, rows: run(rows),
                    place,
                    rows,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), again() if again else nullcontext()),
                ),
            )
        )
    return results


def _as_on_all(batches: Sequence[list[int]], num_kept: int, device: torch.device) -> tuple[list[list[int]], int]:
    """As many batches as the process with most of them has; kept are those that every process has room for."""
    is_short = num_kept < len(batches)
    agreed = torch.tensor([len(batches), -num_kept if is_short else -(1 << 62)], device=device)
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
    num_batches, kept = agreed.tolist()
    filling: list[list[int]] = [[] for _ in range(num_batches - len(batches))]
    return [*batches, *filling], min(-kept, num_batches)


def distinct_vectors(
    run: Callable[[list[Ints]], Tensor],
    ids: Sequence[Sequence[int] | Ints],
    *,
    width: int,
    tokens_per_batch: int,
    tokens_kept: int = 0,
    place: Tensor,
    again: Again | None = None,
) -> Tensor:
    """What `run` gives for each text's token ids, [U, E] on the device of `place`, with gradient where it is asked for.

    Texts of the same tokens run once, about `tokens_per_batch` tokens at a time; what the backward pass needs is kept
    of the first `tokens_kept`. A text without tokens gives zeros.
    """
    distinct: dict[bytes, int] = {}
    row_U = [distinct.setdefault(np.asarray(text, np.int64).tobytes(), len(distinct)) for text in ids]
    texts = [np.frombuffer(tokens, np.int64) for tokens in distinct]
    there = [row for row, text in enumerate(texts) if len(text)]
    lengths = [len(texts[row]) for row in there]
    batches = by_length(lengths, tokens_per_batch=tokens_per_batch)
    found = run_batches(
        lambda rows: run([texts[there[row]] for row in rows]),
        batches,
        num_kept=num_kept(batches, lengths, tokens_kept),
        place=place,
        again=again,
    )
    row_of_text = np.zeros(len(texts), np.int64)  # row 0 is zeros
    for row, text in enumerate((there[row] for batch in batches for row in batch), start=1):
        row_of_text[text] = row
    vectors = torch.cat([torch.zeros(1, width, device=place.device), *found])
    return F.embedding(torch.from_numpy(row_of_text[np.array(row_U, np.int64)]).to(place.device), vectors)


def pad_right(rows: Sequence[Ints], *, multiple: int, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], 0 at padding, and which of them are tokens; T is a multiple, though at most `max_tokens`."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max(initial=1))
    mask = np.arange(max(longest, min(-(-longest // multiple) * multiple, max_tokens))) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([*rows, np.empty(0, np.int64)])
    return torch.from_numpy(ids), torch.from_numpy(mask)
