"""The experiments that are the papers' tables: they can be run, and ask what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from reeltalk.errors import ConfigError
from reeltalk.experiments.experiment import ExperimentSettings
from reeltalk.experiments.flows import Line, line_flow
from reeltalk.experiments.loading import load_experiment
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.search import trials_of
from reeltalk.models import MODELS


def papers_table(name: str, raw: Path, *given: str) -> ExperimentSettings:
    """A table's file with a raw log for each data set that needs one, and further overrides."""
    file = Path(__file__).parent.parent / "experiments" / f"{name}.yaml"
    with pytest.raises(ConfigError, match="raw is missing") as caught:
        load_experiment(file)
    assert all("raw is missing" in problem for problem in caught.value.problems)
    overrides = [f"data.{problem.split('.')[1]}.raw={raw}" for problem in caught.value.problems]
    return load_experiment(file, overrides=[*overrides, *given])


@pytest.mark.parametrize("name", ["table2", "table3", "table4"])
def test_the_papers_tables_can_be_run(name: str, tmp_path: Path) -> None:
    experiment = papers_table(name, tmp_path)
    budget = experiment.search.trials
    assert isinstance(budget, int)
    of_search = [trials_of(experiment.grid(of), limit=budget, seed=0) for of in experiment.of_systems]
    assert {len(trials) for trials in of_search} == {budget}, "the same budget for all"
    for data in experiment.of_data:
        for system in experiment.of_systems:
            assert experiment.chain(data, system, {}).tasks[experiment.task].model.model_dump()["dim"] == 64
        chain = experiment.chain(data, "lsvcr-aligned", {"train.learning_rate": 0.1}, seed=2, epochs=3)
        assert chain.align is not None
        assert chain.align.train.seed == 0
        if name != "table3":
            for system in ("s3rec", "unisrec", "vqrec"):
                pretrained = experiment.chain(data, system, {}, seed=2)
                assert pretrained.pretrain is not None
                assert pretrained.pretrain.train.seed == 0
                assert pretrained.pretrain.data == pretrained.tasks["item"].data
        of_task = chain.tasks[experiment.task]
        assert (of_task.name, of_task.train.learning_rate, of_task.train.seed) == ("lsvcr", 0.1, 2)
        assert (of_task.train.max_epochs, of_task.train.patience) == (3, 2 if data == "threads" else 3)


def test_ours_may_be_left_out_like_any_system_but_not_all(tmp_path: Path) -> None:
    left_out = "systems.lsvcr-aligned=null"
    experiment = papers_table("table2", tmp_path, left_out, "data.simulator=null")
    assert (experiment.of_ours, list(experiment.of_data)) == (("lsvcr",), ["threads"])
    assert "lsvcr-aligned" not in experiment.of_systems
    with pytest.raises(ConfigError, match="ours='lsvcr-aligned', 'lsvcr' are all left out"):
        papers_table("table2", tmp_path, left_out, "systems.lsvcr=null")


def test_each_comment_baseline_is_there_with_a_frozen_and_a_trained_encoder(tmp_path: Path) -> None:
    experiment = papers_table("table3-trained", tmp_path)
    baselines = {name for name, spec in MODELS.items() if spec.tasks == ("comment",)}
    assert set(experiment.of_systems) == {*baselines, *(f"{name}-trained" for name in baselines), "lsvcr"}
    for name in baselines:
        frozen, trained = (experiment.chain("threads", of, {}).tasks["comment"] for of in (name, f"{name}-trained"))
        assert (frozen.text.trained_encoder, trained.text.trained_encoder) == (None, "minilm")
        assert trained.model_dump(exclude={"text"}) == frozen.model_dump(exclude={"text"})


def test_beauty_ranks_all_items_to_choose_as_to_test(tmp_path: Path) -> None:
    experiment = papers_table("beauty", tmp_path)
    assert set(experiment.of_systems) == {"caser", "gru4rec", "bert4rec", "sasrec", "fdsa", "s3rec"}
    for system in experiment.of_systems:
        chain = experiment.chain("beauty", system, {})
        train = chain.tasks["item"].train
        assert (train.monitor_protocol, train.max_validation_targets) == ("full", 0)
        assert chain.prepare.split == "leave_one_out"
        assert len(trials_of(experiment.grid(system), limit=None, seed=0)) == 2


def test_data_sections_may_share_a_dataset_and_differ_in_its_texts(tmp_path: Path) -> None:
    """The dataset is then one job, and made before the two of its texts, which would both write it."""
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "task: item\nours: [lsvcr]\nsystems: {lsvcr: {}}\n"
        "data: {short: {source: simulator, encode: {max_tokens: 8}}, long: {source: simulator}}\n"
    )
    experiment = load_experiment(file)
    keys = []
    for data in experiment.of_data:
        flow = line_flow(experiment, Line(data, "lsvcr"), out=tmp_path)
        (first,) = next(flow)
        (second,) = flow.send([Cell("", 0, "item", {})])
        assert (first.until, second.until) == ("data", "text")
        keys.append((first.key, second.key))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
