"""Settings: what a file and overrides make of a model, and what a user is told about mistakes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reeltalk.config import list_settings, load_settings, save_settings
from reeltalk.errors import ConfigError


class Train(BaseModel):
    lr: float = 0.001
    epochs: int = Field(3, gt=0)
    loss: Literal["softmax", "sampled"] = "softmax"
    shuffle: bool = True


class Window(BaseModel):
    first: int = 0
    last: int = 10

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        if self.first > self.last:
            raise ValueError(f"first={self.first} lies after last={self.last}")
        return self


class Settings(BaseModel):
    train: Train = Train(lr=0.5, epochs=7)
    window: Window = Window()
    name: str | None = None
    start: datetime | None = None
    sizes: list[int] = []
    source: dict[str, Any] = {}


class Required(BaseModel):
    task: str


def told(*overrides: str, file: Path | None = None, model: type[BaseModel] = Settings) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(model, file=file, overrides=overrides)
    return str(caught.value)


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("train:\n  lr: 1e-2\n  loss: sampled\nname: first\n")
    settings = load_settings(Settings, file=file, overrides=["train.lr=3", "sizes=[1, 2]", "source.users=5"])
    assert settings.train == Train(lr=3, epochs=7, loss="sampled")  # epochs: the section's default, not its class's
    assert (settings.name, settings.sizes, settings.source) == ("first", [1, 2], {"users": 5})


def test_an_empty_file_and_an_empty_section_are_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")
    assert load_settings(Settings, file=file) == Settings()
    file.write_text("train: {}\n")
    assert load_settings(Settings, file=file) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), (".5", 0.5), ("+2", 2), ("-.inf", float("-inf")), ("true", True), ("null", None), ("", None)]
    + [(word, word) for word in ("no", "on", "12:30", "2024-05-01", "012", "1_0", "abc", "<<")],
)
def test_scalars_are_read_the_way_people_mean_them(text: str, value: object) -> None:
    read = load_settings(Settings, overrides=[f"source.x={text}"]).source["x"]
    assert read == value
    assert type(read) is type(value)


def test_dates_reach_the_model_as_written() -> None:
    assert load_settings(Settings, overrides=["start=2024-05-01"]).start == datetime(2024, 5, 1)
    assert load_settings(Settings, overrides=["start=2024-05-01T12:30:00"]).start == datetime(2024, 5, 1, 12, 30)


def test_every_problem_is_told_at_once_with_its_way_out() -> None:
    message = told(
        "train.lrr=1",
        "train.lr=fast",
        "train.loss=sofmax",
        "train.epochs=0",
        "window.first=11",
        "nam=x",
        "oops",
        "name.x=[",
    )
    assert "train.lrr is unknown; did you mean 'lr'? choices: epochs, loss, lr, shuffle" in message
    assert "train.lr='fast': expected a valid number" in message
    assert "train.loss='sofmax' is unknown; did you mean 'softmax'? choices: sampled, softmax" in message
    assert "train.epochs=0: expected greater than 0" in message
    assert "window: first=11 lies after last=10" in message
    assert "nam is unknown; did you mean 'name'?" in message
    assert "'oops' is no override; expected section.field=value" in message
    assert "name.x='[' is not YAML" in message
    assert len(message.splitlines()) == 9


def test_a_field_is_not_a_section() -> None:
    assert "name.x cannot be set: name is 'a', not a section" in told("name=a", "name.x=1")
    assert "train=5: expected a valid dictionary" in told("train=5")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Settings | None = None
    other: Settings | None = None


def test_a_section_that_may_be_left_out_is_filled_from_its_own_defaults() -> None:
    assert load_settings(Outer) == Outer(inner=None)
    assert load_settings(Outer, overrides=["inner={}"]).inner == Settings()
    inner = load_settings(Outer, overrides=["inner.train.lr=3"]).inner
    assert inner is not None
    assert inner.train == Train(lr=3, epochs=7)
    assert "inner.train.lrr is unknown; did you mean 'lr'?" in told("inner.train.lrr=1", model=Outer)
    assert "inner.train.lr" in {name for name, _, _ in list_settings(Outer)}


def test_a_star_stands_for_every_section_that_is_given() -> None:
    both = load_settings(Outer, overrides=["inner={}", "other.name=b", "*.train.lr=2"])
    assert [part and part.train.lr for part in (both.inner, both.other)] == [2, 2]
    one = load_settings(Outer, base=both, overrides=["other=null", "*.name=c"])
    assert one.inner == both.inner.model_copy(update={"name": "c"})  # type: ignore[union-attr]
    assert one.other is None
    assert "*.name sets nothing: no section is given" in told("*.name=c", model=Outer)


def test_an_override_leaves_a_section_alone_that_shares_a_yaml_anchor(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("inner: {train: &train {lr: 2}}\nother: {train: *train}\n")
    found = load_settings(Outer, file=file, overrides=["inner.train.lr=3"])
    assert [part and part.train.lr for part in (found.inner, found.other)] == [3, 2]


def test_a_missing_setting_names_the_way_to_give_it() -> None:
    assert "task is missing; give it in the file or as --set task=VALUE" in told(model=Required)


def test_long_values_are_cut() -> None:
    assert len(told(f"train.lr={'x' * 100_000}")) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1", "settings.yaml is not YAML"),
        (b"train:\n  lr: 1\n  lr: 2\n", "'lr' is there twice"),
        (b"\xff\xfe\x00", "settings.yaml is not YAML"),
        (b"? [a, b]\n: 1\n", "settings.yaml is not YAML: a key is no plain name"),
        (b"- 1\n- 2\n", "holds [1, 2]; expected sections and fields"),
        (b"!!python/object/apply:os.getcwd []", "settings.yaml is not YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    assert message in told(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml cannot be read: No such file" in told(file=tmp_path / "nowhere.yaml")


def test_settings_are_listed_by_the_names_that_overrides_take() -> None:
    listed = {name: (default, meaning) for name, default, meaning in list_settings(Settings)}
    assert listed["train.loss"] == ('"softmax"', "softmax | sampled")
    assert listed["name"] == ("null", "")
    assert list(listed)[:2] == ["train.lr", "train.epochs"]
    assert load_settings(Settings, overrides=[f"{name}={value}" for name, (value, _) in listed.items()]) == Settings()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@example(lr=0.1, name=None, sizes=[], source={"limit": float("inf")})
@example(lr=0.1, name="one\ntwo", sizes=[], source={"\x85": "\u2028 three"})
@given(
    lr=st.floats(allow_nan=False),
    name=st.none() | st.text(),
    sizes=st.lists(st.integers()),
    source=st.dictionaries(st.text(), SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
)
def test_saved_settings_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, lr: float, name: str | None, sizes: list[int], source: dict[str, Any]
) -> None:
    settings = Settings(train=Train(lr=lr), name=name, start=datetime(2024, 5, 1, 12), sizes=sizes, source=source)
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    save_settings(settings, file)
    assert load_settings(Settings, file=file) == settings


def test_saved_settings_are_plain_yaml(tmp_path: Path) -> None:
    save_settings(Settings(), tmp_path / "settings.yaml")
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["train"]["epochs"] == 7
