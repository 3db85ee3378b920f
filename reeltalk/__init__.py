"""reeltalk: recommends the video and the talk under it."""

import os

__version__ = "0.1.0"

# GNU OpenMP's threads wait spinning, for milliseconds, on a core that the thread they wait for may need: where all
# cores are busy a request took up to fifty times as long. Read once, when torch is loaded. See docs/decisions.md.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
