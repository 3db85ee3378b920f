"""The command line: what it prints where, its exit status, and that it is quick to answer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from reeltalk.cli import app
from reeltalk.errors import DataError


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_step_and_imports_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from reeltalk.cli import app
print(CliRunner().invoke(app, ["--help"]).stdout)
heavy = {"torch", "lightning", "transformers", "polars", "numpy", "scipy", "matplotlib", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for step in ("prepare", "encode", "finetune", "evaluate", "compare", "train", "ablate", "models"):
        assert step in shown.stdout


def test_no_command_shows_the_help() -> None:
    assert "prepare" in run().output


def test_models_and_sources_are_listed_on_stdout() -> None:
    models = run("models")
    assert models.exit_code == 0
    rows = {line.split()[0]: line for line in models.stdout.splitlines()}
    assert rows["model"].split() == ["model", "tasks", "reads", "paper"]
    assert all(part in rows["lsvcr"] for part in ("item, comment", "ids, text, items, records", "arXiv 2403.13574"))
    assert "ids, items" in rows["sasrec"]
    assert "kuaicomt" in run("sources").stdout


def test_settings_are_listed_in_the_form_that_set_takes() -> None:
    listed = run("settings", "finetune", "--task", "comment").stdout
    assert "train.learning_rate" in listed
    assert "csv | tensorboard" in listed
    assert "loss.sequence_weight" in run("settings", "pretrain").stdout
    assert "source.num_users" in run("settings", "simulator").stdout
    chain = run("settings", "train").stdout
    assert all(name in chain for name in ("align.loss.ssc", "finetune.comment.model.text_dim", "prepare.split"))
    experiment = run("settings", "compare").stdout
    assert all(name in experiment for name in ("data.NAME.prepare.split", "systems.NAME.grid", "search.trials"))
    assert "did you mean 'encode'?" in run("settings", "encoed").stderr


def test_version_tells_the_libraries() -> None:
    lines = dict(line.split(" ", 1) for line in run("version").stdout.splitlines())
    assert lines["reeltalk"] == "0.1.0"
    assert {"python", "torch", "polars"} <= set(lines)


def test_python_m_reeltalk_is_the_command_line() -> None:
    shown = subprocess.run([sys.executable, "-m", "reeltalk", "version"], capture_output=True, text=True, check=True)
    assert "reeltalk 0.1.0" in shown.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_go_to_sleep_early_unless_the_user_says_how_they_wait(
    given: dict[str, str], expected: str
) -> None:
    code = "import os, sys, reeltalk; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=others | given)
    assert shown.stdout.strip() == expected


def test_prepare_writes_its_folder_and_prints_figures(toy_tables: Path, tmp_path: Path) -> None:
    result = run("prepare", "tables", "--raw", toy_tables, "--out", tmp_path / "data", "--set", "num_item_negatives=5")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'data'}" in result.stdout
    assert "num_users: 40" in result.stdout
    assert (tmp_path / "data" / "manifest.json").is_file()
    again = run("prepare", "tables", "--raw", toy_tables, "--out", tmp_path / "data")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "simulatr", "--out", "x"], "did you mean 'simulator'?"),
        (["prepare", "simulator", "--out", "x", "--set", "sed=1"], "sed is unknown; did you mean 'seed'?"),
        (["prepare", "tables", "--out", "x", "--raw", "nowhere"], "nowhere does not exist"),
        (["prepare", "tables", "--out", "x", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (
            ["train", "nowhere.yaml", "--out", "x"],
            "nowhere.yaml cannot be read: No such file or directory; give a YAML",
        ),
        (["finetune", "nowhere", "--out", "x"], "give --task item or --task comment"),
        (["finetune", "nowhere", "--out", "x", "--task", "video"], "--task video is unknown"),
        (["finetune", "nowhere", "--out", "x", "--task", "item", "--model", "lsvc"], "did you mean 'lsvcr'?"),
        (["finetune", "nowhere", "--out", "x", "--task", "item"], "nowhere is not a folder"),
        (["finetune", "nowhere", "--out", "x", "--aligned", "a", "--pretrained", "p"], "starts from one of them"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_file_of_settings_and_an_option_may_not_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("name: lsvcr\ntask: item\n")
    for option, value, held in (("--model", "sasrec", "lsvcr"), ("--task", "comment", "item")):
        result = run("finetune", "nowhere", "--out", "x", "--config", file, option, value)
        assert result.exit_code == 2
        assert f"{option} {value}, but" in result.stderr
        assert f"is for {held}; leave the option out" in result.stderr


def fails_with(error: BaseException) -> Callable[..., NoReturn]:
    def prepare(*_arguments: object, **_options: object) -> NoReturn:
        raise error

    return prepare


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("row 3: text '[bold]hi[/nope] :smile:'"), 2, "row 3: text '[bold]hi[/nope] :smile:'"),
        (KeyboardInterrupt(), 130, "interrupted; no unfinished folder"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (pl.exceptions.ComputeError("parquet: No space left on device (os error 28)"), 2, "the disk is full"),
        (OSError("100000 requested and 0 written"), 2, "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), 2, "/etc/x: Permission denied"),
    ],
)
def test_failures_of_a_step(
    error: BaseException, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reeltalk.data.prepare.prepare", fails_with(error))
    result = run("prepare", "simulator", "--out", tmp_path / "data")
    assert result.exit_code == status
    assert message in result.stderr
    assert result.stdout == ""


def test_a_bug_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reeltalk.data.prepare.prepare", fails_with(ZeroDivisionError("a bug")))
    result = run("prepare", "simulator", "--out", tmp_path / "data")
    assert isinstance(result.exception, ZeroDivisionError)
