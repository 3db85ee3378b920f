"""The file of a comparison: what keeps it from being run is told at once, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_experiments import write_experiment
from typer.testing import CliRunner

from reeltalk.cli import app
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ConfigError
from reeltalk.experiments.loading import OF_THE_SEARCH, load_experiment


@pytest.fixture
def first(toy_dataset: Dataset) -> dict[str, str]:
    """A data set."""
    return {"dataset": str(toy_dataset.path)}


def test_mistakes_of_the_file_are_told_at_once(tmp_path: Path) -> None:
    file = write_experiment(
        tmp_path / "e.yaml",
        {},
        ours=["lsvrc"],
        data={
            "first": {"dataset": str(tmp_path / "nowhere")},
            "second": {"source": "sequencs", "raw": str(tmp_path)},
            "third": {"source": "threads"},
        },
        systems={
            "lsvcr": {"grid": {"model.dropuot": [0.1], **{name: [1] for name in OF_THE_SEARCH}}},
            "sasrce": {},
            "ids": {"model": "sasrec", "grid": {"model.dropout": [0.1, 1.5]}, "finetune": {"trian": {}}},
        },
        metrics=["ndcg@7"],
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    for message in (
        "ours='lsvrc' is no system; did you mean 'lsvcr'?",
        "'ndcg@7' is not measured",
        f"data.first.dataset='{tmp_path / 'nowhere'}' is not there",
        "source 'sequencs' is unknown; did you mean 'sequences'?",
        "data.third.raw is missing",
        *(f"lsvcr: grid names {name}, which is not for the grid" for name in OF_THE_SEARCH),
        "lsvcr on first, second, third: model.dropuot is unknown; did you mean 'dropout'?",
        "sasrce on first, second, third: model 'sasrce' is unknown; did you mean 'sasrec'?",
        "ids on first, second, third: trian is unknown; did you mean 'train'?",
        "ids on first, second, third: model.dropout=1.5",
    ):
        assert message in str(caught.value)
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["compare", str(file), "--out", str(out)]).exit_code == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ([0.6, 0.2], "give each rung longer than the one before"),
        ([2, 6], "give parts of max_epochs, above 0 and below 1, as 0.2"),
    ],
)
def test_rungs_are_parts_and_rise(first: dict[str, str], tmp_path: Path, rungs: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"search\.rungs=.*{message}"):
        load_experiment(write_experiment(tmp_path / "e.yaml", first, search={"rungs": rungs}))


def test_what_other_sections_give_is_given_once(first: dict[str, str], tmp_path: Path) -> None:
    file = write_experiment(
        tmp_path / "e.yaml",
        {},
        data={"first": {**first, "finetune": {"train": {"exclude_seen": False}}}},
        systems={"lsvcr": {"finetune": {"name": "sasrec"}}},
        finetune={"train": {"seed": 5}},
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    for message in (
        "finetune.train.seed is what seeds gives",
        "data.first.finetune.train.exclude_seen is what evaluate.exclude_seen gives",
        "systems.lsvcr.finetune.name is what the system's name or model gives",
    ):
        assert message in str(caught.value)


def test_epochs_are_chosen_in_the_ranking_that_is_tested(first: dict[str, str], tmp_path: Path) -> None:
    file = write_experiment(tmp_path / "e.yaml", first, systems={"lsvcr": {}}, evaluate={"exclude_seen": False})
    assert not load_experiment(file).chain("first", "lsvcr", {}).tasks["item"].train.exclude_seen


def test_seeds_are_told_before_anything_runs(first: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds\.1=-1"):
        load_experiment(write_experiment(tmp_path / "e.yaml", first, seeds=[0, -1]))


def test_settings_are_checked_as_they_will_be_tried(first: dict[str, str], tmp_path: Path) -> None:
    """Two of them may fit each other, and neither the default of the other."""

    def problems(**grid: list[float]) -> str:
        search = {"trials": "all", "grid": {f"train.{name}": values for name, values in grid.items()}}
        file = write_experiment(tmp_path / "e.yaml", first, systems={"lsvcr": {}}, search=search, finetune={})
        try:
            load_experiment(file)
        except ConfigError as error:
            return "; ".join(error.problems)
        return ""

    assert not problems(batch_size=[100, 200], accumulate=[1, 5])
    assert problems(batch_size=[128, 90], accumulate=[1, 4]).count("batch_size=90 does not divide by") == 1


@pytest.mark.parametrize(
    ("start", "size", "message"),
    [
        ("pretrain", "model.dim", "s3rec on first: grid names model.dim, a size of what it starts from"),
        ("align", "model.text_map", "lsvcr on first: grid names model.text_map, a size of what it starts from"),
    ],
)
def test_sizes_are_those_of_the_start(
    first: dict[str, str], tmp_path: Path, start: str, size: str, message: str
) -> None:
    name = {"pretrain": "s3rec", "align": "lsvcr"}[start]
    default = {"model.dim": 64, "model.text_map": "mlp"}[size]
    systems = {name: {start: {}, "grid": {size: [default]}}}
    file = write_experiment(tmp_path / "e.yaml", first, ours=[name], systems=systems, finetune={})
    with pytest.raises(ConfigError, match=message):
        load_experiment(file)


def test_a_comparison_speaks_of_its_own_task(first: dict[str, str], tmp_path: Path) -> None:
    file = write_experiment(
        tmp_path / "e.yaml", first, task="comment", ours=["mha"], systems={"mha": {}}, search={"grid": {}}
    )
    with pytest.raises(
        ConfigError, match=r"mha on first: data\.comments=false leaves the comment task without targets"
    ):
        load_experiment(file, overrides=["finetune.data.comments=false"])
