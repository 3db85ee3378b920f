"""A recommender with what it needs to be trained, evaluated and asked: settings, histories, text vectors, item keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from reeltalk.artifacts import Manifest, file_digest, read_manifest, reading_file, require_parent
from reeltalk.config import load_settings
from reeltalk.data.batch import Batch, CommentTargets
from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.features import CommentFeatures
from reeltalk.data.histories import Histories, Windows, training_windows
from reeltalk.data.hot import Leaders
from reeltalk.data.pool import CommentPool
from reeltalk.errors import ArtifactError, ConfigError, DataError
from reeltalk.models import build, model_spec
from reeltalk.models.candidate_features import CandidateFeatures
from reeltalk.models.recommender import Recommender
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.text.trained import TEXT
from reeltalk.training.feed import Feed
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.texts import TrainedTexts

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
TEXTS = "texts."  # what the names of a trained text encoder's weights begin with
Result = TypeVar("Result")
Reader = Callable[[Recommender, CandidateFeatures | None, Batch, CommentTargets], Result]


class System(nn.Module):
    """The parts that are trained (recommender, candidate features) beside those that are only read."""

    def __init__(
        self,
        recommender: Recommender,
        features: CandidateFeatures | None,
        *,
        feed: Feed,
        dataset: Dataset,
        settings: FinetuneSettings,
    ) -> None:
        super().__init__()
        self.recommender = recommender
        self.features = features
        self.feed = feed
        self.dataset = dataset
        self.settings = settings
        self.texts: TrainedTexts | None = None  # while the text encoder learns too
        self._item_vectors: Tensor | None = None

    @classmethod
    def new(
        cls, dataset: Dataset, *, text: TextTable | None, settings: FinetuneSettings, is_loaded: bool = False
    ) -> Self:
        """A system with fresh weights; the seed of `settings.train` fixes them. `is_loaded`: as `build` takes it."""
        spec = model_spec(settings.name, settings.task)
        dataset.require_creation(settings.data.active_days)
        if spec.reads_text and text is None:
            raise ConfigError(f"{settings.name} reads text: give --text, a folder that `reeltalk encode` wrote")
        is_comment = settings.task == "comment"
        lookup = TextLookup.nothing(dataset)
        if spec.reads_text and text is not None:
            with_comments = is_comment or (settings.data.comments and "records" in spec.reads)
            lookup = TextLookup.of(dataset, text, with_comments=with_comments)
        with_features = is_comment and settings.data.candidate_features
        histories = as_read(Histories.of(dataset), settings)
        known = np.zeros(dataset.num_items + 1, np.bool_)
        known[histories.item[histories.item_split == Split.TRAIN]] = True
        recommender = build(
            settings.name,
            settings.task,
            settings.model,
            titles=lookup.titles(),
            known_items=torch.from_numpy(known),
            history_length=settings.data.history_length,
            seed=settings.train.seed,
            is_loaded=is_loaded,
        )
        feed = Feed(
            histories=histories,
            item_created=dataset.items["created"].to_numpy().astype(np.int64),
            text=lookup,
            task=settings.task,
            pool=CommentPool.of(dataset) if is_comment else None,
            features=CommentFeatures.of(dataset) if with_features else None,
            has_start=recommender.has_start,
            record_comments=settings.data.record_comments,
            num_negatives=settings.data.num_negatives,
            active_days=settings.data.active_days,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.train.seed)
            features = CandidateFeatures() if with_features else None
        return cls(recommender, features, feed=feed, dataset=dataset, settings=settings)

    @cached_property
    def leaders(self) -> Leaders:
        """The comments that item events are told with."""
        return Leaders.of(self.dataset)

    def train_texts(self, texts: TrainedTexts) -> None:
        """From now on text vectors come from an encoder that learns."""
        self.texts = texts
        self.feed = replace(self.feed, text=TextLookup.nothing(self.dataset))

    def own_parameters(self) -> list[nn.Parameter]:
        """All but a text encoder's."""
        return [weight for name, weight in self.named_parameters() if not name.startswith(TEXTS)]

    def read(self, by: Reader[Result], batch: Batch, targets: CommentTargets) -> Result:
        """`comment_scores` or `comment_objective` of this system, with text vectors as they are now."""
        if self.texts is None:
            return self.forward(by, batch, targets)
        batch, title_vectors_NE = self.texts(batch, targets.item_T)
        titles = {"recommender.title_vectors_NE": title_vectors_NE}
        result: Result = functional_call(self, titles, (by, batch, targets))
        return result

    def forward(self, by: Reader[Result], batch: Batch, targets: CommentTargets) -> Result:
        return by(self.recommender, self.features, batch, targets)

    def require_task(self, task: Task) -> None:
        """Raise DataError where the system was trained for the other task."""
        if self.settings.task != task:
            raise DataError(
                f"this system was trained for the {self.settings.task} task; ask one that was trained for the {task} "
                "task"
            )

    def training_windows(self) -> Windows:
        """The windows that hold every training target once; raises DataError where there is none."""
        settings = self.settings
        windows = training_windows(
            self.feed.histories,
            settings.task,
            length=settings.data.history_length,
            has_start=self.recommender.has_start,
        )
        if len(windows) == 0:
            what = "item events" if settings.task == "item" else "comment records"
            raise DataError(
                f"{self.dataset.path} has no {what} to train the {settings.task} task on; "
                "prepare it from logs that have"
            )
        return windows

    def item_vectors(self) -> Tensor:
        """Vectors of all items for one's own index: float32 [N, D], row item_id - 1; score = preference · vector.

        The caller's own, to be changed at will. Raises DataError for a system of the comment task.
        """
        return self.vectors_of_items().clone()

    @torch.inference_mode()
    def vectors_of_items(self) -> Tensor:
        """As `item_vectors`, but the system's own, only to be read.

        Made once, and again after `train()`, `load_state_dict` or a move to another device: in evaluation mode weights
        are taken to stand still.
        """
        self.require_task("item")
        if self._item_vectors is not None:
            return self._item_vectors
        with self.evaluating():
            vectors = self.recommender.item_vectors().detach()[1:].float()
        self._item_vectors = None if self.training else vectors
        return vectors

    def train(self, mode: bool = True) -> Self:
        """As torch's; training forgets what was made with the weights before it."""
        if mode:
            self._forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As torch's, under `to()` and its like; forgets what lies where the weights were."""
        self._forget()
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; forgets what was made with the weights before."""
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    def _forget(self) -> None:
        self._item_vectors = None
        if self.texts is not None:
            self.texts.forget()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout; afterwards the system is in the mode it was in."""
        was_training = self.training
        if was_training:
            self.eval()
        try:
            yield
        finally:
            if was_training:
                self.train()


