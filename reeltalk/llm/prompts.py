"""A user's two histories as an instruction that an LLM reads (LSVCR section 4.2), within a budget of tokens.

What is too long loses its oldest events; only where one entry of each history does not fit are texts shortened, to one
length. The task at the end stays whole, so the token that the preference is read from (eq 9) is always the same.

Shape suffixes: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reeltalk.config import read_yaml
from reeltalk.data.dataset import Task
from reeltalk.data.instances import Entry
from reeltalk.data.ragged import Ints
from reeltalk.errors import ConfigError
from reeltalk.text.batches import pad_right
from reeltalk.text.encoder import CHARACTERS_PER_TOKEN

Language = Literal["en", "zh"]
Order = Literal["items_first", "records_first"]

TEMPLATES = Path(__file__).with_name("templates.yaml")
_TEXTS_KEPT = 200_000  # tokens of as many texts stay at hand
_LENGTH_STEP = 16  # prompts are padded to a multiple of this, so that kernels are prepared for few shapes


class PromptSettings(BaseModel):
    """What a prompt is made of, and how long it may get."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Language = Field("en", description="of the instruction; titles and comments stay as they are")
    max_tokens: int = Field(1024, gt=0, description="instruction and target; lowered to the model's positions")
    max_text_tokens: int = Field(
        64, gt=0, description="of one title or comment, also of the target; a longer one is cut"
    )
    record_comments: int = Field(3, gt=0, description="comments of one record that are read, the last ones")


@dataclass(frozen=True)
class Prompt:
    """Token ids of the instruction and then the target, int64 [T], and what had to go for the budget."""

    ids: Ints
    instruction_length: int
    dropped_events: int
    shortened_texts: int


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as token ids_BT; mask_BT is True at tokens, last_B the column of the instruction's last token."""

    ids_BT: Tensor
    mask_BT: Tensor
    last_B: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Prompt], *, max_tokens: int) -> Self:
        """Pad on the right to a multiple of 16, though not beyond `max_tokens`, the model's positions."""
        rows = [prompt.ids for prompt in prompts]
        ids_BT, mask_BT = pad_right(rows, multiple=_LENGTH_STEP, max_tokens=max_tokens)
        return cls(
            ids_BT, mask_BT, torch.tensor([prompt.instruction_length - 1 for prompt in prompts], dtype=torch.int64)
        )

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.ids_BT.to(device), self.mask_BT.to(device), self.last_B.to(device))

    @property
    def is_target_BT(self) -> Tensor:
        """True at the tokens of the targets."""
        return self.mask_BT & (torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device) > self.last_B[:, None])


