"""The platform's truth: who likes what, when. Generation draws from it, the oracle scores with it.

One taste vector a user drives both histories. Its first part lives in the space of topics: an item has the direction
of its cell (a subtopic of a topic), a comment that of the cell it talks about. Its last part weighs five characters: an
item has a format, a comment a stance. Topics turn as time goes by, character stays.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reeltalk.data.simulator.texts import NUM_CHARACTERS, NUM_TOPICS, SUBTOPICS

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

START = 1_704_067_200_000  # 2024-01-01
DAY = 86_400_000
FOREVER = np.iinfo(np.int64).max
TOPIC_WIDTH = 12
FORMAT_WEIGHT = 0.45  # of an item's format beside its topic
ASPECT_WEIGHT = 0.6  # of what a comment talks about ..
STANCE_WEIGHT = 0.9  # .. beside how it talks
COMMENT_DECAY = 0.5  # power of its age, in days, by which a comment fades
EVERGREEN = 0.03  # the share of an item's best popularity that time does not take


class SimulatorSettings(BaseModel):
    """How large the platform is and how strongly its users know what they want.

    Event and comment counts are upper bounds, missed by less than a per cent unless the platform is tiny. Settings that
    differ only in their seed make platforms of the same kind; the same settings make the same log, byte for byte.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_users: int = Field(3_000, ge=2)
    num_items: int = Field(2_000, ge=2)
    num_comments: int = Field(15_000, ge=0)
    num_item_events: int = Field(45_000, ge=0)
    num_comment_events: int = Field(25_000, ge=0)
    num_topics: int = Field(NUM_TOPICS, ge=2, le=NUM_TOPICS, description="what items, comments and tastes are of")
    days: int = Field(30, ge=1, description="from the first to the last event")
    steps_per_day: int = Field(8, ge=1, le=24, description="choices see the platform as it was when their step began")
    drift: float = Field(
        0.6, ge=0, le=1, description="1: the fastest users end with a taste unrelated to the one they began with"
    )
    taste_strength: float = Field(8.0, ge=0, description="0: only popularity counts")
    popularity_decay_days: float = Field(12.0, gt=0, description="after which an item is e times less popular")
    items_shown: int = Field(128, ge=4, description="to each user who chooses")
    comments_shown: int = Field(100, ge=4, description="the newest of an item")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _enough_pairs(self) -> SimulatorSettings:
        most = self.num_users * self.num_items // 5
        if self.num_item_events > most:
            raise ValueError(
                f"num_item_events={self.num_item_events} is more than a fifth of num_users x num_items: "
                f"give at most {most}, or more users or items"
            )
        return self


