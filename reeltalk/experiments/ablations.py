"""The studies of LSVCR's paper: which variants each compares, as overrides on a chain."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from reeltalk.errors import ConfigError
from reeltalk.experiments.chain import ChainSettings
from reeltalk.experiments.study import Plan
from reeltalk.llm.settings import AlignSettings

_NO_NAME = re.compile(r"[^\w.+-]+")  # what a variant's name has not
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


def comments(base: ChainSettings) -> Plan:
    """What comments are worth in alignment: an item's hot ones, any, or none; none added; one a record, not three.

    Raises ConfigError where the chain has no alignment.
    """
    _aligned(base)
    one = ["align.data.record_comments=1", "finetune.*.data.record_comments=1"]
    return Plan(
        {
            "hot": [],
            "random": ["align.data.hot_comments=random"],
            "none": ["align.data.hot_comments=none"],
            "none-added": ["align.data.history_probability=0"],
            "one-a-record": one,
        }
    )


def backbones(base: ChainSettings, llms: Sequence[str]) -> Plan:
    """The same chain with other LLMs, each encoding the texts it is aligned on; others are compared with the first.

    Raises ConfigError where the chain has no alignment, names a finished text folder, which is one LLM's, or two LLMs
    would have one name.
    """
    _aligned(base)
    if base.text is not None:
        raise ConfigError(f"{base.text} holds one LLM's vectors; leave text out, so that each LLM encodes its own")
    if not llms or len(set(llms)) < len(llms):
        raise ConfigError(f"LLMs {list(llms)}: give some, each once, as in --llms minilm,Qwen/Qwen3-0.6B")
    overrides = {
        llm: [f"{section}={json.dumps(llm)}" for section in ("encode.encoder", "align.llm.name")] for llm in llms
    }
    variants = {_NO_NAME.sub("-", llm).strip("-."): chosen for llm, chosen in overrides.items()}
    if len(variants) < len(llms):
        raise ConfigError(f"LLMs {list(llms)}: two of them have one name, {', '.join(variants)}; rename a folder")
    return Plan(variants)


def _aligned(base: ChainSettings) -> AlignSettings:
    if base.align is None:
        raise ConfigError("the study is of alignment, but the chain has none; give it an align section")
    return base.align