class _Template(BaseModel):
    """One language of templates.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_entry: tuple[str, str]
    record_entry: tuple[str, str]
    between_parts: str
    between_comments: str
    no_text: str
    no_entries: str
    items_alone: str
    tasks: dict[Task, dict[Order, str]]


class _Run(NamedTuple):
    """Tokens that stand together: words of the template, or a text, which may be shortened."""

    ids: Ints
    is_text: bool = False
    is_shortened: bool = False


class PromptWriter:
    """Writes prompts for one tokenizer: any fast one, whatever it puts before a text, whether it pads or not."""

    def __init__(self, tokenizer: Any, settings: PromptSettings, *, max_tokens: int) -> None:
        """`max_tokens` is what the model has positions for.

        Raises ConfigError where the instruction does not fit even without a single title or comment.
        """
        self._tokenizer = tokenizer
        self._settings = settings
        self._template = _Template.model_validate(read_yaml(TEMPLATES)[settings.language])
        self._texts: dict[tuple[str, str], _Run] = {}
        self._words: dict[str, _Run] = {}
        self._opening = _Run(_opening(tokenizer))
        end = end_token(tokenizer)
        self._end = np.array([] if end is None else [end], np.int64)
        # set aside for the target whatever its length, or the number of events would tell of it
        target_room = settings.max_text_tokens + len(self._end)
        self._room = min(settings.max_tokens, max_tokens) - target_room
        bare = max(self._bare_length(task, order) for task, orders in self._template.tasks.items() for order in orders)
        if bare > self._room:
            raise ConfigError(
                f"prompts of {self._room + target_room} tokens (max_tokens={settings.max_tokens}, the model takes "
                f"{max_tokens}) are too short: the instruction needs {bare} without any text, "
                f"its target {target_room}; give more max_tokens, fewer max_text_tokens, or a model with more positions"
            )

    def write(
        self,
        items: Sequence[Entry],
        records: Sequence[Entry] | None,
        *,
        task: Task,
        order: Order,
        watched: str = "",
        target: str = "",
    ) -> Prompt:
        """The prompt of a user whose histories are in order of time; records are None where the log has no comments.

        `watched` is the title being watched (comment task). `target` is the text to learn, to which the tokenizer's end
        token is added where it is whole; without one the prompt is the instruction alone.
        """
        frame = _gaps(self._template.items_alone if records is None else self._template.tasks[task][order])
        asked = [self._text(watched, space) for _, slot, space in frame if slot == "watched"]
        histories, times = {"items": self._history(items, "item_entry")}, {"items": [entry.time for entry in items]}
        if records is not None:
            histories["records"] = self._history(records, "record_entry")
            times["records"] = [entry.time for entry in records]
        fixed = [self._opening, *(self._tokens(words) for words, _, _ in frame), *asked]
        kept = _latest(histories, times, room=self._room - _length(fixed))
        runs = [self._opening]
        for words, slot, _ in frame:
            runs.append(self._tokens(words))
            if slot == "watched":
                runs += asked
            elif slot in histories:
                runs += [run for entry in kept[slot] for run in entry]
        runs = _shortened_evenly(runs, room=self._room)
        answer = [self._text(target, frame[-1][2])] if target.strip() else []
        if answer and not answer[0].is_shortened:
            answer.append(_Run(self._end))
        return Prompt(
            np.concatenate([run.ids for run in [*runs, *answer]]),
            instruction_length=_length(runs),
            dropped_events=sum(len(histories[slot]) - len(kept[slot]) for slot in histories),
            shortened_texts=sum(run.is_shortened for run in [*runs, *answer]),
        )

    def _history(self, entries: Sequence[Entry], kind: Literal["item_entry", "record_entry"]) -> list[list[_Run]]:
        """The runs of each entry; of a history without entries, one that says so."""
        return [self._entry(entry, getattr(self._template, kind)) for entry in entries] or [
            [self._tokens("\n"), self._text(self._template.no_entries, "")]
        ]

    def _entry(self, entry: Entry, parts: tuple[str, str]) -> list[_Run]:
        runs: list[_Run] = []
        before = "\n"
        for part in parts:
            ((words, slot, space),) = _gaps(part)
            texts = [entry.title] if slot == "title" else entry.comments[-self._settings.record_comments :]
            before += words
            for text in filter(str.strip, texts):
                runs += [self._tokens(before), self._text(text, space)]
                before = self._template.between_comments
            before = self._template.between_parts if runs else "\n"
        return runs or [self._tokens("\n"), self._text("", "")]

    def _bare_length(self, task: Task, order: Order) -> int:
        """Tokens of the longest instruction with each history one entry long and all texts cut to nothing."""
        full = Entry(0, "a", ["a"] * self._settings.record_comments)
        runs = [self._opening, *(self._tokens(words) for words, _, _ in _gaps(self._template.tasks[task][order]))]
        for parts in (self._template.item_entry, self._template.record_entry):
            runs += [run for run in self._entry(full, parts) if not run.is_text]
        return _length(runs)

    def _tokens(self, words: str) -> _Run:
        if words not in self._words:
            self._words[words] = _Run(self._ids(words))
        return self._words[words]

    def _text(self, text: str, space: str) -> _Run:
        """A title or comment on one line, cut to `max_text_tokens`."""
        key = text, space
        if key not in self._texts:
            if len(self._texts) == _TEXTS_KEPT:
                self._texts.clear()
            limit = self._settings.max_text_tokens
            line = " ".join(text.split()) or self._template.no_text
            ids = self._ids(space + line[: limit * CHARACTERS_PER_TOKEN])
            is_shortened = len(ids) > limit or len(line) > limit * CHARACTERS_PER_TOKEN
            self._texts[key] = _Run(ids[:limit], is_text=True, is_shortened=is_shortened)
        return self._texts[key]

    def _ids(self, text: str) -> Ints:
        """Token ids without any around them; what looks like a special token in a text is read as its letters."""
        how = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return np.array(self._tokenizer(text, **how)["input_ids"], np.int64)


def end_token(tokenizer: Any) -> int | None:
    """What says that a text is over: EOS, or [SEP]; None where the tokenizer has neither."""
    return next((token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None), None)


def _opening(tokenizer: Any) -> Ints:
    """What the tokenizer puts before a text: BOS, [CLS], nothing."""
    letter = tokenizer("a", return_special_tokens_mask=True)
    return np.array(letter["input_ids"][: letter["special_tokens_mask"].index(0)], np.int64)


def _gaps(template: str) -> list[tuple[str, str, str]]:
    """Words, the slot that follows them, and the white space between.

    The space goes with what fills the slot: most tokenizers join it to the next word.
    """
    return [
        (words.rstrip(), str(slot), words[len(words.rstrip()) :]) for words, slot, _, _ in Formatter().parse(template)
    ]


def _length(runs: Iterable[_Run]) -> int:
    return sum(len(run.ids) for run in runs)


def _latest(
    histories: Mapping[str, list[list[_Run]]], times: Mapping[str, list[int]], *, room: int
) -> dict[str, list[list[_Run]]]:
    """The latest entries over both histories that fit into `room` tokens, and the last one of each in any case."""
    events = [
        (place == len(entries) - 1, times[slot][place] if times[slot] else 0, place, slot)
        for slot, entries in histories.items()
        for place in range(len(entries))
    ]
    first = dict.fromkeys(histories, 0)
    for is_last, _, place, slot in sorted(events, reverse=True):
        room -= _length(histories[slot][place])
        if room < 0 and not is_last:
            break
        first[slot] = place
    return {slot: entries[first[slot] :] for slot, entries in histories.items()}


def _shortened_evenly(runs: list[_Run], *, room: int) -> list[_Run]:
    """The runs, with the longest texts shortened to one length (give or take a token) so that they fit into `room`."""
    if _length(runs) <= room:
        return runs
    room -= _length(run for run in runs if not run.is_text)
    shortened = list(runs)
    texts = sorted((place for place, run in enumerate(runs) if run.is_text), key=lambda place: len(runs[place].ids))
    for done, place in enumerate(texts):
        length = min(len(runs[place].ids), room // (len(texts) - done))
        if length < len(runs[place].ids):
            shortened[place] = _Run(runs[place].ids[:length], is_text=True, is_shortened=True)
        room -= length
    return shortened
