"""SASRec and GRU4Rec of reeltalk trained to the end, as RecBole's were; test Recall@10 and NDCG@10 in full ranking.

Both sides see the same events in the same split, have the same sizes, dropout, learning rate and loss, make about as
many steps a pass, stop by the same rule and rank all items, those that the user has seen too. GRU4Rec is trained once
more as RecBole's is, from prefixes and its first weights: what differs else is then seen alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import pairs, protocol
from benchmarks.finetune import passes_of
from benchmarks.rows import OURS, Measurement, emit, read_measurements
from reeltalk.data.dataset import Dataset
from reeltalk.data.histories import Histories, Windows, target_windows, training_windows
from reeltalk.data.ragged import ranges
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.models.gru4rec import GRU4Rec
from reeltalk.training.finetune import finetune, train_system
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System, load_system

AS_RECBOLE = " trained as RecBole's"
PACKAGES = ("torch", "lightning", "polars", "numpy")


def settings(name: str, dataset: Dataset, *, batch: int, patience: int, passes: int, seed: int) -> FinetuneSettings:
    """RecBole's settings for one of our models; a pass has about as many steps."""
    windows = training_windows(Histories.of(dataset), "item", length=protocol.HISTORY, has_start=False)
    steps = -(-int(windows.num_targets.sum()) // batch)
    train = {
        "batch_size": max(1, round(len(windows) / steps)),
        "learning_rate": pairs.LEARNING_RATE,
        "max_epochs": passes,
        "patience": patience,
        "monitor": f"ndcg@{protocol.TOP_K}",
        "monitor_protocol": "full",
        "exclude_seen": False,
        "max_validation_targets": 0,
        "seed": seed,
    }
    sections = {"model": pairs.PAIRS[name].ours, "data": {"history_length": protocol.HISTORY}, "train": train}
    return finetune_settings(name, "item").model_validate(sections)


class PrefixSystem(System):
    """Learns from prefixes of histories, each a window of its own whose last item is the target, as RecBole does."""

    def training_windows(self) -> Windows:
        """Every training target, in a window of its own."""
        whole = super().training_windows()
        rows = ranges(whole.first_target, whole.end + 1)
        return target_windows(self.feed.histories, "item", rows, length=protocol.HISTORY)


def gru4rec_as_recbole(dataset: Dataset, chosen: FinetuneSettings, out: Path, *, batch: int) -> pairs.Trained:
    """Train our GRU4Rec on batches of prefixes, with RecBole's first item embeddings, and test its best weights."""
    chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"batch_size": batch})})
    system = PrefixSystem.new(dataset, text=None, settings=chosen)
    assert isinstance(system.recommender, GRU4Rec)
    torch.manual_seed(chosen.train.seed)
    nn.init.xavier_normal_(system.recommender.item_embedding.weight)
    train_system(system, out, kind="model", text=None)
    return tested(load_system(out, dataset=dataset), out)


def trained(dataset: Dataset, chosen: FinetuneSettings, out: Path) -> pairs.Trained:
    """Train one model and test its best weights."""
    return tested(finetune(dataset, text=None, settings=chosen, out=out), out)


def tested(system: System, out: Path) -> pairs.Trained:
    """What the training in a folder came to."""
    chosen = system.settings
    validation = passes_of(out)["validation"].to_list()
    how = EvaluationSettings(ks=(protocol.TOP_K,), exclude_seen=False, bootstrap_samples=0)
    full = evaluate(system.dataset, {chosen.name: SystemRanker(system)}, settings=how)[chosen.name].metrics["full"]
    values = {metric: full[f"{metric}@{protocol.TOP_K}"].mean for metric in pairs.METRICS}
    return pairs.Trained(chosen.train.seed, validation.index(max(validation)) + 1, values)


def beside(ours: list[Measurement], theirs: Mapping[str, float]) -> Iterator[Measurement]:
    """Our values as shares of RecBole's, where those were measured."""
    for one in ours:
        value = theirs.get(one.name.removesuffix(AS_RECBOLE))
        if value is not None:
            note = f"{one.value:.4f} of {value:.4f}"
            yield Measurement(name=f"{one.name}, ours to RecBole's", value=one.value / value, unit="", note=note)


def main() -> None:
    parser = pairs.agreement_arguments(__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="prepared with split=leave_one_out")
    parser.add_argument("--measured", type=Path, help="what RecBole's script printed")
    chosen = parser.parse_args()
    dataset = Dataset.load(chosen.dataset)
    theirs = {}
    if chosen.measured is not None and chosen.measured.exists():
        found = read_measurements(chosen.measured.read_text())
        theirs = {one.name: one.value for one in found if one.system == protocol.RECBOLE}
    for name in chosen.models:
        ways = {"": trained}
        if name == "gru4rec":
            ways[AS_RECBOLE] = partial(gru4rec_as_recbole, batch=chosen.batch)
        for way, train in ways.items():
            trainings = []
            for seed in pairs.seeds_of(chosen):
                run = settings(
                    name, dataset, batch=chosen.batch, patience=chosen.patience, passes=chosen.passes, seed=seed
                )
                with tempfile.TemporaryDirectory() as scratch:
                    trainings.append(train(dataset, run, Path(scratch) / "model"))
            ours = pairs.measured(pairs.PAIRS[name].recbole + way, trainings, system=OURS, packages=PACKAGES)
            for one in [*ours, *beside(ours, theirs)]:
                emit(one)


if __name__ == "__main__":
    main()
