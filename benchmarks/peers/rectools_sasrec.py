"""RecTools' SASRecModel on the generated logs, with its own defaults but for the sizes; batches of 128 histories.

Runs in RecTools' environment (`benchmarks/peers/install.sh rectools DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.rectools_sasrec --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER.
Its feed-forward layers are as wide as the model (64), where the others' are four times as wide.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import pandas as pd
import pytorch_lightning as lightning
from rectools.dataset import Dataset
from rectools.metrics import NDCG, Recall, calc_metrics
from rectools.models import SASRecModel

from benchmarks import protocol, rows
from benchmarks.peers.frames import Split, leave_one_out


class PassTimer(lightning.Callback):
    """Seconds of each pass, training alone."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    chosen = protocol.arguments(__doc__).parse_args()
    lightning.seed_everything(chosen.seed, verbose=False)
    split = leave_one_out(chosen.logs.resolve())
    emit = partial(
        protocol.emit, system="RecTools", seed=chosen.seed, packages=["rectools", "torch", "pytorch-lightning", "numpy"]
    )
    model = SASRecModel(
        n_factors=protocol.WIDTH,
        n_blocks=protocol.LAYERS,
        n_heads=protocol.HEADS,
        session_max_len=protocol.HISTORY,
        loss="softmax",
        get_trainer_func=trainer,
        get_trainer_func_kwargs={"passes": chosen.passes, "fraction": chosen.fraction},
    )
    model.fit(Dataset.construct(as_interactions(split.train)))
    seconds = next(callback.seconds for callback in model.fit_trainer.callbacks if isinstance(callback, PassTimer))
    emit(protocol.PEAK_MEMORY, rows.peak_memory_mib(), "MiB")
    emit(
        protocol.PASS,
        protocol.pass_seconds(seconds, chosen.fraction),
        "s",
        note=protocol.fraction_note(chosen.fraction),
    )
    if chosen.fraction == 1:
        quality = rank(model, split.train, split.valid)
        emit(protocol.ndcg_after(chosen.passes), quality["ndcg"], "")
        emit(protocol.recall_after(chosen.passes), quality["recall"], "")
    known = pd.concat([split.train, split.valid])
    start = time.perf_counter()
    rank(model, known, split.test)
    emit(protocol.FULL_RANKING, time.perf_counter() - start, "s")
    emit(protocol.ONE_USER, one_user_ms(model, split, known), "ms")


def trainer(passes: int, fraction: float) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=passes,
        min_epochs=passes,
        limit_train_batches=fraction,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        accelerator="cpu",
        devices=1,
        callbacks=[PassTimer()],
    )


def as_interactions(events: pd.DataFrame) -> pd.DataFrame:
    """RecTools' columns; its clock is a date, so the place in the log becomes minutes."""
    when = pd.Timestamp("2000-01-01") + pd.to_timedelta(events["timestamp"], unit="min")
    return events[["user_id", "item_id"]].assign(weight=1.0, datetime=when)


def rank(model: SASRecModel, known: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """The metrics of the top 10 of every user with a target."""
    dataset = Dataset.construct(as_interactions(known))
    users = targets["user_id"].to_numpy()
    top = model.recommend(users=users, dataset=dataset, k=protocol.TOP_K, filter_viewed=False)
    metrics = {"ndcg": NDCG(k=protocol.TOP_K, divide_by_achievable=True), "recall": Recall(k=protocol.TOP_K)}
    found: dict[str, float] = calc_metrics(metrics, top, interactions=as_interactions(targets))
    return found


def one_user_ms(model: SASRecModel, split: Split, known: pd.DataFrame) -> float:
    """Median time of recommending for one user, whose history is already a RecTools dataset."""
    users = split.test["user_id"].to_numpy()[: protocol.WARM_UP_CALLS + protocol.TIMED_CALLS]
    histories = known[known["user_id"].isin(users)].groupby("user_id")
    datasets = {user: Dataset.construct(as_interactions(history)) for user, history in histories}
    return protocol.median_ms(
        partial(model.recommend, users=[user], dataset=dataset, k=protocol.TOP_K, filter_viewed=False)
        for user, dataset in datasets.items()
    )


if __name__ == "__main__":
    main()
