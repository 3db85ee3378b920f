"""Prompts: what the LLM reads, whatever its tokenizer, and what goes when there is no room."""

from __future__ import annotations

from itertools import product
from string import Formatter
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as check
from hypothesis import strategies as st
from tiny_llms import KINDS, tokenizer

from reeltalk.config import read_yaml
from reeltalk.data.dataset import Task
from reeltalk.data.instances import Entry
from reeltalk.errors import ConfigError
from reeltalk.llm.prompts import (
    TEMPLATES,
    Language,
    Order,
    Prompt,
    PromptSettings,
    PromptWriter,
    TokenBatch,
    _Run,
    _shortened_evenly,
)

WHICH = list(product(get_args(Task), get_args(Order)))
ITEMS = [Entry(1, "a cat on a roof", ["so brave"]), Entry(3, "bread at home", [])]
RECORDS = [Entry(2, "a cat on a roof", ["how high?", "it is\n a  cat"]), Entry(4, "", ["first"])]


def writer(kind: str = "qwen3", *, max_tokens: int = 320, **changes: Any) -> PromptWriter:
    settings = PromptSettings.model_validate({"max_text_tokens": 8, **changes})
    return PromptWriter(tokenizer(kind), settings, max_tokens=max_tokens)


def instruction(prompt: Prompt, kind: str) -> str:
    return str(tokenizer(kind).decode(prompt.ids[: prompt.instruction_length]))


def test_what_the_llm_reads() -> None:
    prompt = writer(max_text_tokens=32).write(
        ITEMS, RECORDS, task="comment", order="items_first", watched="cats \n asleep", target="how sweet"
    )
    assert instruction(prompt, "qwen3").splitlines() == [
        "These are videos that somebody liked, oldest first:",
        "Title: a cat on a roof; Popular comment: so brave",
        "Title: bread at home",
        "And these are comments that caught the same person's eye, each with the video it stands under, oldest first:",
        "Comments: how high? / it is a cat; Title: a cat on a roof",
        "Comments: first",
        "Right now this person has a video open, titled: cats asleep",
        "Which comment under it will this person react to? Its words:",
    ]
    assert tokenizer("qwen3").decode(prompt.ids[prompt.instruction_length :]) == " how sweet<|im_end|>"
    assert (prompt.dropped_events, prompt.shortened_texts) == (0, 0)


def test_a_target_that_was_cut_does_not_end() -> None:
    prompt = writer().write(ITEMS, RECORDS, task="item", order="items_first", target="bread " * 9)
    answer = prompt.ids[prompt.instruction_length :]
    assert len(answer) == 8 and "<|im_end|>" not in tokenizer("qwen3").decode(answer)


def test_chinese_and_what_is_not_there() -> None:
    chinese = read_yaml(TEMPLATES)["zh"]
    prompt = writer(language="zh", max_text_tokens=32).write(
        [Entry(1, " ", [""])], [], task="comment", order="records_first", watched="猫"
    )
    words = chinese["tasks"]["comment"]["records_first"].format(
        records=chinese["no_entries"], items=chinese["no_text"], watched="猫", target=""
    )
    assert instruction(prompt, "qwen3") == words
    assert len(prompt.ids) == prompt.instruction_length


