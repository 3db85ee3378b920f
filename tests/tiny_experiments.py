"""An experiment's file for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny_chains import MODEL

SMALL = {"dim": 16, "num_layers": 1, "inner_dim": 32}
SEEDS = (0, 1)


def write_experiment(file: Path, first: dict[str, str], **sections: Any) -> Path:
    """Two systems, one that fails, two rates, two seeds, one data set."""
    values: dict[str, Any] = {
        "task": "item",
        "ours": ["lsvcr"],
        "data": {"first": first},
        "systems": {
            "lsvcr": {"finetune": {"model": MODEL}},
            "ids": {"model": "sasrec", "finetune": {"model": SMALL}, "grid": {"model.dropout": [0.1, 0.3]}},
            "broken": {"model": "sasrec", "finetune": {"train": {"devices": 2}}},
        },
        "finetune": {"train": {"max_epochs": 2, "batch_size": 16}},
        "search": {"trials": 3, "rungs": [0.4], "grid": {"train.learning_rate": [0.01, 0.0001]}},
        "seeds": list(SEEDS),
    }
    file.write_text(yaml.safe_dump(values | sections))
    return file