def as_read(histories: Histories, settings: FinetuneSettings) -> Histories:
    """What a system of these settings reads of both histories."""
    if not settings.data.comments:
        histories = histories.without_comments()
    if settings.task == "comment" and "items" not in model_spec(settings.name, settings.task).reads:
        histories = histories.without_items()
    return histories


def load_system(folder: str | Path, *, dataset: Dataset | None = None, text: TextTable | None = None) -> System:
    """Open a model folder with the dataset and text it was made from (found by the recorded paths where not given).

    One whose encoder was trained has text vectors of its own and takes no others.

    Raises ArtifactError where the folder is unfinished, damaged or changed, dataset or text are not those it was made
    from, or the model's code makes other weights by now; ConfigError where a model from outside the package is not
    found.
    """
    path = Path(folder)
    manifest = read_manifest(path, "model")
    config = manifest.config
    for name in (CONFIG, WEIGHTS):
        if file_digest(path / name) != manifest.files[name]:
            raise ArtifactError(f"{path / name} was changed after training, or is damaged; put it back, or train anew")
    settings = load_settings(finetune_settings(config["name"], config["task"]), file=path / CONFIG)
    dataset = dataset or Dataset.load(recorded(path, manifest, "dataset"))
    require_parent(manifest, path, "dataset", dataset.manifest, dataset.path)
    if settings.text.trained_encoder is not None:
        text = TextTable.load(path / TEXT)
    elif text is None and manifest.facts["text"] is not None:
        text = TextTable.load(recorded(path, manifest, "text"))
    if text is not None and settings.text.trained_encoder is None and text.encoding != manifest.parents.get("text"):
        raise ArtifactError(
            f"{path} was made from text vectors {manifest.parents.get('text')}, but {text.path} holds {text.encoding}; "
            "give the text folder it was made from"
        )
    system = System.new(dataset, text=text, settings=settings, is_loaded=True)
    with reading_file(path / WEIGHTS):
        weights = load_file(path / WEIGHTS)
    try:
        system.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} does not fit {settings.name} as it is now: {' '.join(str(error).split())}; go back to the code it "
            "was trained with, or train it again"
        ) from error
    system.eval()
    return system


def recorded(folder: Path, manifest: Manifest, name: str) -> Path:
    """Where the dataset or text that a folder was made from was then; raises ArtifactError where it is gone."""
    place = Path(manifest.facts[name])
    if not place.is_dir():
        raise ArtifactError(f"{folder} was made from the {name} at {place}, which is gone; give --{name}")
    return place
