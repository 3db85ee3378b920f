"""The simulator's truth about a dataset made from it: the best any ranking of its targets can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from reeltalk.artifacts import reading_file
from reeltalk.data.dataset import Dataset
from reeltalk.data.simulator.platform import Array, Floats, Ints, Platform
from reeltalk.errors import ArtifactError

FILE = "oracle.npz"
KEYS = ("user_key", "item_key", "comment_key")


@dataclass(frozen=True)
class Oracle:
    """True scores for a dataset's ids.

    `user_row`, `item_row` and `comment_row` give an id's row on the platform; id 0, padding, has none and scores -inf.
    """

    platform: Platform
    user_row: Ints
    item_row: Ints
    comment_row: Ints

    @classmethod
    def load(cls, path: str | Path) -> Oracle:
        """The oracle of a dataset folder; raises ArtifactError where the dataset is not the simulator's."""
        dataset = Dataset.load(path)
        file = dataset.path / FILE
        if not file.is_file():
            raise ArtifactError(
                f"{dataset.path} has no {FILE}: only a dataset prepared from the simulator knows the truth"
            )
        with reading_file(file), np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        keys = {name: arrays.pop(name) for name in KEYS}
        rows = (
            _rows(table[name], keys[name])
            for name, table in zip(KEYS, (dataset.users, dataset.items, dataset.comments), strict=True)
        )
        return cls(Platform(**arrays), *rows)

    def item_scores(self, user_ids: Ints, item_ids: Ints, times: Array) -> Floats:
        """How much each user truly wants each item at that time; ids and times in ms are broadcast."""
        scores = self.platform.true_item_preference(self.user_row[user_ids], self.item_row[item_ids], times)
        return _unpadded(scores, user_ids, item_ids)

    def comment_scores(self, user_ids: Ints, comment_ids: Ints, times: Array) -> Floats:
        """How much each user truly wants each comment of the item it belongs to; ids and times in ms are broadcast."""
        scores = self.platform.true_comment_preference(self.user_row[user_ids], self.comment_row[comment_ids], times)
        return _unpadded(scores, user_ids, comment_ids)


def _rows(keys: pl.Series, known: Array) -> Ints:
    """The row of each id, with one for padding before them (which is never looked at)."""
    platform = pl.DataFrame({"key": known, "row": np.arange(len(known))})
    rows = keys.to_frame("key").join(platform, on="key", how="left", maintain_order="left")["row"]
    if rows.null_count():
        strange = keys.filter(rows.is_null())[0]
        raise ArtifactError(f"{FILE} does not know {strange!r}: it belongs to another dataset; prepare it again")
    return np.concatenate([[0], rows.to_numpy()])


def _unpadded(scores: Floats, *ids: Ints) -> Floats:
    real = np.ones((), dtype=bool)
    for one in ids:
        real = real & (np.asarray(one) > 0)
    return np.where(real, scores, np.float32(-np.inf))
