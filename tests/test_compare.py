"""Comparisons end to end: settings chosen, tables that repeat the reports, failures told, a kill survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pytest
from scipy import stats
from tiny_chains import ALIGN, MODEL, fake_alignment, manifests
from tiny_experiments import SEEDS, SMALL, write_experiment
from tiny_llms import save_llm
from typer.testing import CliRunner, Result

from reeltalk.api import encode
from reeltalk.artifacts import read_manifest
from reeltalk.cli import app
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ConfigError
from reeltalk.evaluation.significance import compare, holm
from reeltalk.experiments import comparison, jobs
from reeltalk.experiments.comparison_page import page
from reeltalk.experiments.comparison_text import markdown
from reeltalk.experiments.figures import chosen_of
from reeltalk.experiments.flows import Line, line_flow
from reeltalk.experiments.jobs import Job, do
from reeltalk.experiments.loading import load_experiment
from reeltalk.experiments.schedule import Doer, run_flows
from reeltalk.experiments.workers import Died, Here
from reeltalk.lock import only_writer
from reeltalk.text.encode import EncodeSettings


class Inline(Here[Any, Any]):
    """Workers that are this process."""

    def __init__(self, function: Callable[[Any], Any], **_options: object) -> None:
        super().__init__(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        assert not self._queue


def run(file: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", str(file), "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def first(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data set of finished folders."""
    text = encode(toy_dataset, out=tmp_path_factory.mktemp("compare") / "text")
    return {"dataset": str(toy_dataset.path), "text": str(text.path)}