@pytest.mark.parametrize("language", get_args(Language))
def test_every_template_has_its_slots_and_ends_with_the_target(language: str) -> None:
    template = read_yaml(TEMPLATES)[language]
    for task, order in WHICH:
        slots = [slot for _, slot, _, _ in Formatter().parse(template["tasks"][task][order])]
        histories = ["items", "records"] if order == "items_first" else ["records", "items"]
        assert slots == [*histories, *(["watched"] if task == "comment" else []), "target"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_around_a_text_are_those_of_the_tokenizer(kind: str) -> None:
    prompt = writer(kind).write(ITEMS, RECORDS, task="item", order="items_first", target="bread")
    words, whole = tokenizer(kind), tokenizer(kind)("bread")["input_ids"]
    opening = {"qwen3": [], "llama": ["<|begin_of_text|>"], "glm4": ["[gMASK]", "<sop>"], "bert": ["[CLS]"]}[kind]
    assert prompt.ids[: len(opening)].tolist() == words.convert_tokens_to_ids(opening) == whole[: len(opening)]
    end = {"qwen3": "<|im_end|>", "llama": "<|end_of_text|>", "glm4": "<|endoftext|>", "bert": "[SEP]"}[kind]
    assert prompt.ids[-1] == words.convert_tokens_to_ids(end)
    special = words.all_special_ids
    assert not set(prompt.ids[len(opening) : -1]) & set(special)


def test_a_text_cannot_write_special_tokens() -> None:
    for kind, nasty in [("qwen3", "<|im_end|>"), ("llama", "<|begin_of_text|>"), ("bert", "[SEP]")]:
        prompt = writer(kind, max_text_tokens=16).write(
            [Entry(1, nasty, [nasty])], [], task="comment", order="items_first", watched=nasty
        )
        assert tokenizer(kind).convert_tokens_to_ids(nasty) not in prompt.ids[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_very_long_texts_and_emoji(kind: str) -> None:
    long, emoji = "so good " * 12_500, "🙂" * 100_000
    prompt = writer(kind).write(
        [Entry(1, long, [emoji])],
        [Entry(2, emoji, [long, long])],
        task="comment",
        order="items_first",
        watched=long,
        target=emoji,
    )
    assert prompt.shortened_texts >= 5 and prompt.dropped_events == 0
    assert len(prompt.ids) <= 320


def test_a_text_is_tokenised_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer("qwen3"), name)

        def __call__(self, text: str, **how: Any) -> Any:
            self.texts.append(text)
            return tokenizer("qwen3")(text, **how)

    counting = Counting()
    written = PromptWriter(counting, PromptSettings(max_text_tokens=8), max_tokens=320)
    first = written.write(ITEMS, RECORDS, task="item", order="items_first", target="bread")
    assert len(set(counting.texts)) == len(counting.texts)
    so_far = len(counting.texts)
    again = written.write(ITEMS, RECORDS, task="item", order="items_first", target="bread")
    assert len(counting.texts) == so_far
    np.testing.assert_array_equal(first.ids, again.ids)


def test_the_target_does_not_change_what_the_instruction_holds() -> None:
    items = [Entry(time, f"video number {time}", ["so good"]) for time in range(60)]
    lengths = set()
    for target in ("", "a", "so good " * 50):
        prompt = writer().write(items, [], task="item", order="items_first", target=target)
        lengths.add((prompt.instruction_length, prompt.dropped_events))
        assert len(prompt.ids) <= 320
    assert len(lengths) == 1


def test_a_log_without_comments_spends_no_tokens_on_them() -> None:
    items = [Entry(time, f"video number {time}", []) for time in range(60)]
    alone = writer().write(items, None, task="item", order="items_first")
    beside = writer().write(items, [], task="item", order="items_first")
    assert "comment" not in instruction(alone, "qwen3")
    assert "comments that caught" in instruction(beside, "qwen3")
    assert alone.dropped_events < beside.dropped_events


def test_too_little_room_for_the_instruction_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"the model takes 40\) are too short: the instruction needs \d+"):
        writer(max_tokens=40)


TEXT = st.one_of(
    st.text(max_size=30), st.sampled_from(["", " ", "cat " * 40, "🙂🙂", "[SEP]", "<|im_end|>", "{items}"])
)
TIMES = st.lists(st.integers(0, 50), max_size=12).map(sorted)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Entry], list[Entry]]:
    """Two histories in order of time; the number at the head of a title says which entry it is."""
    items = [Entry(t, f"i{n} {draw(TEXT)}", [draw(TEXT)]) for n, t in enumerate(draw(TIMES))]
    records = [Entry(t, f"r{n} {draw(TEXT)}", draw(st.lists(TEXT, max_size=5))) for n, t in enumerate(draw(TIMES))]
    return items, records


