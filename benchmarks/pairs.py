"""What `baselines` and `agreement` share: the models that RecBole has too, and the names of the measurements.

Standard library only: RecBole's environment imports this file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import protocol
from benchmarks.rows import Measurement, versions

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A model of both sides: RecBole's name, and the settings that give it the same sizes and dropout on each."""

    recbole: str
    ours: Settings
    theirs: Settings


def _transformer(recbole: str, *, dropout: float) -> Pair:
    width, layers, heads, inner = protocol.WIDTH, protocol.LAYERS, protocol.HEADS, 4 * protocol.WIDTH
    return Pair(
        recbole,
        {"dim": width, "num_layers": layers, "num_heads": heads, "inner_dim": inner, "dropout": dropout},
        {
            "hidden_size": width,
            "n_layers": layers,
            "n_heads": heads,
            "inner_size": inner,
            "hidden_dropout_prob": dropout,
            "attn_dropout_prob": dropout,
        },
    )


# What the protocol does not fix is as RecBole has it. Caser sees a window of the history, which is all that RecBole
# gives it.
_WINDOW, _HORIZONTAL, _VERTICAL = 5, 8, 4
_HIDDEN = 2 * protocol.WIDTH
PAIRS: dict[str, Pair] = {
    "bert4rec": _transformer("BERT4Rec", dropout=0.2),
    "caser": Pair(
        "Caser",
        {
            "dim": protocol.WIDTH,
            "window": _WINDOW,
            "num_horizontal": _HORIZONTAL,
            "num_vertical": _VERTICAL,
            "dropout": 0.4,
        },
        {
            "embedding_size": protocol.WIDTH,
            "MAX_ITEM_LIST_LENGTH": _WINDOW,
            "nh": _HORIZONTAL,
            "nv": _VERTICAL,
            "dropout_prob": 0.4,
        },
    ),
    "fdsa": _transformer("FDSA", dropout=0.5),
    "gru4rec": Pair(
        "GRU4Rec",
        {"dim": protocol.WIDTH, "hidden_dim": _HIDDEN, "num_layers": 1, "dropout": 0.3},
        {"embedding_size": protocol.WIDTH, "hidden_size": _HIDDEN, "num_layers": 1, "dropout_prob": 0.3},
    ),
    "narm": Pair(
        "NARM",
        {"dim": protocol.WIDTH, "hidden_dim": _HIDDEN, "num_layers": 1, "input_dropout": 0.25, "dropout": 0.5},
        {"embedding_size": protocol.WIDTH, "hidden_size": _HIDDEN, "n_layers": 1, "dropout_probs": [0.25, 0.5]},
    ),
    "s3rec": _transformer("S3Rec", dropout=0.5),
    "sasrec": _transformer("SASRec", dropout=0.5),
}


def pass_of(model: str) -> str:
    """Name of the seconds that a model takes to predict as many items as there are training targets."""
    return f"baselines: one pass of {model}"


def memory_of(model: str) -> str:
    """Name of the peak memory of training a model."""
    return f"baselines: peak memory of {model}"


def training_targets(logs: Path) -> int:
    """Items of the logs that are learnt from and have an item before them: all but three a user.

    `logs`: the folder of an atomic file whose users have three events or more.
    """
    with (logs / f"{logs.name}.inter").open() as lines:
        next(lines)
        users = [line.partition("\t")[0] for line in lines]
    return len(users) - 3 * len(set(users))


AGREEING = ("sasrec", "gru4rec")
LEARNING_RATE = 0.001
METRICS = {"recall": f"Recall@{protocol.TOP_K}", "ndcg": f"NDCG@{protocol.TOP_K}"}


def value_of(metric: str, model: str) -> str:
    """Name of a model's test value of "recall" or "ndcg"."""
    return f"agreement: test {METRICS[metric]} of {model}"


def agreement_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of both scripts of `agreement`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=AGREEING, default=AGREEING)
    parser.add_argument("--batch", type=int, default=256, help="training targets a step; ours: about as many")
    parser.add_argument(
        "--patience", type=int, default=5, help="passes without a better validation value to stop after"
    )
    parser.add_argument("--passes", type=int, default=200, help="most passes over the training targets")
    parser.add_argument("--seed", type=int, default=0, help="of the first training")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model, each with the next seed")
    return parser


def seeds_of(chosen: argparse.Namespace) -> range:
    """The seeds that were asked for."""
    return range(chosen.seed, chosen.seed + chosen.seeds)


def is_over(validation: Sequence[float], *, patience: int, passes: int) -> bool:
    """Whether training ends after the passes that had these validation values."""
    if not validation:
        return False
    since_best = len(validation) - 1 - validation.index(max(validation))
    return len(validation) >= passes or since_best >= patience


@dataclass(frozen=True)
class Trained:
    """What one training came to: test values by metric, and the passes up to the best validation value."""

    seed: int
    passes: int
    values: Mapping[str, float]


def measured(model: str, trainings: Sequence[Trained], *, system: str, packages: Sequence[str]) -> list[Measurement]:
    """The mean of each test value over the seeds; its note has each seed's."""
    found = []
    for metric in METRICS:
        each = ", ".join(f"{one.values[metric]:.4f} (seed {one.seed}, {one.passes} passes)" for one in trainings)
        found.append(
            Measurement(
                name=value_of(metric, model),
                value=statistics.fmean(one.values[metric] for one in trainings),
                unit="",
                system=system,
                note=f"mean of {each}" if len(trainings) > 1 else each,
                versions=versions(packages),
            )
        )
    return found
