"""Every step of the command line, one after the other: what it prints, and the exact files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from reeltalk.cli import app
from reeltalk.data.dataset import TABLES

SMALL = [
    *(
        "--set",
        "model.dim=16",
        "--set",
        "model.num_layers=1",
        "--set",
        "model.inner_dim=32",
        "--set",
        "model.text_dim=16",
    ),
    *("--set", "train.max_epochs=2", "--set", "train.batch_size=16"),
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def must(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(toy_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, text, and for each task a model and its report."""
    at = tmp_path_factory.mktemp("pipeline")
    must("prepare", "tables", "--raw", toy_tables, "--out", at / "data", "--set", "num_item_negatives=20")
    must("encode", at / "data", "--encoder", "minilm", "--out", at / "text")
    for task in ("item", "comment"):
        must("finetune", at / "data", "--task", task, "--text", at / "text", "--out", at / task, *SMALL)
        must("evaluate", at / task, "--out", at / f"{task}-report", "--set", "bootstrap_samples=50")
    return at


def test_each_folder_holds_exactly_its_files(made: Path) -> None:
    assert files(made / "data") == {"manifest.json", *(f"{name}.parquet" for name in TABLES)}
    assert files(made / "text") == {"manifest.json", "vectors.npy", "keys.npy"}
    logs = {name for name in files(made / "item") if name.startswith("logs/")}
    assert files(made / "item") - logs == {"manifest.json", "config.yaml", "model.safetensors"}
    assert files(made / "item-report") == {"manifest.json", "report.json", "report.html", "per_user.parquet"}
    assert {path.name for path in made.iterdir()} == {
        "data",
        "text",
        "item",
        "comment",
        "item-report",
        "comment-report",
    }


@pytest.mark.parametrize(
    ("task", "floors"),
    [("item", {"popularity", "most_recent", "text_similarity"}), ("comment", {"hot_comments", "text_similarity"})],
)
def test_the_report_stands_beside_its_floors(made: Path, task: str, floors: set[str]) -> None:
    report = json.loads((made / f"{task}-report" / "report.json").read_text())
    assert {"protocol", "metrics", "segments", "seeds"} <= set(report)
    assert floors | {"lsvcr"} <= set(report["systems"])
    found = report["metrics"]["sampled"]["recall@10"]
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    per_user = pl.read_parquet(made / f"{task}-report" / "per_user.parquet")
    assert per_user["sampled.recall@10"].mean() == pytest.approx(found["mean"])
    assert per_user.select("user_id", "target").is_unique().all()


def test_evaluate_prints_a_table_and_names_the_page(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    shown = must("evaluate", made / "item", "--out", out, "--split", "valid", "--set", "ks=[3]")
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "recall@3" in shown
    assert {"lsvcr", "popularity"} <= set(rows)
    mean = json.loads((out / "report.json").read_text())["metrics"]["full"]["ndcg@3"]["mean"]
    assert f"{mean:.4f}" in rows["lsvcr"]
    assert str(out / "report.html") in shown


def test_a_saved_config_repeats_the_run(made: Path, tmp_path: Path) -> None:
    config: Sequence[str | Path] = ("--config", made / "comment" / "config.yaml")
    must("finetune", made / "data", "--text", made / "text", "--out", tmp_path / "again", *config)
    weights = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert weights == (made / "comment" / "model.safetensors").read_bytes()


def test_two_runs_are_compared(made: Path, tmp_path: Path) -> None:
    must("finetune", made / "data", "--model", "sasrec", "--task", "item", "--out", tmp_path / "sasrec", *SMALL[:6])
    must("evaluate", tmp_path / "sasrec", "--out", tmp_path / "report", "--text", made / "text")
    shown = must("compare", made / "item-report", tmp_path / "report")
    assert "ndcg@10" in shown
    assert "p t-test" in shown
    result = run("compare", made / "item-report", made / "comment-report")
    assert result.exit_code == 2
    assert "cannot be compared" in result.stderr


def test_folders_that_do_not_belong_together_are_named(made: Path, toy_tables: Path, tmp_path: Path) -> None:
    must("prepare", "tables", "--raw", toy_tables, "--out", tmp_path / "other", "--set", "seed=1")
    result = run("evaluate", made / "item", "--out", tmp_path / "report", "--dataset", tmp_path / "other")
    assert result.exit_code == 2
    assert str(tmp_path / "other") in result.stderr
    assert not (tmp_path / "report").exists()
    result = run("evaluate", made / "data", "--out", tmp_path / "report")
    assert "holds a dataset, expected a model" in result.stderr
    result = run("evaluate", made / "item", "--out", made / "item-report")
    assert "--overwrite" in result.stderr