@check(max_examples=60)
@given(
    user=histories(),
    which=st.sampled_from(WHICH),
    kind=st.sampled_from(KINDS),
    language=st.sampled_from(get_args(Language)),
    room=st.integers(0, 200),
    watched=TEXT,
    target=TEXT,
)
def test_any_prompt_fits_and_keeps_the_task_and_the_latest(
    user: tuple[list[Entry], list[Entry]],
    which: tuple[Task, Order],
    kind: str,
    language: Language,
    room: int,
    watched: str,
    target: str,
) -> None:
    items, records = user
    task, order = which
    roomy = writer(kind, language=language, max_tokens=2_000, max_text_tokens=400)
    least = max(roomy._bare_length(*some) for some in WHICH)
    budget = least + room + 8 + 1
    tight = writer(kind, language=language, max_tokens=budget)
    prompt = tight.write(items, records, task=task, order=order, watched=watched, target=target)
    assert len(prompt.ids) <= budget

    # whatever stands before it, the last words of the task are the last tokens of the instruction
    text = read_yaml(TEMPLATES)[language]["tasks"][task][order]
    ending = roomy._ids(list(Formatter().parse(text))[-1][0].rstrip())
    assert prompt.ids[prompt.instruction_length - len(ending) : prompt.instruction_length].tolist() == ending.tolist()

    # the entries kept are the latest over both histories, and the last of each in any case
    events = sorted(
        (n == len(history) - 1, entry.time, n, slot)
        for slot, history in enumerate(user)
        for n, entry in enumerate(history)
    )

    def write(by: PromptWriter, dropped: int) -> Prompt:
        kept = [
            [e for n, e in enumerate(h) if (n, slot) in {k[2:] for k in events[dropped:]}]
            for slot, h in enumerate(user)
        ]
        return by.write(kept[0], kept[1], task=task, order=order, watched=watched, target=target)

    assert len(events) - prompt.dropped_events >= (len(items) > 0) + (len(records) > 0)
    np.testing.assert_array_equal(write(tight, prompt.dropped_events).ids, prompt.ids)
    if prompt.dropped_events:  # with one more it would not have fitted
        unbound = writer(kind, language=language, max_tokens=4_000)
        assert write(unbound, prompt.dropped_events - 1).instruction_length > budget - 9


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), words=st.integers(0, 9), room=st.integers(0, 120))
def test_texts_are_shortened_to_one_length(lengths: list[int], words: int, room: int) -> None:
    runs = [_Run(np.arange(length), is_text=True) for length in lengths]
    short = _shortened_evenly([_Run(np.arange(words)), *runs], room=words + room)
    assert len(short[0].ids) == words and not short[0].is_shortened
    now = [len(run.ids) for run in short[1:]]
    assert sum(now) == min(room, sum(lengths))
    cut = [new for new, old in zip(now, lengths, strict=True) if new < old]
    assert [run.is_shortened for run in short[1:]] == [new < old for new, old in zip(now, lengths, strict=True)]
    assert not cut or max(now) <= min(cut) + 1
    assert all((run.ids == np.arange(len(run.ids))).all() for run in short)


def test_a_batch_is_padded_to_few_lengths() -> None:
    prompts = [writer().write(ITEMS[:n], [], task="item", order="items_first", target="bread" * n) for n in range(3)]
    batch = TokenBatch.of(prompts, max_tokens=320)
    assert batch.ids_BT.shape[1] % 16 == 0 and batch.ids_BT.shape == batch.mask_BT.shape
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(batch.ids_BT[row][batch.mask_BT[row]].numpy(), prompt.ids)
        assert int(batch.last_B[row]) == prompt.instruction_length - 1
        assert int(batch.is_target_BT[row].sum()) == len(prompt.ids) - prompt.instruction_length
    longest = max(len(prompt.ids) for prompt in prompts)
    assert TokenBatch.of(prompts, max_tokens=longest + 1).ids_BT.shape[1] == min(batch.ids_BT.shape[1], longest + 1)
