"""RePlay's SasRec on the generated logs, with its own defaults but for the sizes; batches of 256 histories.

Runs in RePlay's environment (`benchmarks/peers/install.sh replay DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.replay_sasrec --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

from benchmarks import protocol, rows
from benchmarks.peers.frames import Split, leave_one_out

BATCH = 256
"""RePlay has no default."""
TARGET = "ground_truth"


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
        protocol.emit, system="RePlay", seed=chosen.seed, packages=["replay-rec", "torch", "lightning", "numpy"]
    )
    num_items = int(pd.concat([split.train, split.valid, split.test])["item_id"].max())
    schema = item_schema(num_items)
    model = SasRec.from_params(
        schema,
        embedding_dim=protocol.WIDTH,
        num_heads=protocol.HEADS,
        num_blocks=protocol.LAYERS,
        max_sequence_length=protocol.HISTORY,
        hidden_dim=4 * protocol.WIDTH,
    )
    module, timer = LightningModule(model), PassTimer()
    fitting = trainer(max_epochs=chosen.passes, limit_train_batches=chosen.fraction, callbacks=[timer])
    with tempfile.TemporaryDirectory() as scratch:
        data = module_of(split, schema, num_items, Path(scratch))
        fitting.fit(module, datamodule=data)
        emit(protocol.PEAK_MEMORY, rows.peak_memory_mib(), "MiB")
        taken = protocol.pass_seconds(timer.seconds, chosen.fraction)
        emit(protocol.PASS, taken, "s", note=protocol.fraction_note(chosen.fraction))
        ranking = trainer(
            callbacks=[ComputeMetricsCallback(metrics=["ndcg", "recall"], ks=[protocol.TOP_K], verbose=False)]
        )
        if chosen.fraction == 1:
            quality = ranking.validate(module, datamodule=data, verbose=False)[0]
            emit(protocol.ndcg_after(chosen.passes), quality[f"ndcg@{protocol.TOP_K}"], "")
            emit(protocol.recall_after(chosen.passes), quality[f"recall@{protocol.TOP_K}"], "")
        start = time.perf_counter()
        ranking.test(module, datamodule=data, verbose=False)
        emit(protocol.FULL_RANKING, time.perf_counter() - start, "s")
        emit(protocol.ONE_USER, one_user_ms(model, data), "ms")


def trainer(**settings: Any) -> lightning.Trainer:
    """A trainer that writes nothing and never validates while it fits."""
    return lightning.Trainer(
        limit_val_batches=None if "max_epochs" not in settings else 0,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        accelerator="cpu",
        devices=1,
        **settings,
    )


def item_schema(num_items: int) -> TensorSchema:
    """Items are 0..N-1 and N is padding, as RePlay wants it."""
    return TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=protocol.WIDTH,
            padding_value=num_items,
            cardinality=num_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )


def module_of(split: Split, schema: TensorSchema, num_items: int, folder: Path) -> ParquetModule:
    """RePlay's data module over Parquet files of histories, one row a user, written into `folder`."""
    known = pd.concat([split.train, split.valid])
    paths = {name: folder / f"{name}.parquet" for name in ("train", "validate", "test")}
    histories(split.train).query("item_id.str.len() > 1").to_parquet(paths["train"])
    histories(split.train, split.valid).to_parquet(paths["validate"])
    histories(known, split.test).to_parquet(paths["test"])
    history = {"shape": protocol.HISTORY, "padding": num_items}
    ranked = {"item_id": history, TARGET: {"shape": 1, "padding": -1}}
    return ParquetModule(
        batch_size=BATCH,
        metadata={"train": {"item_id": {**history, "shape": protocol.HISTORY + 1}}, "validate": ranked, "test": ranked},
        transforms=make_default_sasrec_transforms(schema),
        train_path=str(paths["train"]),
        validate_path=str(paths["validate"]),
        test_path=str(paths["test"]),
    )


def histories(events: pd.DataFrame, targets: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a user: the items before the target in order, and the target."""
    lists = (events["item_id"] - 1).groupby(events.sort_values("timestamp")["user_id"]).agg(list).to_frame()
    if targets is not None:
        lists[TARGET] = (targets.set_index("user_id")["item_id"] - 1).map(lambda item: [item])
    return lists.reset_index(drop=True)


def one_user_ms(model: SasRec, data: ParquetModule) -> float:
    """Median time of scoring all items and taking the top 10 for one user, whose batch of one is prepared."""
    batch = next(iter(data.test_dataloader()))

    def top(place: int) -> None:
        one = slice(place, place + 1)
        answer = model({"item_id": batch["item_id"][one]}, padding_mask=batch["item_id_mask"][one])
        torch.topk(answer["logits"], protocol.TOP_K)

    model.eval()
    with torch.no_grad():
        return protocol.median_ms(partial(top, place) for place in range(len(batch["item_id"])))


if __name__ == "__main__":
    main()