def _unit(vectors: Array) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True)
class Platform:
    """Every array that a choice depends on; rows are users, items or comments in the order they came to the platform.

    A time stands for the step it lies in: taste, popularity and what exists are those of the step's beginning.
    """

    scale: Floats  # [1] taste strength
    clock: Ints  # [3] start, length of a step, end, in ms
    cell_vector: Floats  # [cells, topic width]
    user_joined: Ints
    user_activity: Floats
    user_taste: Floats  # [users, topic width] where a user's taste of topics begins ..
    user_new_taste: Floats  # .. and what it turns to, orthogonal to it
    user_speed: Floats  # the angle it turns in the whole time
    user_character: Floats  # [users, characters]
    item_created: Ints
    item_cell: Ints
    item_format: Ints
    item_vector: Floats  # [items, topic width + characters]
    item_reach: Floats
    item_decay: Floats  # days
    comment_created: Ints
    comment_hidden: Ints  # when newer comments pushed it out of what an item shows
    comment_vector: Floats
    comment_quality: Floats

    @classmethod
    def create(cls, settings: SimulatorSettings, *, rng: np.random.Generator) -> Platform:
        """A platform with its users and items drawn and no comment written."""
        users, items, comments = settings.num_users, settings.num_items, max(settings.num_comments, 1)
        step = DAY // settings.steps_per_day
        end = START + settings.days * DAY
        topics = _unit(rng.normal(size=(settings.num_topics, 1, TOPIC_WIDTH)))
        cells = _unit(topics + 0.7 * _unit(rng.normal(size=(settings.num_topics, SUBTOPICS, TOPIC_WIDTH))))
        cell_vector = cells.reshape(-1, TOPIC_WIDTH)
        taste, new_taste = (_interests(cell_vector, users, rng) for _ in range(2))
        new_taste = _unit(new_taste - taste * (taste * new_taste).sum(axis=1, keepdims=True))
        character = rng.normal(size=(users, NUM_CHARACTERS))
        item_cell = rng.integers(len(cell_vector), size=items)
        item_format = rng.integers(NUM_CHARACTERS, size=items)
        late = rng.random(users) < 0.25
        return cls(
            scale=np.array([settings.taste_strength], dtype=np.float32),
            clock=np.array([START, step, end]),
            cell_vector=cell_vector,
            user_joined=np.sort(np.where(late, rng.integers(START, end - step + 1, size=users), START)),
            user_activity=rng.lognormal(0.0, 0.8, size=users).astype(np.float32),
            user_taste=taste,
            user_new_taste=new_taste,
            user_speed=(settings.drift * np.pi / 2 * rng.random(users)).astype(np.float32),
            user_character=_unit(character - character.mean(axis=1, keepdims=True)),
            # a fifth as many days of uploads as the log is long lie before it: it opens on a platform with items
            item_created=np.sort(rng.integers(START - (end - START) // 5, end - step, size=items)),
            item_cell=item_cell,
            item_format=item_format,
            item_vector=np.concatenate(
                [cell_vector[item_cell], FORMAT_WEIGHT * np.eye(NUM_CHARACTERS, dtype=np.float32)[item_format]], axis=1
            ),
            item_reach=rng.normal(0.0, 0.8, size=items).astype(np.float32),
            item_decay=(settings.popularity_decay_days * rng.lognormal(0.0, 0.4, size=items)).astype(np.float32),
            comment_created=np.full(comments, FOREVER),
            comment_hidden=np.full(comments, FOREVER),
            comment_vector=np.zeros((comments, TOPIC_WIDTH + NUM_CHARACTERS), dtype=np.float32),
            comment_quality=np.zeros(comments, dtype=np.float32),
        )

    def arrays(self) -> dict[str, Array]:
        """The fields by name, for saving; ``Platform(**arrays)`` is the same platform."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def step_of(self, times: Array) -> Array:
        """The beginning of the step that each time lies in."""
        return np.asarray(times - (times - self.clock[0]) % self.clock[1])

    def taste(self, users: Ints, times: Array) -> Floats:
        """What users want at those times, [.., topic width + characters]; users and times are broadcast."""
        users, times = np.broadcast_arrays(users, self.step_of(np.asarray(times)))
        passed = ((times - self.clock[0]) / (self.clock[2] - self.clock[0])).astype(np.float32)
        angle = (self.user_speed[users] * passed)[..., None]
        topics = np.cos(angle) * self.user_taste[users] + np.sin(angle) * self.user_new_taste[users]
        return np.asarray(self.scale[0] * np.concatenate([topics, self.user_character[users]], axis=-1))

    def item_popularity(self, items: Ints, times: Array) -> Floats:
        """Log weight with which items are shown: it rises after the upload, then decays; -inf before."""
        age = ((self.step_of(np.asarray(times)) - self.item_created[items]) / DAY).astype(np.float32)
        decay = self.item_decay[items]
        lived = np.maximum(age, 0.01) / decay
        shape = EVERGREEN + (1 - np.exp(-20 * lived)) * np.exp(-lived)
        return np.where(age >= 0, self.item_reach[items] + np.log(shape), np.float32(-np.inf))

    def comment_vectors(self, cells: Ints, stances: Ints, depths: Ints) -> Floats:
        """Directions of comments, [.., topic width + characters]; one of depth 0 names no topic."""
        aspect = ASPECT_WEIGHT * self.cell_vector[cells] * (depths > 0)[..., None]
        return np.concatenate([aspect, STANCE_WEIGHT * np.eye(NUM_CHARACTERS, dtype=np.float32)[stances]], axis=-1)

    def true_item_preference(self, user_ids: Ints, item_ids: Ints, times: Array) -> Floats:
        """Log weight of each item among all items for that user at that time, broadcast; -inf before it exists.

        Ids are rows here. Popularity decides what is shown, taste what is chosen of it: this is their sum, exact where
        many items are shown to each user.
        """
        wanted = np.einsum("...d,...d->...", self.taste(user_ids, times), self.item_vector[item_ids])
        return np.asarray(wanted + self.item_popularity(item_ids, times))

    def true_comment_preference(self, user_ids: Ints, comment_ids: Ints, times: Array) -> Floats:
        """Log weight of each comment among those its item shows, broadcast; -inf while not shown. Ids are rows."""
        step = self.step_of(np.asarray(times))
        created = self.comment_created[comment_ids]
        shown = (created < step) & (step <= self.comment_hidden[comment_ids])
        age = np.where(shown, step - created, 0) / np.float32(DAY)
        wanted = np.einsum("...d,...d->...", self.taste(user_ids, times), self.comment_vector[comment_ids])
        weight = wanted + self.comment_quality[comment_ids] - COMMENT_DECAY * np.log1p(age)
        return np.where(shown, weight, -np.inf).astype(np.float32)

    def respond(self, users: Ints, shown: Ints, time: int, *, count: int, rng: np.random.Generator) -> Ints:
        """The items each user likes best of those shown, best first, [users, count].

        `shown` are item rows, [users, any number]. The first is drawn from the softmax of taste over what is shown, the
        next from that of the rest, and so on.
        """
        taste = self.taste(users, np.asarray(time))
        wanted = np.einsum("bd,bnd->bn", taste, self.item_vector[shown])
        return np.take_along_axis(shown, draw_ranked(wanted, count=count, rng=rng), axis=1)


def _interests(cell_vector: Floats, users: int, rng: np.random.Generator) -> Floats:
    """Directions of taste: three cells each, one before all, and a little of everything."""
    homes = rng.integers(len(cell_vector), size=(users, 3))
    shares = np.array([1.0, 0.6, 0.3], dtype=np.float32)[None, :, None]
    return _unit((shares * cell_vector[homes]).sum(axis=1) + 0.05 * rng.normal(size=(users, TOPIC_WIDTH)))


def draw_ranked(weights: Floats, *, count: int, rng: np.random.Generator) -> Ints:
    """Columns drawn without replacement from the softmax of each row of log weights, in the order drawn."""
    noisy = weights - np.log(rng.standard_exponential(size=weights.shape, dtype=np.float32) + np.float32(1e-30))
    best = np.argpartition(-noisy, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(noisy, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
