"""The report folder: what it holds, that it reads back, and that its page needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reeltalk.artifacts import Manifest, read_manifest
from reeltalk.data.dataset import Dataset, Task
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.data.ragged import Ragged
from reeltalk.errors import ArtifactError, DataError
from reeltalk.evaluation.floors import floors
from reeltalk.evaluation.page import best_other, render
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.ranker import Scores
from reeltalk.evaluation.report import Report, write_report
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.evaluation.significance import compare
from reeltalk.experiments import standings as held
from reeltalk.experiments.comparison_text import gain

HOSTILE = "<b>model</b> & 'co'"
MODEL = Manifest("model", 1, {"train": {"seed": 11, "note": "</pre><script>"}}, {}, {}, {}, {"torch": "2"}, "feedbeef")
LOG = pl.DataFrame(
    {
        "step": [0, 20, 40, 60],
        "epoch": [0, 0, 1, 1],
        "loss/vr": [3.0, 2.0, None, 1.5],
        "loss/reg": [1.0, 0.9, None, 0.8],
        "validation": [None, None, 0.1, None],
    }
)


class Guess:
    """Comments and items by id: a system with something to say, but little."""

    name = HOSTILE

    def __init__(self, task: Task) -> None:
        self.task: Task = task

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return np.sin(candidates.values).astype(np.float32)


@pytest.fixture(scope="module", params=["item", "comment"])
def reports(request: pytest.FixtureRequest, toy_dataset: Dataset) -> dict[str, Report]:
    task = request.param
    settings = EvaluationSettings(bootstrap_samples=40, ks=(2, 5, 10))
    return evaluate(toy_dataset, {HOSTILE: Guess(task), **floors(toy_dataset, task)}, settings=settings)


@pytest.fixture(scope="module")
def folder(reports: dict[str, Report], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(reports[HOSTILE], out, model=MODEL, training_log=LOG)
    return out


def read(folder: Path) -> dict[str, Any]:
    """report.json as strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    document: dict[str, Any] = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    return document


def test_a_report_folder_is_whole_and_names_its_parents(folder: Path, toy_dataset: Dataset) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "report.json",
        "per_user.parquet",
        "report.html",
    }
    manifest = read_manifest(folder, "report")
    assert manifest.parents == {"dataset": toy_dataset.manifest.digest, "model": "feedbeef"}


def test_report_json_has_stable_keys_and_shapes(folder: Path, reports: dict[str, Report], toy_dataset: Dataset) -> None:
    document = read(folder)
    assert set(document) == {
        "system", "protocol", "metrics", "user_means", "segments", "seeds", "systems", "comparisons", "dataset",
        "model", "versions",
    }  # fmt: skip
    assert document["system"] == HOSTILE
    assert list(document["metrics"]) == ["sampled"]
    sampled = document["metrics"]["sampled"]
    names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "hit") for k in (2, 5, 10)} | {"mrr"}
    assert set(sampled) == set(document["user_means"]["sampled"]) == names
    for found in sampled.values():
        assert set(found) == {"mean", "low", "high"}
        assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert document["seeds"] == {"evaluation": 0, "candidates": toy_dataset.manifest.config["seed"], "model": 11}
    assert document["dataset"]["digest"] == toy_dataset.manifest.digest
    assert set(document["systems"]) == set(reports)
    assert set(document["comparisons"]) == set(reports) - {HOSTILE}
    for found in document["systems"].values():
        assert set(found) == {"metrics", "segments"}
    assert document["systems"][HOSTILE]["metrics"] == document["metrics"]
    if document["protocol"]["task"] == "item":
        full = document["systems"]["popularity"]["metrics"]["full"]
        assert set(full) == names | {"coverage@2", "coverage@5", "coverage@10"}
        assert full["coverage@5"]["low"] is None


def test_per_user_values_have_a_row_a_target_and_add_up_to_the_report(folder: Path, toy_dataset: Dataset) -> None:
    document, values = read(folder), pl.read_parquet(folder / "per_user.parquet")
    assert values.columns[:5] == ["user_id", "user_key", "target", "time", "split"]
    assert not values.select("user_id", "target").is_duplicated().any()
    keys = dict(toy_dataset.users.select("user_id", "user_key").rows())
    assert all(keys[user] == key for user, key in values.select("user_id", "user_key").rows())
    for metric, found in document["metrics"]["sampled"].items():
        assert values[f"sampled.{metric}"].mean() == pytest.approx(found["mean"])
    assert values["sampled.rank"].min() >= 1  # type: ignore[operator]
    assert (values["sampled.rank"] <= values["sampled.candidates"]).all()


def test_the_page_is_well_formed_and_needs_nothing_beside_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page == render(read(folder), training_log=LOG)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", without_namespaces)
    assert HOSTILE not in page
    assert "&lt;b&gt;model&lt;/b&gt;" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(ids)) == len(ids)

    class Tags(HTMLParser):
        open: list[str]

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    tags = Tags()
    tags.open = []
    tags.feed(page)
    assert tags.open == []


