"""The benchmarks of the models that RecBole has too, our side and what both sides share."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import agreement, baselines, logs, pairs, run
from benchmarks.protocol import WIDTH
from benchmarks.rows import OURS
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.models import MODELS
from reeltalk.training.system import System


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_a_pair_is_the_model_of_that_name_and_its_sizes_are_known_to_ours(name: str) -> None:
    chosen = baselines.settings(name, "item", passes=2, seed=0)
    assert MODELS[name].make.__name__ == pairs.PAIRS[name].recbole
    assert chosen.model.model_dump().items() >= pairs.PAIRS[name].ours.items()


def test_every_model_has_the_protocols_sizes_and_a_name_of_its_own() -> None:
    jobs = [(name, task) for name, spec in MODELS.items() for task in spec.tasks]
    for name, task in jobs:
        assert baselines.settings(name, task, passes=2, seed=0).model.model_dump()["dim"] == WIDTH
    assert len({baselines.title_of(name, task) for name, task in jobs}) == len(jobs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.write(
        logs.generate(150, num_items=400, num_events=1_500, seed=1), tmp_path_factory.mktemp("b") / "tiny"
    )


def of_four(raw: Path, out: Path) -> Dataset:
    source = {"users_file": logs.USERS_FILE, "items_file": logs.ITEMS_FILE}
    settings = PrepareSettings(source=source, num_item_negatives=1, min_user_events=4, min_item_events=1)
    return prepare("sequences", raw=raw, out=out, settings=settings)


def test_events_for_recbole_are_the_datasets_in_order(tiny: Path, tmp_path: Path) -> None:
    dataset = of_four(tiny, tmp_path / "dataset")
    folder = logs.write_events(dataset, tmp_path / "events")
    atomic = np.loadtxt(folder / "events.inter", delimiter="\t", skiprows=1, dtype=np.int64)
    assert np.array_equal(atomic[:, :2], dataset.item_events.select("user_id", "item_id").to_numpy())
    assert np.all(np.diff(atomic[:, 2]) > 0)
    trained = dataset.item_events.filter(split=int(Split.TRAIN))
    assert pairs.training_targets(folder) == len(trained) - dataset.num_users


def test_datasets_that_recbole_would_split_otherwise_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fewer than four events.*min_user_events=4; items without events"):
        logs.write_events(logs.dataset_of(tiny, tmp_path / "short", seed=0), tmp_path / "events")
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("name", ["gru4rec", "bert4rec"])
def test_a_baseline_is_measured(name: str, tiny: Path, tmp_path: Path) -> None:
    found = list(baselines.measure(name, "item", raw=tiny, text=None, scratch=tmp_path, passes=2, seed=0))
    model = pairs.PAIRS[name].recbole
    assert [one.name for one in found] == [pairs.pass_of(model), pairs.memory_of(model)]
    assert all(one.value > 0 for one in found)
    assert ("hidden" in found[0].note) == (name == "bert4rec")


def test_a_causal_model_predicts_every_training_target_once(tiny: Path, tmp_path: Path) -> None:
    dataset = logs.dataset_of(tiny, tmp_path / "dataset", seed=0)
    system = System.new(dataset, text=None, settings=baselines.settings("gru4rec", "item", passes=2, seed=0))
    assert baselines.predicted(system) == pairs.training_targets(tiny)


def test_agreement_has_recboles_settings_and_prints_what_training_came_to(tiny: Path, tmp_path: Path) -> None:
    dataset = of_four(tiny, tmp_path / "dataset")
    chosen = agreement.settings("gru4rec", dataset, batch=64, patience=1, passes=2, seed=5)
    windows = System.new(dataset, text=None, settings=chosen).training_windows()
    steps = -(-int(windows.num_targets.sum()) // 64)
    assert abs(-(-len(windows) // chosen.train.batch_size) - steps) <= 1
    assert (chosen.train.learning_rate, chosen.train.monitor_protocol) == (0.001, "full")
    trained = agreement.trained(dataset, chosen, tmp_path / "model")
    assert trained.seed == 5 and trained.passes in (1, 2)
    assert all(0 <= value <= 1 for value in trained.values.values())


def test_gru4rec_learns_from_every_prefix_where_it_is_trained_as_recboles(tiny: Path, tmp_path: Path) -> None:
    dataset = of_four(tiny, tmp_path / "dataset")
    chosen = agreement.settings("gru4rec", dataset, batch=64, patience=1, passes=1, seed=5)
    whole, prefixes = (
        of.new(dataset, text=None, settings=chosen).training_windows() for of in (System, agreement.PrefixSystem)
    )
    assert set(prefixes.num_targets.tolist()) == {1}
    assert len(prefixes) == whole.num_targets.sum() > len(whole)
    trained = agreement.gru4rec_as_recbole(dataset, chosen, tmp_path / "model", batch=64)
    assert (trained.seed, trained.passes) == (5, 1)
    [one, _] = pairs.measured("GRU4Rec" + agreement.AS_RECBOLE, [trained], system=OURS, packages=["numpy"])
    [share] = agreement.beside([one], {"agreement: test Recall@10 of GRU4Rec": 2 * one.value or 1.0})
    assert share.name == "agreement: test Recall@10 of GRU4Rec trained as RecBole's, ours to RecBole's"


def test_agreement_is_the_mean_over_seeds_and_our_share_of_recboles() -> None:
    values = ({"recall": 0.2, "ndcg": 0.1}, {"recall": 0.4, "ndcg": 0.1})
    trainings = [pairs.Trained(seed, 7 + seed, each) for seed, each in enumerate(values)]
    ours = pairs.measured("SASRec", trainings, system=OURS, packages=["numpy"])
    assert [one.name for one in ours] == ["agreement: test Recall@10 of SASRec", "agreement: test NDCG@10 of SASRec"]
    assert [one.value for one in ours] == pytest.approx([0.3, 0.1])
    assert ours[0].note == "mean of 0.2000 (seed 0, 7 passes), 0.4000 (seed 1, 8 passes)"
    [share] = agreement.beside(ours, {ours[1].name: 0.08})
    assert share.name == "agreement: test NDCG@10 of SASRec, ours to RecBole's"
    assert share.value == pytest.approx(1.25)


def test_training_is_over_when_validation_improves_no_more() -> None:
    def over(*values: float, passes: int = 9) -> bool:
        return pairs.is_over(values, patience=2, passes=passes)

    assert not over() and not over(0.1) and not over(0.2, 0.1) and not over(0.1, 0.2, 0.2)
    assert over(0.2, 0.1, 0.2) and over(0.1, 0.2, 0.1, 0.1) and over(0.1, 0.2, passes=2)


def test_agreement_asks_for_a_dataset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["run", "--only", "align", "agreement"])
    with pytest.raises(SystemExit):
        run.main()
    assert "give --dataset" in capsys.readouterr().err


def test_options_of_every_script_can_be_filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> None:
    """What run.py gives a script is an option with its value; a fraction that was not asked for is left out."""
    ones = np.ones(3, np.int64)
    made_up = logs.Logs(ones, ones, topic=ones[:1], num_users=1, num_items=1, seed=0)
    monkeypatch.setattr(logs, "generate", lambda seed: made_up)
    of_four(tiny, tmp_path / "dataset")
    given: dict[str, list[str]] = {}
    monkeypatch.setattr(run, "run", lambda script, options, peers: given.update({script.module: options}) or [])
    for fraction, models in ((None, []), (0.5, ["gru4rec", "narm"])):
        chosen = argparse.Namespace(
            no_peers=False, seed=3, passes=1, fraction=fraction, texts=None, repeats=1, peers=tmp_path, seeds=2,
            dataset=tmp_path / "dataset", checkpoints=tmp_path / "kept", models=models,
        )  # fmt: skip
        for name in run.BENCHMARKS:
            run.benchmark(name, chosen)
        flat = given["benchmarks.peers.recbole_baselines"]
        assert ("--fraction=0.5" in flat) == (fraction == 0.5) and flat[-2:] == ["--seed", "3"]
        asked = ["--models", *models] if models else []
        assert flat[-2 - len(asked) : -2] == asked and ("--models" in flat) == bool(asked)
    flat = given["benchmarks.peers.recbole_agreement"]
    assert flat[2:] == ["--checkpoints", str(tmp_path / "kept"), "--seeds", "2", *asked, "--seed", "3"]
