"""The steps of chains, run where they are still to be run: prepare, encode, align or pretrain, finetune, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reeltalk.api import Dataset, TextTable, encode, evaluate_model, finetune, prepare, pretrain
from reeltalk.artifacts import MANIFEST, digest_of, is_finished, read_manifest
from reeltalk.data.dataset import Task
from reeltalk.data.sources import source_settings
from reeltalk.errors import ArtifactError, ConfigError, ReeltalkError
from reeltalk.experiments.chain import ChainSettings
from reeltalk.experiments.floors import FLOORS, floor_config, measure_floors
from reeltalk.memory import forget_peak
from reeltalk.training.settings import TrainerSettings
from reeltalk.training.start import ALIGNED, PRETRAINED, start_settings

DATA, TEXT, TEXT_ALIGNED = "data", "text", "text-aligned"
STARTS = (ALIGNED, TEXT_ALIGNED, PRETRAINED)  # what fine-tuning starts from


@dataclass(frozen=True)
class Step:
    """What a step is asked for: its name, its resolved settings, and the digests of what it reads."""

    name: str
    settings: dict[str, Any]
    parents: dict[str, str]

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))


class Made(NamedTuple):
    """A step's folder, and whether it was finished before."""

    step: str
    folder: Path
    was_there: bool


def run_chain(settings: ChainSettings, *, out: Path) -> Iterator[Made]:
    """Run a chain in the folder `out`, a folder a step; yields each step that is done.

    Finished steps are skipped, interrupted ones go on. Raises ArtifactError where a folder was made with other settings
    or from other parents, and what the steps raise.
    """
    runner, seen = Runner(lambda step: out / step.name), set()
    for task in settings.tasks:
        for made in runner.run(settings, task):
            if made.step not in seen:
                seen.add(made.step)
                yield made


def error_line(error: Exception) -> str:
    """An error in a line; one that is no user's to mend by its kind too."""
    return str(error) if isinstance(error, ReeltalkError) else f"{type(error).__name__}: {error}"


def stages_of(settings: ChainSettings, task: Task) -> list[str]:
    """The steps of one task's run, which others may share up to the model, in their order."""
    shared = [DATA]
    if settings.reads_text(task):
        shared.append(TEXT)
    if settings.reads_text(task) and settings.align is not None:
        shared += [ALIGNED, TEXT_ALIGNED]
    elif settings.is_pretrained(task):
        shared.append(PRETRAINED)
    return [*shared, task, f"{task}-report"]


