"""`reeltalk prompt`: the whole instruction against one put together from the dataset's tables, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
import torch
import transformers
from tiny_llms import save_llm
from toy import with_tables
from typer.testing import CliRunner, Result

from reeltalk.cli import app
from reeltalk.config import load_settings, read_yaml, save_settings
from reeltalk.data.dataset import Dataset, Task
from reeltalk.errors import ConfigError, DataError
from reeltalk.llm.prompts import TEMPLATES, Order
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.llm.show import ShownPrompt, show_prompt
from reeltalk.text.checkpoint import load_checkpoint, load_tokenizer

NO_COMMENTS, NO_ITEMS, BOTH = "u00", "u39", "u01"
POSITIONS = 640
SHORT = ("--set", "data.history_length=2")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM whose tokenizer decodes without loss, with room for two whole events of each history."""
    folder = save_llm(tmp_path_factory.mktemp("llm") / "qwen3", "qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


@dataclass(frozen=True)
class Asked:
    """The command on one dataset and one LLM."""

    dataset: Dataset
    llm: Path

    def __call__(self, user: str, *options: str | Path, with_llm: bool = True) -> Result:
        named = ["--llm", self.llm] if with_llm else []
        arguments = ["prompt", self.dataset.path, "--user", user, *named, *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def asked(toy_dataset: Dataset, llm: Path) -> Asked:
    return Asked(toy_dataset, llm)


def settings(llm: Path, *overrides: str) -> AlignSettings:
    return load_settings(AlignSettings, overrides=[f"llm.name={llm}", "llm.precision=float32", *overrides])


def facts(result: Result) -> dict[str, str]:
    line = next(line for line in result.stderr.splitlines() if "instruction_tokens" in line)
    return dict(part.split(": ") for part in line.split(", "))


def history(dataset: Dataset, user: str, *, length: int) -> tuple[list[str], list[str], str]:
    """A user's last item events and records as the template has them, and the title of the last record's item."""
    title = dict(zip(dataset.items["item_id"], dataset.items["title"], strict=True))
    comment = dict(zip(dataset.comments["comment_id"], dataset.comments["text"], strict=True))
    is_users = pl.col("user_id") == dataset.user_ids[user]
    items, records = [], []
    for event in dataset.item_events.filter(is_users).sort("time").tail(length).to_dicts():
        parts = [f"Title: {title[event['item_id']]}"] if title[event["item_id"]] else []
        hot = event["hot_comment_id"]
        items.append("; ".join(parts + ([f"Popular comment: {comment[hot]}"] if hot else [])) or "(no words)")
    watched = ""
    for record in dataset.comment_records.filter(is_users).sort("start").tail(length).to_dicts():
        seen: list[int] = []
        for each in dataset.comment_events.filter(pl.col("record_id") == record["record_id"])["comment_id"]:
            seen = [other for other in seen if other != each] + [each]
        watched = title[record["item_id"]]
        texts = " / ".join(comment[each] for each in seen[-3:])
        records.append("; ".join([f"Comments: {texts}"] + ([f"Title: {watched}"] if watched else [])))
    return items or ["(nothing yet)"], records or ["(nothing yet)"], watched


def instruction(task: str, order: str, items: list[str], records: list[str], watched: str) -> str:
    english = read_yaml(TEMPLATES)["en"]
    template = english["items_alone"] if order == "items_alone" else english["tasks"][task][order]
    slots = {"items": "\n".join(items), "records": "\n".join(records), "watched": watched or "(no words)"}
    return str(template.format(**slots, target="")).rstrip()


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("user", [BOTH, NO_ITEMS])
def test_the_instruction_tells_the_histories_up_to_now(task: str, order: str, user: str, asked: Asked) -> None:
    shown = asked(user, "--task", task, "--order", order, *SHORT)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == instruction(task, order, *history(asked.dataset, user, length=2)) + "\n"
    told = facts(shown)
    assert told | {"instruction_tokens": ""} == {
        "task": task,
        "order": order,
        "instruction_tokens": "",
        "max_tokens": str(POSITIONS),
        "dropped_events": "0",
        "shortened_texts": "0",
    }
    assert 0 < int(told["instruction_tokens"]) < POSITIONS


def test_a_user_without_comments_has_an_item_to_watch_only_where_one_is_given(asked: Asked) -> None:
    items, records, _ = history(asked.dataset, NO_COMMENTS, length=2)
    how = ("--task", "comment", *SHORT)
    shown = asked(NO_COMMENTS, *how, "--item", "v05")
    title = asked.dataset.items["title"][asked.dataset.item_ids["v05"] - 1]
    assert shown.stdout == instruction("comment", "items_first", items, records, title) + "\n"
    refused = asked(NO_COMMENTS, *how)
    assert refused.exit_code == 2
    assert "user 'u00' has no comment record" in refused.stderr


def test_a_user_without_events_has_a_prompt(toy_dataset: Dataset, llm: Path) -> None:
    last = toy_dataset.user_ids[NO_ITEMS]
    assert last == toy_dataset.num_users  # so that no other record's id changes
    records = toy_dataset.comment_records.filter(pl.col("user_id") != last)
    comments = toy_dataset.comment_events.filter(pl.col("record_id") < len(records))
    dataset = with_tables(toy_dataset, comment_records=records, comment_events=comments)
    shown = show_prompt(dataset, NO_ITEMS, settings=settings(llm))
    assert shown.text == instruction("item", "items_first", ["(nothing yet)"], ["(nothing yet)"], "")
    with pytest.raises(DataError, match="has no comment record"):
        show_prompt(dataset, NO_ITEMS, task="comment", settings=settings(llm))


def test_a_small_budget_drops_the_oldest_events_and_says_how_many(toy_dataset: Dataset, llm: Path) -> None:
    def shown(max_tokens: int) -> ShownPrompt:
        how = settings(llm, f"prompt.max_tokens={max_tokens}", "prompt.max_text_tokens=16")
        return show_prompt(toy_dataset, BOTH, settings=how)

    items, records, _ = history(toy_dataset, BOTH, length=20)
    roomy, tight = shown(300), shown(200)
    assert roomy.max_tokens == 300 and tight.max_tokens == 200
    assert tight.prompt.dropped_events > roomy.prompt.dropped_events > 0
    for found in (roomy, tight):
        assert found.prompt.instruction_length == len(found.prompt.ids) <= found.max_tokens - 16
        kept = sum(line.startswith(("Title: ", "Popular comment: ", "Comments: ")) for line in found.text.splitlines())
        assert kept == len(items) + len(records) - found.prompt.dropped_events


def test_without_comments_titles_alone_are_told(toy_dataset: Dataset, llm: Path) -> None:
    how = settings(llm, "data.comments=false", "data.history_length=2")
    items, _, _ = history(toy_dataset, BOTH, length=2)
    titles = [line.split("; Popular")[0] for line in items]
    shown = show_prompt(toy_dataset, BOTH, settings=how)
    assert shown.text == instruction("item", "items_alone", titles, [], "")
    with pytest.raises(ConfigError, match=r"data\.comments is off"):
        show_prompt(toy_dataset, BOTH, task="comment", settings=how)
    shown = show_prompt(toy_dataset, BOTH, settings=settings(llm, "data.hot_comments=none", "data.history_length=2"))
    assert "Popular" not in shown.text and "Comments: " in shown.text


# the LLM --------------------------------------------------------------------------------------------------------------


def test_generate_prints_what_the_llm_writes(asked: Asked) -> None:
    how = (*SHORT, "--set", "llm.precision=float32")
    shown, again = asked(BOTH, *how, "--generate"), asked(BOTH, *how, "--generate")
    assert shown.exit_code == 0, shown.output
    chosen = settings(asked.llm, "data.history_length=2")
    prompt = show_prompt(asked.dataset, BOTH, settings=chosen)
    written = LLMRecommender(chosen.llm, dim=4).generate(prompt.prompt, max_new_tokens=64)
    assert shown.stdout == again.stdout == f"{prompt.text}\n{written}\n"
    assert written


def test_an_aligned_llm_brings_its_settings_and_its_lora(asked: Asked, tmp_path: Path) -> None:
    chosen = settings(asked.llm, "data.history_length=1", "prompt.language=zh", "prompt.max_text_tokens=24")
    fresh = LLMRecommender(chosen.llm, dim=chosen.model.dim)
    prompt = show_prompt(asked.dataset, BOTH, settings=chosen)
    before = fresh.generate(prompt.prompt, max_new_tokens=24)
    torch.manual_seed(0)
    for name, parameter in fresh.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    fresh.save(tmp_path / "llm")
    save_settings(chosen, tmp_path / "config.yaml")

    shown = asked(BOTH, "--aligned", tmp_path, "--generate", with_llm=False)
    assert shown.exit_code == 0, shown.output
    after = fresh.generate(prompt.prompt, max_new_tokens=24)
    assert shown.stdout == f"{prompt.text}\n{after}\n"
    assert "接下来应该给这位观众看哪个视频" in prompt.text
    assert after != before


def test_weights_are_read_only_to_generate(asked: Asked, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(asked.llm, bare)
    (bare / "model.safetensors").unlink()
    how = ("--llm", bare, "--set", "data.history_length=1")
    assert asked(BOTH, *how, with_llm=False).exit_code == 0
    refused = asked(BOTH, *how, "--generate", with_llm=False)
    assert refused.exit_code == 2
    assert "cannot be loaded" in refused.stderr


def test_positions_without_weights_are_those_of_the_model(llm: Path, tmp_path: Path) -> None:
    """Also where a model counts them from its padding id on."""
    shutil.copytree(llm, tmp_path / "roberta")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.AutoConfig.for_model("roberta", **sizes, max_position_embeddings=100, is_decoder=True)
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path / "roberta")
    for folder, expected in ((tmp_path / "roberta", 98), (llm, POSITIONS)):
        loaded = load_checkpoint(
            str(folder), as_causal_lm=True, precision="float32", device="cpu", trust_remote_code=False
        )
        assert load_tokenizer(str(folder), trust_remote_code=False)[1] == loaded.max_tokens == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--user", "nobody"], "the first is 'nobody'; keys look like 'u00'"),
        (["--task", "comment", "--item", "v99"], "the first is 'v99'; keys look like 'v0"),
        (["--item", "v01"], "item 'v01': only the comment task"),
        (["--task", "video"], "--task video is unknown"),
        (["--order", "items"], "--order items is unknown; choices: items_first, records_first"),
        (["--set", "prompt.max_token=9"], "did you mean 'max_tokens'?"),
        (["--set", "prompt.max_tokens=90"], "too short"),
        (["--llm", "./nowhere"], "'./nowhere' is no folder"),
        (["--aligned", "nowhere"], "leave out --llm, --config and --set"),
    ],
)
def test_mistakes_are_told(options: list[str], message: str, asked: Asked) -> None:
    result = asked(BOTH, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_an_aligned_folder_that_is_none(asked: Asked, tmp_path: Path) -> None:
    result = asked(BOTH, "--aligned", tmp_path, with_llm=False)
    assert result.exit_code == 2
    assert "config.yaml does not exist; give --aligned a folder that `reeltalk align` wrote" in result.stderr