@pytest.fixture(scope="module")
def file(first: dict[str, str], toy_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets: finished folders, and a log with another split."""
    second = {
        "source": "tables",
        "raw": str(toy_tables),
        "prepare": {"split": "leave_one_out", "num_item_negatives": 15},
    }
    data = {"first": first, "second": second}
    return write_experiment(tmp_path_factory.mktemp("compare") / "experiment.yaml", first, data=data)


@pytest.fixture(scope="module")
def killed(file: Path) -> dict[str, tuple[int, bytes]]:
    """The step folders that were finished when the command was killed."""
    out = file.parent / "out"
    command = [sys.executable, "-m", "reeltalk", "compare", str(file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "1 epoch," in line:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = manifests(out)
    deadline = time.monotonic() + 20  # its workers end with it
    while time.monotonic() < deadline and workers_of(out):
        time.sleep(0.1)
    assert not workers_of(out)
    assert not (out / "compare.json").exists()
    return made


def workers_of(out: Path) -> list[int]:
    """Processes that have the log of this comparison open."""
    log, found = str(out / "workers.log"), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd" / "1") == log:
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def done(file: Path, killed: dict[str, tuple[int, bytes]]) -> Result:
    return run(file, file.parent / "out", "--jobs", "2")


@pytest.fixture(scope="module")
def saved(file: Path, done: Result) -> dict[str, Any]:
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    found: dict[str, Any] = json.loads((file.parent / "out" / "compare.json").read_text())
    return found


def test_killed_and_run_again_it_keeps_what_was_done(
    file: Path, killed: dict[str, tuple[int, bytes]], saved: dict[str, Any]
) -> None:
    after = manifests(file.parent / "out")
    assert killed
    assert {name: after[name] for name in killed} == killed
    assert len(after) > len(killed)


def test_run_a_third_time_it_makes_nothing(file: Path, saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Workers", Inline)
    out = file.parent / "out"
    before, written = manifests(out), {name: (out / name).read_text() for name in ("compare.md", "compare.html")}
    again = run(file, out, "--set", "systems.broken=null")
    assert again.exit_code == 0, again.output
    assert manifests(out) == before
    assert "broken" not in (out / "compare.md").read_text()
    for name, text in written.items():
        (out / name).write_text(text)


def test_the_trial_with_the_best_value_is_chosen(saved: dict[str, Any]) -> None:
    for data in ("first", "second"):
        of = saved["data"][data]["chosen"]["ids"]
        first, last = ([t for t in of["trials"] if t["epochs"] == epochs] for epochs in (1, None))
        assert len(first) == 3  # of four configurations
        assert len(last) == 0  # one of three went on, so nothing was left to choose
        best = max(first, key=lambda trial: trial["value"])
        assert of["choice"] == best["choice"]
        held = json.loads((Path(of["models"]["1"]) / "manifest.json").read_text())["config"]
        assert held["train"]["learning_rate"] == best["choice"]["train.learning_rate"]
        assert held["model"]["dropout"] == best["choice"]["model.dropout"]
        assert (held["train"]["seed"], held["train"]["max_epochs"]) == (1, 2)


def documents(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads((Path(of["reports"][str(seed)]) / "report.json").read_text()) for seed in SEEDS]


def test_the_figures_are_those_of_the_reports(saved: dict[str, Any]) -> None:
    for data, table in saved["data"].items():
        assert set(table["standings"]) >= {"lsvcr", "ids", "popularity", "random", "most_recent"}, data
        for system in ("lsvcr", "ids"):
            reports = documents(table["chosen"][system])
            assert set(reports[0]["systems"]) == {reports[0]["system"]}, "floors are measured once, apart"
            for protocol in ("sampled", "full"):
                values = [report["metrics"][protocol]["ndcg@10"]["mean"] for report in reports]
                found = table["standings"][system]["metrics"][protocol]["ndcg@10"]
                assert found["mean"] == pytest.approx(np.mean(values))
                low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
                assert (found["low"], found["high"]) == pytest.approx((low, high))
            parts = table["standings"][system]["parts"]["history"]
            longest = max(parts, key=lambda name: parts[name]["targets"])
            segment, part = [report["segments"]["history"][longest] for report in reports], parts[longest]
            assert part["targets"] == segment[0]["targets"] > 0
            expected = np.mean([each["metrics"]["sampled"]["mrr"]["mean"] for each in segment])
            assert part["metrics"]["sampled"]["mrr"] == pytest.approx(expected)
        assert table["standings"]["popularity"]["metrics"]["full"]["mrr"]["low"] is None


def test_tests_are_on_users_and_corrected(saved: dict[str, Any]) -> None:
    table = saved["data"]["first"]
    values = {}
    for system in ("lsvcr", "ids"):
        first, second = (
            pl.read_parquet(Path(folder) / "per_user.parquet") for folder in table["chosen"][system]["reports"].values()
        )
        column = (first["full.ndcg@10"] + second["full.ndcg@10"]) / 2
        values[system] = first.with_columns(column.alias("full.ndcg@10"))
    expected = compare(values["lsvcr"], values["ids"])["full"]["ndcg@10"]
    tests = {other: of["full"]["ndcg@10"] for other, of in table["tests"]["lsvcr"].items()}
    assert tests["ids"]["difference"] == pytest.approx(expected.difference)
    assert tests["ids"]["p"] == pytest.approx(expected.p_ttest)
    assert set(tests) == set(table["standings"]) - {"lsvcr"}
    assert [of["p_holm"] for of in tests.values()] == pytest.approx(holm([of["p"] for of in tests.values()]))


def test_costs(saved: dict[str, Any]) -> None:
    of = saved["data"]["second"]["chosen"]["ids"]
    facts = [json.loads((Path(m) / "manifest.json").read_text())["facts"] for m in of["models"].values()]
    assert of["cost"]["parameters"] == facts[0]["num_parameters"]
    assert of["cost"]["seconds"] == pytest.approx(np.mean([each["seconds"] for each in facts]))
    assert of["cost"]["search_seconds"] == pytest.approx(sum(trial["seconds"] for trial in of["trials"]))
    assert 0 < of["cost"]["request_ms"] < 1000


def test_a_failing_system_is_shown_and_stops_nothing(file: Path, done: Result, saved: dict[str, Any]) -> None:
    assert done.exit_code == 2
    assert "2 parts of the comparison failed, as the table tells; mend what stopped them" in done.stderr
    assert "broken" not in saved["data"]["first"]["standings"]
    whole = [of for of in saved["failures"] if not of["is_trial"]]
    assert [(of["data"], of["system"], of["what"]) for of in whole] == [
        (data, "broken", "all seeds") for data in ("first", "second")
    ]
    assert all("devices=2, but a chain runs in one process" in of["error"] for of in saved["failures"])
    assert "first, broken: 1 epoch, train.learning_rate=0.01: failed: item: train.devices=2" in done.stderr
    assert "| broken | failed |" in (file.parent / "out" / "compare.md").read_text()
    html = (file.parent / "out" / "compare.html").read_text()
    assert html.count("<td>broken</td><td>failed</td>") == 4, "in the table of each data set and protocol"
    assert html.count("<td>0 of 2</td>") == 4


def test_what_is_written(file: Path, done: Result, saved: dict[str, Any]) -> None:
    out = file.parent / "out"
    names = {"runs", "requests.json", "workers.log", "compare.json", "compare.md", "compare.html"}
    assert {path.name for path in out.iterdir()} == names
    assert saved["experiment"]["search"]["rungs"] == [0.4]
    assert saved["versions"]["torch"]
    tables = (out / "compare.md").read_text()
    assert done.stdout.count("ranking (") == tables.count("ranking (") == 4
    mean = saved["data"]["second"]["standings"]["lsvcr"]["metrics"]["sampled"]["recall@5"]["mean"]
    assert f"| lsvcr | {mean:.4f} ± " in tables
    assert tables.count("ranking, gains") == 4
    html = (out / "compare.html").read_text()
    for kind in ("baseline", "floor"):
        reached = {
            name: of["metrics"]["full"]["ndcg@10"]["mean"]
            for name, of in saved["data"]["second"]["standings"].items()
            if of["kind"] == kind
        }
        best = max(reached, key=lambda name: reached[name])
        gain = saved["data"]["second"]["tests"]["lsvcr"][best]["full"]["ndcg@10"]["gain"]
        assert f"| lsvcr | ndcg@10 | {gain:+.1%} | {best} |" in tables.split("second: full ranking, gains")[1]
        assert html.count(f"<td>lsvcr against the best {kind}</td>") == 4
    assert html.count("<svg") == 4 * 5  # two data sets, two protocols: by K twice, by users, items and history
    assert "<link" not in html
    assert "src=" not in html


def drive(file: Path, out: Path, doer: Doer | None = None) -> tuple[list[Line], list[str]]:
    """The lines of an experiment whose jobs all run here, and what was told."""
    experiment = load_experiment(file)
    lines = [Line(data, system) for data in experiment.data for system in experiment.systems]
    told: list[str] = []
    flows = [line_flow(experiment, line, out=out) for line in lines]
    run_flows(flows, doer or Here(do), told.append)
    return lines, told


class OutOfMemory(Here[Job, Any]):
    """Does jobs, but for those with this in their names."""

    def __init__(self, name: str) -> None:
        super().__init__(do)
        self._name = name

    def take(self) -> tuple[Job, Any]:
        if self._name in self._queue[0].name:
            return self._queue.popleft(), Died("its process was ended by SIGKILL")
        return super().take()


def test_a_trial_that_the_machine_stopped_might_have_won_and_is_tried_again(
    first: dict[str, str], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.yaml", first)
    reached = {line.system: line for line in drive(file, tmp_path / "out", OutOfMemory("ids: 1 epoch"))[0]}
    told = str(reached["ids"].error)
    assert told.startswith("the trial 1 epoch, train.learning_rate=")
    assert "might have won, but failed, so run again: its process was ended by SIGKILL" in told
    assert reached["ids"].cells == []
    assert [cell.error for cell in reached["lsvcr"].cells] == [None, None]
    again = {line.system: line for line in drive(file, tmp_path / "out")[0]}
    assert again["ids"].error is None
    assert [trial.error for trial in again["ids"].trials] == [None, None, None]
    assert [cell.error for cell in again["ids"].cells] == [None, None]


def test_texts_that_cannot_be_encoded_stop_those_that_read_them(first: dict[str, str], tmp_path: Path) -> None:
    data = {"first": {"dataset": first["dataset"], "encode": {"encoder": str(tmp_path / "nowhere")}}}
    lines, _ = drive(write_experiment(tmp_path / "e.yaml", first, data=data), tmp_path / "out")
    reached = {line.system: line for line in lines}
    assert "nowhere" in str(reached["lsvcr"].error)
    assert [cell.error for cell in reached["ids"].cells] == [None, None]


def test_a_model_that_cannot_be_asked_is_told(
    first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "time_requests", lambda model: "its data is gone")
    found = small_comparison(first, tmp_path, monkeypatch, systems={"lsvcr": {"finetune": {"model": MODEL}}})
    assert [(of.system, of.what, of.error) for of in found.missing] == [("lsvcr", "requests", "its data is gone")]
    assert found.data["first"].chosen["lsvcr"].cost.request_ms is None


def test_systems_share_an_alignment_and_a_failed_one_stops_its_own(
    first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_alignment(monkeypatch)
    tiny = {"model": "lsvcr", "finetune": {"model": MODEL}, "grid": {"train.learning_rate": [0.01]}}
    systems = {
        "aligned": tiny | {"align": ALIGN},
        "aligned-once": tiny | {"align": ALIGN | {"train": {"seed": 0}}},
        "failing": tiny | {"align": ALIGN | {"loss": {"lm": 13}}},
    }
    file = write_experiment(
        tmp_path / "e.yaml",
        first,
        data={"first": {**first, "align": {"data": {"history_length": 10}}}},
        systems=systems,
        ours=["aligned"],
        finetune={"train": {"max_epochs": 1, "batch_size": 16}},
    )
    lines, told = drive(file, tmp_path / "out")
    # a seed each for the first, none of its own for the second, and one that fails
    assert calls.count("align") == 2 + 1
    reached = {line.system: line for line in lines}
    assert reached["failing"].error == "ArithmeticError: the loss is no number"
    assert reached["failing"].cells == []
    assert [cell.error for name in ("aligned", "aligned-once") for cell in reached[name].cells] == [None] * 4
    assert reached["aligned"].trials == [], "one configuration needs no trial"
    assert reached["aligned"].choice == {"train.learning_rate": 0.01}
    models = {name: [cell.folders["item"] for cell in line.cells] for name, line in reached.items()}
    assert models["aligned"][0] == models["aligned-once"][0]
    assert models["aligned"][1] != models["aligned-once"][1]
    assert len([line for line in told if "first: data" in line]) == 1


def test_systems_share_a_pretraining_and_its_seconds_are_told(first: dict[str, str], tmp_path: Path) -> None:
    """Once a data set where its seed is fixed, on histories as fine-tuning reads them; a grid cannot ask for sizes."""
    train = {"max_epochs": 1, "batch_size": 16}
    s3rec = {"model": "s3rec", "grid": {"train.learning_rate": [0.01]}}
    systems = {
        "each": s3rec | {"pretrain": {"model": SMALL, "train": train}},
        "once": s3rec | {"pretrain": {"model": SMALL, "train": train | {"seed": 0}}},
        "never": s3rec | {"finetune": {"model": SMALL}},
    }
    sections = {"ours": ["each"], "finetune": {"train": train, "data": {"history_length": 10}}}
    file = write_experiment(tmp_path / "e.yaml", first, systems=systems, **sections)
    lines, told = drive(file, tmp_path / "out")
    assert [cell.error for line in lines for cell in line.cells] == [None] * 6
    assert len([line for line in told if "pre-training, seed" in line]) == 2
    assert len(list((tmp_path / "out" / "runs").glob("pretrained-*"))) == 2
    models = {
        line.system: [read_manifest(Path(cell.folders["item"]), "model") for cell in line.cells] for line in lines
    }
    starts = {system: [model.parents.get("pretrained") for model in of] for system, of in models.items()}
    assert starts["each"][0] == starts["once"][0] == starts["once"][1] != starts["each"][1]
    assert starts["never"] == [None, None]
    held = read_manifest(Path(lines[0].cells[0].folders["pretrained"]), "pretrained")
    assert held.config["data"]["history_length"] == 10
    seconds = {line.system: chosen_of(line, {}).cost.start_seconds for line in lines}
    assert seconds["once"] == held.facts["seconds"]
    assert seconds["never"] is None


def small_comparison(first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Any:
    """A comparison of comment systems, one seed, whose jobs run here."""
    monkeypatch.setattr(comparison, "Workers", Inline)
    monkeypatch.setattr(jobs, "REQUESTS", 5)
    file = write_experiment(
        tmp_path / "e.yaml",
        first,
        task="comment",
        seeds=[3],
        search={"grid": {"train.learning_rate": [0.01]}},
        finetune={"train": {"max_epochs": 1, "batch_size": 16}},
        **sections,
    )
    return comparison.run_comparison(load_experiment(file), out=tmp_path / "out")


def test_a_folder_is_one_comparisons_at_a_time(file: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path):
        assert "another run is writing" in run(file, tmp_path).output
    assert list(tmp_path.iterdir()) == []


def test_what_takes_longest_is_begun_first(
    first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process takes the next job: an alignment begun last would leave the others without work."""
    fake_alignment(monkeypatch)
    plain = {"model": "lsvcr", "finetune": {"model": MODEL}, "grid": {"train.learning_rate": [0.01]}}
    data = {"first": {**first, "align": {"data": {"history_length": 10}}}}
    systems = {"plain": plain, "with-start": plain | {"align": ALIGN}}
    small_comparison(first, tmp_path, monkeypatch, data=data, systems=systems, ours=["plain"])
    told = capsys.readouterr().out
    assert told.index("first, with-start: ") < told.index("first, plain: "), told


def test_the_comment_task(first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {"lsvcr": {"finetune": {"model": MODEL}}}
    found = small_comparison(first, tmp_path, monkeypatch, systems=systems)
    table = found.data["first"]
    assert not found.missing
    assert {"hot_comments", "text_similarity"} <= set(table.standings)
    milliseconds = table.chosen["lsvcr"].cost.request_ms
    assert milliseconds is not None
    assert milliseconds > 0
    assert table.standings["lsvcr"].metrics["sampled"]["mrr"].low is None, "one seed has no interval"
    assert page(found).count("<svg") == 5


def test_ours_are_tested_against_each_other_and_all_is_corrected_at_once(
    first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = {
        "lsvcr": {"finetune": {"model": MODEL}},
        "small": {"model": "lsvcr", "finetune": {"model": MODEL | {"dim": 8}}},
        "mha": {"finetune": {"model": {"dim": 16}}},
        "gone": {"model": "lsvcr", "finetune": {"train": {"devices": 2}}},
    }
    found = small_comparison(first, tmp_path, monkeypatch, systems=systems, ours=["lsvcr", "small", "gone"])
    table = found.data["first"]
    assert found.missing, "gone is"
    others = set(table.standings) - {"lsvcr", "small"}
    assert {name: set(of) for name, of in table.tests.items()} == {"lsvcr": others | {"small"}, "small": others}
    pairs = [of["sampled"]["mrr"] for tests in table.tests.values() for of in tests.values()]
    assert [of.p_holm for of in pairs] == pytest.approx(holm([of.p for of in pairs]))
    mrr = {name: of.metrics["sampled"]["mrr"].mean for name, of in table.standings.items()}
    assert f"| lsvcr | mrr | {mrr['lsvcr'] / mrr['small'] - 1:+.1%} | small |" in markdown(found)
    assert page(found).count("<td>lsvcr against the best of ours named later</td>") == 1
    assert page(found).count("<td>small against") == 2, "the best baseline and the best floor"


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"], ["a", "b", "--out", "o"], [".", "--out", "o"]])
def test_compare_takes_two_reports_or_one_file(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exit_code == 2
    assert "give two report folders alone, or one experiment's YAML file and --out DIR" in result.stderr


def test_full_tries_everything_in_full(first: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stops(experiment: Any, **_options: object) -> None:
        asked.append(experiment.search)
        raise ConfigError("enough")

    monkeypatch.setattr(comparison, "run_comparison", stops)
    run(write_experiment(tmp_path / "e.yaml", first), tmp_path / "o", "--full")
    assert (asked[0].trials, asked[0].rungs) == ("all", ())


def test_an_encoder_that_learns_beside_a_frozen_one(
    toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Workers", Inline)
    monkeypatch.setattr(jobs, "REQUESTS", 5)
    encoder = str(save_llm(tmp_path / "encoder", "bert"))
    text = encode(toy_dataset, out=tmp_path / "text", settings=EncodeSettings(encoder=encoder))
    trained = {"trained_encoder": encoder, "learning_rate": 0.001}
    file = write_experiment(
        tmp_path / "e.yaml",
        {"dataset": str(toy_dataset.path), "text": str(text.path)},
        task="comment",
        ours=["trained"],
        systems={"dssm": {}, "trained": {"model": "dssm", "finetune": {"text": trained}}},
        search={"grid": {"train.learning_rate": [0.01]}},
        finetune={"model": {"dim": 16}, "train": {"max_epochs": 1, "batch_size": 16}},
    )
    found = comparison.run_comparison(load_experiment(file), out=tmp_path / "out", tell=lambda line: None)
    assert not found.missing, found.failures
    table = found.data["first"]
    assert table.standings["trained"].kind == "ours"
    costs = [table.chosen[name].cost for name in ("dssm", "trained")]
    assert costs[0].parameters == costs[1].parameters, "the encoder is none of the model's"
    assert all(of.request_ms is not None for of in costs)
