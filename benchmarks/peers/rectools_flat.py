"""RecTools' flat SASRec network on the generated logs: its tensors and network, a plain training loop, batches of 128.

Runs in RecTools' environment (`benchmarks/peers/install.sh rectools DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.rectools_flat --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER. RecTools has no
trainer for this network; the loop is the shortest there is.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rectools.fast_transformers import FlatSASRecNet, SequenceBatchDataset, build_sequences, compute_metrics
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import protocol, rows

BATCH, RANKED_BATCH = 128, 256
"""The defaults of RecTools' own model."""


def main() -> None:
    chosen = protocol.arguments(__doc__).parse_args()
    torch.manual_seed(chosen.seed)
    inputs, targets, num_items = sequences(chosen.logs.resolve())
    emit = partial(protocol.emit, system="RecTools flat", seed=chosen.seed, packages=["rectools", "torch", "numpy"])
    net = FlatSASRecNet(num_items, protocol.WIDTH, protocol.LAYERS, protocol.HEADS, protocol.HISTORY, dropout=0.2)
    trained = targets[:, :-2].any(dim=1)
    data = SequenceBatchDataset(inputs[trained, :-2], targets[trained, :-2])
    seconds = train(net, DataLoader(data, BATCH, shuffle=True), passes=chosen.passes, fraction=chosen.fraction)
    emit(protocol.PEAK_MEMORY, rows.peak_memory_mib(), "MiB")
    taken = protocol.pass_seconds(seconds, chosen.fraction)
    emit(protocol.PASS, taken, "s", note=protocol.fraction_note(chosen.fraction))
    net.eval()
    with torch.no_grad():
        if chosen.fraction == 1:
            quality = rank(net, inputs[:, 1:-1], targets[:, -2])
            emit(protocol.recall_after(chosen.passes), quality[f"HR@{protocol.TOP_K}"], "")
        start = time.perf_counter()
        rank(net, inputs[:, 2:], targets[:, -1])
        emit(protocol.FULL_RANKING, time.perf_counter() - start, "s")
        calls = (partial(top, net, history[None]) for history in inputs[:, 2:])
        emit(protocol.ONE_USER, protocol.median_ms(calls), "ms")


def sequences(logs: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Inputs and next items [users, history + 2], padded on the left, and the number of items.

    The last column's next item is the test target, the last but one's the validation target; the others train.
    """
    events = pd.read_csv(logs / f"{logs.name}.inter", sep="\t").astype("int64")
    columns = [torch.from_numpy(events[name].to_numpy()) for name in events.columns]
    inputs, targets, items, _ = build_sequences(*columns, max_len=protocol.HISTORY + 2)
    return inputs, targets, len(items)


def train(
    net: FlatSASRecNet, loader: DataLoader[dict[str, torch.Tensor]], *, passes: int, fraction: float
) -> list[float]:
    """Seconds of each pass with exact softmax over all items."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    batches = protocol.FirstBatches(loader, max(1, round(len(loader) * fraction)))
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        for batch in tqdm(batches, disable=not sys.stderr.isatty()):
            logits = net(batch).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, batch["y"].flatten() - 1, ignore_index=-1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def top(net: FlatSASRecNet, histories: torch.Tensor) -> torch.Tensor:
    """The top 10 items of each history."""
    scores: torch.Tensor = net.encode_last(histories) @ net.all_item_embeddings().T
    return scores.topk(protocol.TOP_K).indices + 1


def rank(net: FlatSASRecNet, histories: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """RecTools' metrics of every user's top 10."""
    parts = torch.cat(
        [top(net, histories[start : start + RANKED_BATCH]) for start in range(0, len(targets), RANKED_BATCH)]
    )
    found: dict[str, float] = compute_metrics(parts, targets)
    return found


if __name__ == "__main__":
    main()
