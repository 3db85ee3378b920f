"""What the LLM recommender reads of a user of a dataset, to be looked at (LSVCR section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reeltalk.data.dataset import Dataset, Task, ids_of
from reeltalk.data.histories import NOW, Histories, request_windows
from reeltalk.data.instance_stream import told_with
from reeltalk.data.instances import Entry, Words
from reeltalk.errors import ConfigError, DataError
from reeltalk.llm.prompts import Order, Prompt, PromptWriter
from reeltalk.llm.settings import AlignDataSettings, AlignSettings
from reeltalk.text.checkpoint import load_tokenizer


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt without a target, its tokens as text, and the most tokens that instruction and target may have."""

    prompt: Prompt
    text: str
    max_tokens: int


def show_prompt(
    dataset: Dataset,
    user: str,
    *,
    settings: AlignSettings,
    task: Task = "item",
    order: Order = "items_first",
    item: str | None = None,
) -> ShownPrompt:
    """What the LLM reads of a user whose histories go up to now; of the LLM only its tokenizer is loaded.

    `item` is the item being watched (comment task); left out, it is that of the user's last comment record. Raises
    DataError for an unknown user or item key, and where there is no such record; ConfigError where the tokenizer cannot
    be loaded, the prompt is too short for its instruction, or settings and task do not go together.
    """
    if item is not None and task == "item":
        raise ConfigError(f"item {item!r}: only the comment task knows an item being watched; leave it out")
    if task == "comment" and not settings.data.comments:
        raise ConfigError("data.comments is off, and there is no comment task without comments; give the item task")
    user_id = int(ids_of("user", [user], dataset.user_ids)[0])
    histories, _ = told_with(dataset, settings.data.hot_comments, seed=settings.train.seed)
    items, records = _entries(dataset, histories, user_id, settings=settings.data)
    watched = "" if task == "item" else _watched(dataset, histories, user_id, user=user, item=item)
    tokenizer, positions = load_tokenizer(settings.llm.name, trust_remote_code=settings.llm.trust_remote_code)
    writer = PromptWriter(tokenizer, settings.prompt, max_tokens=positions)
    has_records = settings.data.comments and len(histories.record_item) > 0
    prompt = writer.write(items, records if has_records else None, task=task, order=order, watched=watched)
    return ShownPrompt(prompt, tokenizer.decode(prompt.ids), max_tokens=min(settings.prompt.max_tokens, positions))


def _entries(
    dataset: Dataset, histories: Histories, user_id: int, *, settings: AlignDataSettings
) -> tuple[list[Entry], list[Entry]]:
    """The latest item events and records, each with its own comments."""
    window = request_windows(histories, "item", np.array([user_id]), np.array([NOW]), length=settings.history_length)
    items = histories.item_entries(range(window.begin[0], window.end[0]))
    records = histories.record_entries(
        range(window.other_begin[0], window.other_end[0]), record_comments=settings.record_comments
    )
    if not settings.comments:
        items, records = [entry._replace(comments=[]) for entry in items], []
    words = Words.of(dataset)
    return words.entries(items), words.entries(records)


def _watched(dataset: Dataset, histories: Histories, user_id: int, *, user: str, item: str | None) -> str:
    """The title of the item being watched."""
    if item is not None:
        item_id = int(ids_of("item", [item], dataset.item_ids)[0])
    else:
        first, last = histories.record_offsets[user_id : user_id + 2]
        if first == last:
            raise DataError(f"user {user!r} has no comment record to tell what is being watched; give the item")
        item_id = int(histories.record_item[last - 1])
    title: str = dataset.items["title"][item_id - 1]
    return title
