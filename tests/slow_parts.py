"""The parts of transformers over one user's plain lists, one vector at a time, in float64.

They take a model's weights by name and share none of its code: no packing, no masks, no batches.
"""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from random_logs import Log, User

from reeltalk.data.dataset import Task

Vector = NDArray[np.float64]
Weights = dict[str, Vector]


def linear(weights: Weights, name: str, x: Vector) -> Vector:
    bias = weights.get(f"{name}.bias", np.zeros(1))
    return np.array([float(row @ x) for row in weights[f"{name}.weight"]]) + bias


def gelu(x: Vector) -> Vector:
    return np.array([v * (1 + erf(v / sqrt(2))) / 2 for v in x])


def norm(weights: Weights, name: str, x: Vector) -> Vector:
    centred = x - x.mean()
    scaled: Vector = centred / np.sqrt((centred**2).mean() + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(scores: list[float]) -> list[float]:
    powers = [np.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def mixture(shares: list[float], vectors: list[Vector]) -> Vector:
    mixed: Vector = np.sum([share * vector for share, vector in zip(shares, vectors, strict=True)], axis=0)
    return mixed


def multi_head_attention(weights: Weights, name: str, query: Vector, keys: list[Vector], num_heads: int) -> Vector:
    q = linear(weights, f"{name}.query", query)
    key_values = [linear(weights, f"{name}.key_value", key) for key in keys]
    dim, head = len(q), len(q) // num_heads
    parts = []
    for h in range(0, dim, head):
        scores = [float(q[h : h + head] @ kv[h : h + head]) / sqrt(head) for kv in key_values]
        parts.append(mixture(softmax(scores), [kv[dim + h : dim + h + head] for kv in key_values]))
    return linear(weights, f"{name}.out", np.concatenate(parts))


def transformer_layer(weights: Weights, name: str, query: Vector, keys: list[Vector], num_heads: int) -> Vector:
    mixed = multi_head_attention(weights, f"{name}.attention", query, keys, num_heads)
    x = norm(weights, f"{name}.attention_norm", query + mixed)
    return norm(
        weights, f"{name}.inner_norm", x + linear(weights, f"{name}.outer", gelu(linear(weights, f"{name}.inner", x)))
    )


def causal_encoder(weights: Weights, name: str, entries: list[Vector], num_heads: int) -> list[Vector]:
    for layer in range(2):
        entries = [
            transformer_layer(weights, f"{name}.layers.{layer}", entries[i], entries[: i + 1], num_heads)
            for i in range(len(entries))
        ]
    return entries


def unit(x: Vector) -> Vector:
    return x / (sqrt(float(x @ x)) or 1.0)


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def slow_history_encoder(weights: Weights, name: str, entries: list[Vector], num_heads: int) -> Vector:
    """What `HistoryEncoder` gives at the last of the entries, the first of which stands on position 0."""
    placed = [
        norm(weights, f"{name}.input_norm", entry + weights[f"{name}.positions.weight"][position])
        for position, entry in enumerate(entries)
    ]
    return causal_encoder(weights, f"{name}.encoder", placed, num_heads)[-1]


def each_target(log: Log, task: Task) -> list[tuple[User, int]]:
    """(user, place of the target in the history that the task predicts), in the order of the histories' rows."""
    return [(user, place) for user in log.users for place in range(len(user.items if task == "item" else user.records))]