def test_the_page_shows_every_system_the_best_in_bold_and_the_gain(folder: Path) -> None:
    page, document = (folder / "report.html").read_text(), read(folder)
    sampled = {name: found["metrics"]["sampled"] for name, found in document["systems"].items()}
    best = max(found["mrr"]["mean"] for found in sampled.values())
    assert f'<td class="best">{best:.4f}' in page
    for name in set(sampled) - {HOSTILE}:
        assert f"<td>{name}</td>" in page
    other = best_other(document, "sampled", "mrr")
    assert other is not None
    assert sampled[other]["mrr"]["mean"] == max(found["mrr"]["mean"] for n, found in sampled.items() if n != HOSTILE)
    assert f"{document['comparisons'][other]['sampled']['mrr']['gain']:+.1%}" in page
    for words in ("over targets, never over means", "cold-start", "20-49", "loss/vr", "Protocol", "seed"):
        assert words in page


def test_a_page_without_intervals_model_or_training_log(toy_dataset: Dataset, tmp_path: Path) -> None:
    settings = EvaluationSettings(bootstrap_samples=0, ks=(3,))
    report = evaluate(toy_dataset, {"alone": Guess("comment")}, settings=settings)["alone"]
    write_report(report, tmp_path / "out")
    with pytest.raises(ArtifactError, match="already exists"):
        write_report(report, tmp_path / "out")
    write_report(report, tmp_path / "out", overwrite=True)
    document = read(tmp_path / "out")
    assert document["model"] is None
    assert document["metrics"]["sampled"]["mrr"]["low"] is None
    assert document["comparisons"] == {}
    assert "Training</h2>" not in (tmp_path / "out" / "report.html").read_text()


def test_a_page_of_a_split_that_has_no_days(toy_tables: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(split="leave_one_out", num_item_negatives=20)
    dataset = prepare("tables", raw=toy_tables, out=tmp_path / "dataset", settings=settings)
    systems = {"alone": Guess("item"), **floors(dataset, "item")}
    report = evaluate(dataset, systems, settings=EvaluationSettings(bootstrap_samples=0, full_ranking=False))["alone"]
    write_report(report, tmp_path / "out")
    assert read(tmp_path / "out")["protocol"]["test_from"] is None
    assert "<dd>leave_one_out</dd>" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_evaluation_writes_the_same_bytes(reports: dict[str, Report], folder: Path, tmp_path: Path) -> None:
    again = write_report(reports[HOSTILE], tmp_path / "again", model=MODEL, training_log=LOG)
    assert again.digest == read_manifest(folder, "report").digest


def test_report_folders_are_compared_by_path(reports: dict[str, Report], folder: Path, tmp_path: Path) -> None:
    write_report(reports["random"], tmp_path / "random")
    found = compare(folder, tmp_path / "random", samples=40)
    for metric, beside in reports[HOSTILE].comparisons["random"]["sampled"].items():
        assert asdict(found["sampled"][metric]) == pytest.approx(asdict(beside)), metric
    other = replace(reports["random"], dataset=reports["random"].dataset | {"digest": "another"})
    write_report(other, tmp_path / "random", overwrite=True)
    with pytest.raises(DataError, match="the other of dataset another"):
        compare(folder, tmp_path / "random")


@pytest.mark.parametrize(
    ("difference", "p", "is_up"), [(0.1, 0.04, True), (0.1, 0.05, False), (0.1, None, False), (-0.1, 0.01, False)]
)
def test_a_gain_is_coloured_where_a_test_bears_it_out(
    folder: Path, difference: float, p: float | None, is_up: bool
) -> None:
    document = read(folder)
    for of_metrics in (of for protocols in document["comparisons"].values() for of in protocols.values()):
        for found in of_metrics.values():
            found.update(difference=difference, gain=difference, p_ttest=p)
    assert ('class="up"' in render(document)) == is_up


def test_a_comparison_goes_by_the_corrected_p_value() -> None:
    metrics = {"full": {"mrr": held.Spread(0.2, None, None, {0: 0.2})}}
    standings = {"ours": held.Standing("ours", metrics, {}), "other": held.Standing("baseline", metrics, {})}
    for difference, p_holm, is_up in ((0.1, 0.04, True), (0.1, 0.06, False), (0.1, None, False), (-0.1, 0.01, False)):
        tests = {"ours": {"other": {"full": {"mrr": held.Test(difference, None, 0.01, p_holm)}}}}
        found = gain(held.Table(9, 9, standings, tests, {}, {}), "ours", "full", "mrr", kind="baseline")
        assert found is not None
        assert (found.over, found.is_up) == ("other", is_up)