class Runner:
    """Runs chains whose steps may be shared: one that is done is not done again, one that failed is not tried again."""

    def __init__(self, place: Callable[[Step], Path], *, with_floors: bool = True) -> None:
        """`place` names the folder of a step; `with_floors`: each report holds the floors too."""
        self._place = place
        self._with_floors = with_floors
        self._made: dict[Path, Made] = {}
        # not the errors themselves: their tracebacks would keep models in memory
        self._failed: dict[Path, tuple[type[ReeltalkError], str]] = {}

    def run(self, settings: ChainSettings, task: Task) -> Iterator[Made]:
        """Run what the report of one task needs, as `run_chain` does; yields each step that is done."""
        yield (made := self._dataset(settings))
        dataset = Dataset.load(made.folder)
        text, start = None, None
        if settings.reads_text(task):
            yield (made := self._text(settings, dataset))
            text = TextTable.load(made.folder)
            if settings.align is not None:
                yield (made := self._aligned(settings, dataset, text))
                start = made.folder
                yield (made := self._text_aligned(settings, dataset, text, start))
                text = TextTable.load(made.folder)
            elif settings.is_pretrained(task):
                yield (made := self._pretrained(settings, dataset, text))
                start = made.folder
                text = text if settings.model_reads_text(task) else None
        yield (made := self._model(settings, task, dataset, text, start))
        yield self._report(settings, task, dataset, text, made.folder)

    def run_floors(self, settings: ChainSettings, task: Task) -> Iterator[Made]:
        """Measure the floors of one task, once for all systems; yields each step that is done."""
        yield (made := self._dataset(settings))
        dataset = Dataset.load(made.folder)
        text = None
        if settings.reads_text(task):
            yield (made := self._text(settings, dataset))
            text = TextTable.load(made.folder)
        chosen, train = settings.evaluate, settings.tasks[task].train
        config = floor_config(task, chosen, train)
        parents = {"dataset": dataset.manifest.digest} | ({} if text is None else {"text": text.encoding})

        def make(out: Path) -> None:
            if not is_finished(out, kind=FLOORS, config=config, parents=parents):
                measure_floors(dataset, task, text=text, settings=chosen, train=train, out=out, parents=parents)

        yield self._once(Step(f"{task}-{FLOORS}", config, parents), make)

    def _dataset(self, settings: ChainSettings) -> Made:
        if settings.dataset is not None:
            read_manifest(settings.dataset, "dataset")
            return Made(DATA, settings.dataset, was_there=True)
        assert settings.source is not None
        of_source = source_settings(settings.source, settings.prepare.source).model_dump(mode="json")
        config = {"source_name": settings.source, **settings.prepare.model_dump(mode="json"), "source": of_source}
        if config["split"] is None:
            del config["split"]  # the log's clock chooses it
        raw = None if settings.raw is None else str(settings.raw.resolve())

        def make(out: Path) -> None:
            if not is_finished(out, kind="dataset", config=config, parents={}):
                prepare(str(settings.source), raw=settings.raw, out=out, settings=settings.prepare)
            made_from = read_manifest(out, "dataset").facts.get("raw")
            if made_from not in (None, raw):  # None: a folder from before this was told
                raise ArtifactError(f"{out} was made from {made_from}, not from {raw}; choose another folder")

        return self._once(Step(DATA, {**config, "raw": raw}, {}), make)

    def _text(self, settings: ChainSettings, dataset: Dataset) -> Made:
        if settings.text is not None:
            read_manifest(settings.text, "text")
            return Made(TEXT, settings.text, was_there=True)
        step = Step(TEXT, settings.encode.model_dump(mode="json"), {"dataset": dataset.manifest.digest})
        return self._once(step, lambda out: encode(dataset, out=out, settings=settings.encode))

    def _aligned(self, settings: ChainSettings, dataset: Dataset, text: TextTable) -> Made:
        from reeltalk.llm.align import align, parents_of

        chosen = settings.align
        assert chosen is not None
        step = Step(ALIGNED, chosen.model_dump(mode="json"), parents_of(dataset, text, chosen))
        run = partial(align, dataset, text=text, settings=chosen)
        return self._train(step, ALIGNED, chosen.train, lambda out: run(out=out))

    def _text_aligned(self, settings: ChainSettings, dataset: Dataset, text: TextTable, aligned: Path) -> Made:
        from reeltalk.llm.aligned import encode_aligned

        chosen = settings.encode_aligned
        parents = {"dataset": dataset.manifest.digest, "aligned": read_manifest(aligned, ALIGNED).digest}
        step = Step(TEXT_ALIGNED, {} if chosen is None else chosen.model_dump(mode="json"), parents)
        run = partial(encode_aligned, dataset, aligned, settings=chosen, text=text)
        return self._once(step, lambda out: run(out=out))

    def _pretrained(self, settings: ChainSettings, dataset: Dataset, text: TextTable) -> Made:
        chosen = settings.pretrain
        assert chosen is not None
        parents = {"dataset": dataset.manifest.digest, "text": text.encoding}
        step = Step(PRETRAINED, chosen.model_dump(mode="json"), parents)
        run = partial(pretrain, dataset, text=text, settings=chosen)
        return self._train(step, PRETRAINED, chosen.train, lambda out: run(out=out))

    def _model(
        self, settings: ChainSettings, task: Task, dataset: Dataset, text: TextTable | None, start: Path | None
    ) -> Made:
        chosen = settings.tasks[task]
        parents = {"dataset": dataset.manifest.digest} | ({} if text is None else {"text": text.encoding})
        if start is not None:
            kind = PRETRAINED if settings.is_pretrained(task) else ALIGNED
            parents[kind] = read_manifest(start, kind).digest
            chosen = start_settings(chosen, start, text)
        step = Step(task, chosen.model_dump(mode="json"), parents)
        run = partial(finetune, dataset, text=text, settings=chosen, start=start)
        return self._train(step, "model", chosen.train, lambda out: run(out=out))

    def _report(
        self, settings: ChainSettings, task: Task, dataset: Dataset, text: TextTable | None, model: Path
    ) -> Made:
        chosen = settings.evaluate
        config = chosen.model_dump(mode="json")
        parents = {"dataset": dataset.manifest.digest, "model": read_manifest(model, "model").digest}

        def make(out: Path) -> None:
            protocol = {"split": "test", "settings": config}
            if not is_finished(out, kind="report", config={"protocol": protocol}, parents=parents):
                evaluate_model(
                    model, out=out, dataset=dataset, text=text, settings=chosen, with_floors=self._with_floors
                )

        asked = config if self._with_floors else {**config, "floors": False}
        return self._once(Step(f"{task}-report", asked, parents), make)

    def _train(self, step: Step, kind: str, settings: TrainerSettings, run: Callable[[Path], object]) -> Made:
        """A step that refuses a finished folder."""

        def make(out: Path) -> None:
            if is_finished(out, kind=kind, config=step.settings, parents=step.parents):
                return
            if settings.devices > 1:
                # its processes are this command again, and would run the other steps beside one another
                raise ConfigError(
                    f"{step.name}: train.devices={settings.devices}, but a chain runs in one process; run this step by "
                    f"its own command with --out {out}, then the chain, which will find it done"
                )
            run(out)

        return self._once(step, make)

    def _once(self, step: Step, make: Callable[[Path], object]) -> Made:
        out = self._place(step)
        if out in self._failed:
            kind, line = self._failed[out]
            raise kind(line)
        if out not in self._made:
            made = Made(step.name, out, was_there=(out / MANIFEST).is_file())
            forget_peak()  # each step tells of its own
            try:
                make(out)
            except Exception as error:
                kind = type(error) if isinstance(error, ReeltalkError) else ReeltalkError
                self._failed[out] = kind, error_line(error)
                raise
            self._made[out] = made
        return self._made[out]
