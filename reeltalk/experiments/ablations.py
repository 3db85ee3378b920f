"""The studies of LSVCR's paper: which variants each compares, as overrides on a chain."""

from __future__ import annotations

from collections.abc import Sequence

from reeltalk.errors import ConfigError
from reeltalk.experiments.chain import ChainSettings
from reeltalk.experiments.study import Plan
from reeltalk.llm.settings import AlignSettings

NO_ALIGNMENT = "align.train.steps=0"  # the warm start alone: what alignment gains is then the LLM's


def ablations(base: ChainSettings) -> Plan:
    """Table 5: the whole system, and nine variants that each lack a part.

    Raises ConfigError where the chain has no alignment.
    """
    history_length = _aligned(base).data.history_length
    variants = {
        "full": [],
        "no-ssc": ["align.loss.ssc=0"],
        "no-vcc": ["align.loss.vcc=0"],
        "no-diversification": ["align.data.history_probability=0"],
        "no-drawn-positions": [f"align.data.num_positions={history_length}"],
        "no-alignment": [NO_ALIGNMENT],
        "no-regularisation": ["finetune.*.train.regularisation=0"],
        "frozen-encoder": ["align.encoder=frozen"],
        "no-lm": ["align.loss.lm=0"],
    }
    if "item" in base.tasks:  # without comments there is no comment task
        without = ["align.data.comments=false", "finetune.item.data.comments=false"]
        variants["no-comments"] = [*without, "finetune.comment=null"]
    return Plan(variants)


def alignment_steps(base: ChainSettings, steps: Sequence[int]) -> Plan:
    """Figure 3: quality against the number of alignment steps, the first of which the others are compared with.

    Raises ConfigError where the chain has no alignment, or steps are missing, negative or there twice.
    """
    _aligned(base)
    if not steps or min(steps) < 0 or len(set(steps)) < len(steps):
        raise ConfigError(f"steps {list(steps)}: give numbers of alignment steps, each once, as in --steps 0,1000,5000")
    by_name = {f"steps-{number}": number for number in steps}
    variants = {name: [f"align.train.steps={number}"] for name, number in by_name.items()}
    return Plan(variants, axis="alignment steps", points=by_name)


def unseen(base: ChainSettings) -> Plan:
    """Figure 4: what alignment gains for items and users that training never saw, ID embeddings off.

    Raises ConfigError where the chain has no alignment.
    """
    _aligned(base)
    no_ids = "finetune.*.model.use_item_ids=false"
    variants = {"full": [no_ids], "no-alignment": [no_ids, NO_ALIGNMENT]}
    return Plan(variants, segments=("items.unseen", "users.unseen", "users.cold-start"))


def _aligned(base: ChainSettings) -> AlignSettings:
    if base.align is None:
        raise ConfigError("the study is of alignment, but the chain has none; give it an align section")
    return base.align
