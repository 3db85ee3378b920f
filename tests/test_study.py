"""Studies: shared steps are made once, figures are those of the reports, a failed run stops no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_chains import ALIGN, fake_alignment, manifests, write_config
from typer.testing import CliRunner, Result

from reeltalk.artifacts import write_manifest
from reeltalk.cli import app
from reeltalk.data.dataset import Dataset, Task
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.evaluation.significance import compare, holm
from reeltalk.experiments.ablations import ablations, alignment_steps, backbones, comments, unseen
from reeltalk.experiments.chain import ChainSettings, load_chain
from reeltalk.experiments.jobs import Job
from reeltalk.experiments.outcome import Cell, Study, study_of
from reeltalk.experiments.runner import stages_of
from reeltalk.experiments.show import curves_page, grids, markdown
from reeltalk.experiments.study import Plan, run_study
from reeltalk.lock import only_writer

SEEDS = (0, 1)
PLAN = Plan(
    {
        "full": [],
        "slow": ["finetune.*.train.learning_rate=1e-5"],
        "broken": ["finetune.*.train.devices=2"],
        "no-lm": ["align.loss.lm=13", "finetune.comment=null"],
    },
    segments=("users.unseen", "items.others"),
    axis="something",
    points={"full": 0, "slow": 10},
)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def calls(patch: pytest.MonkeyPatch) -> list[str]:
    return fake_alignment(patch)


@pytest.fixture(scope="module")
def base(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, calls: list[str]) -> ChainSettings:
    file = write_config(tmp_path_factory.mktemp("study") / "chain.yaml", dataset=str(toy_dataset.path), align=ALIGN)
    return load_chain(file)


@pytest.fixture(scope="module")
def out(base: ChainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "out"


@pytest.fixture(scope="module")
def study(base: ChainSettings, out: Path) -> Study:
    return run_study(base, PLAN, seeds=SEEDS, out=out)


def reports(study: Study, task: str, variant: str) -> dict[int, Path]:
    cells = [cell for cell in study.cells if (cell.task, cell.variant) == (task, variant)]
    return {cell.seed: Path(cell.folders[f"{task}-report"]) for cell in cells}


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_shared_steps_are_made_once(study: Study, out: Path, calls: list[str]) -> None:
    made = sorted(
        path.name.rsplit("-", 1)[0] for path in (out / "runs").iterdir() if (path / "manifest.json").is_file()
    )
    # one encoding for all, one alignment a seed, and a model and its report for each of two variants, two seeds
    models = [name for name in ("comment", "comment-report", "item", "item-report") for _ in range(4)]
    assert made == sorted([*models, "text", *["aligned", "text-aligned"] * 2])
    assert calls.count("encode_aligned") == 2
    assert calls.count("align") == 4  # two of them fail


@pytest.mark.parametrize(("task", "protocols"), [("item", {"sampled", "full"}), ("comment", {"sampled"})])
def test_figures_are_those_of_the_reports(study: Study, task: str, protocols: set[str]) -> None:
    for variant in ("full", "slow"):
        reached = study.parts[task]["all"][variant]
        assert set(reached.mean) == protocols
        found = {seed: document(folder) for seed, folder in reports(study, task, variant).items()}
        assert set(found) == set(SEEDS)
        for protocol, metrics in reached.mean.items():
            for name, mean in metrics.items():
                by_seed = {seed: each["metrics"][protocol][name]["mean"] for seed, each in found.items()}
                assert {s: of[protocol][name] for s, of in reached.by_seed.items()} == pytest.approx(by_seed)
                assert mean == pytest.approx(np.mean(list(by_seed.values())))
        segment = found[1]["segments"]["items"]["others"]
        part = study.parts[task]["items.others"][variant]
        assert part.targets == segment["targets"] > 0
        assert part.by_seed[1]["sampled"]["mrr"] == pytest.approx(segment["metrics"]["sampled"]["mrr"]["mean"])


def test_the_paired_test_is_on_values_averaged_over_seeds(study: Study) -> None:
    found = study.parts["item"]["all"]["slow"].against_first["full"]["ndcg@10"]
    frames = {
        variant: [pl.read_parquet(folder / "per_user.parquet") for folder in reports(study, "item", variant).values()]
        for variant in ("full", "slow")
    }
    mean = {
        variant: first.with_columns(pl.Series("full.ndcg@10", (first["full.ndcg@10"] + second["full.ndcg@10"]) / 2))
        for variant, (first, second) in frames.items()
    }
    expected = compare(mean["slow"], mean["full"])["full"]["ndcg@10"]
    assert (found.difference, found.p_ttest) == pytest.approx((expected.difference, expected.p_ttest))
    means = {name: study.parts["item"]["all"][name].mean["full"]["ndcg@10"] for name in ("full", "slow")}
    assert found.difference == pytest.approx(means["slow"] - means["full"])
    assert study.parts["item"]["all"]["full"].against_first == {}


def made_up_cells(folder: Path, gains: dict[str, dict[str, float]]) -> list[Cell]:
    """Reports of an item task in which each variant gains so much on average, in each metric, on 60 users."""
    cells = []
    for place, (variant, of) in enumerate(gains.items()):
        rng = np.random.default_rng(place)
        luck = np.random.default_rng(99).random((60, 1))  # the same targets are hard for all
        values = {name: pl.Series(luck[:, 0] + gain + 0.1 * rng.standard_normal(60)) for name, gain in of.items()}
        frame = pl.DataFrame({"user_id": range(60), "target": range(60), **values})
        report = folder / variant
        report.mkdir()
        frame.with_columns(pl.lit(True).alias("segments.items.unseen")).write_parquet(report / "per_user.parquet")
        write_manifest(report, kind="report", config={}, parents={"dataset": "one"})
        cells.append(Cell(variant, 0, "item", {"item-report": str(report)}))
    return cells


def test_variants_of_a_table_are_corrected_together_each_metric_by_itself(tmp_path: Path) -> None:
    metrics = ("sampled.recall@10", "sampled.ndcg@10", "full.ndcg@10")
    sizes = {
        "full": (0, 0, 0),
        "alike": (0, 0, 0),
        "some": (0.036, 0, 0.3),
        "much": (0.2, -0.3, 0),
    }  # some: p of .03 by itself
    gains = {name: dict(zip(metrics, of, strict=True)) for name, of in sizes.items()}
    variants: dict[str, list[str]] = {name: [] for name in gains}
    study = study_of(made_up_cells(tmp_path, gains), variants=variants, seeds=[0], segments=["items.unseen"])
    for part in ("all", "items.unseen"):
        reached = study.parts["item"][part]
        assert reached["full"].p_holm == {}
        for protocol, metric in (name.split(".") for name in metrics):
            single = [reached[name].against_first[protocol][metric].p_ttest for name in ("alike", "some", "much")]
            assert [reached[name].p_holm[protocol][metric] for name in ("alike", "some", "much")] == holm(single)
    grid = next(iter(grids(study)))
    assert grid.title == "item task, sampled ranking (60 targets; *: Holm-corrected p < 0.05 against full)"
    assert grid.columns[-2] == "p (Holm)"
    shown = {row[0]: dict(zip(grid.columns, row, strict=True)) for row in grid.rows}
    stars = {name: [cell.endswith("*") for cell in (row["recall@10"], row["ndcg@10"])] for name, row in shown.items()}
    assert stars["full"] == stars["alike"] == [False, False]
    assert stars["much"] == [True, True]
    single_p = study.parts["item"]["all"]["some"].against_first["sampled"]["recall@10"].p_ttest
    assert single_p is not None
    assert 0.025 < single_p < 0.05  # by itself it would be told from luck
    assert stars["some"] == [False, False]
    corrected = study.parts["item"]["all"]["much"].p_holm["sampled"]["ndcg@10"]
    assert shown["much"]["p (Holm)"] == f"{corrected:.2g}"
    assert "Holm's method" in markdown(study)


def test_failed_runs_are_told_and_stop_nothing(study: Study, out: Path) -> None:
    failed = {(cell.variant, cell.task, cell.seed): cell for cell in study.failures}
    assert set(failed) == {("broken", task, seed) for task in ("item", "comment") for seed in SEEDS} | {
        ("no-lm", "item", seed) for seed in SEEDS
    }
    assert failed["no-lm", "item", 0].error == "ArithmeticError: the loss is no number"
    assert "devices=2, but a chain runs in one process" in str(failed["broken", "item", 0].error)
    assert "Traceback" in str(failed["no-lm", "item", 1].trace)
    kept = json.loads((out / "variants" / "no-lm" / "seed-1.json").read_text())
    assert kept["tasks"]["item"]["error"] == "ArithmeticError: the loss is no number"
    assert set(kept["tasks"]) == {"item"}
    assert "broken" not in study.parts["item"]["all"]


def test_what_is_written_and_shown(study: Study, out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {"runs", "variants", "study.json", "study.md", "study.html"}
    saved = json.loads((out / "study.json").read_text())
    assert saved["parts"]["item"]["all"]["full"]["mean"] == study.parts["item"]["all"]["full"].mean
    text = (out / "study.md").read_text()
    assert text == markdown(study)
    mean = study.parts["comment"]["all"]["slow"].mean["sampled"]
    shown = [line for line in text.splitlines() if line.startswith("| slow") and f"{mean['mrr']:.4f}" in line]
    assert shown
    assert f"{mean['recall@10']:.4f}" in shown[0]
    assert "the loss is no number" in text
    assert "0, 2 failed" in text
    assert "| no-lm |  |  |  |  |  |  |  | not run |" in text
    costs = {grid.title: grid for grid in grids(study)}
    seconds = costs["seconds"]
    # the stand-in for alignment says 2 s with seed 0, 3 s with seed 1
    assert seconds.rows[0][seconds.columns.index("aligned")] == "2.5"
    tokens = costs["tokens read"]
    assert tokens.rows[0][tokens.columns.index("aligned")] == "1,100"
    assert [name for name in costs["peak memory, MiB"].columns if name] == ["aligned", "item", "comment"]
    page = (out / "study.html").read_text()
    assert page == curves_page(study, axis=PLAN.axis, points=PLAN.points)
    assert page.count("<svg") == 3
    assert "something" in page


def test_run_again_it_makes_only_what_is_missing(
    study: Study, base: ChainSettings, out: Path, calls: list[str]
) -> None:
    before = manifests(out)
    gone = reports(study, "item", "slow")[1]
    (gone / "manifest.json").unlink()
    for path in gone.iterdir():
        path.unlink()
    del before[str((gone / "manifest.json").relative_to(out))]
    plan = Plan({name: PLAN.variants[name] for name in ("full", "slow")}, segments=PLAN.segments)
    trained = calls.count("finetune")
    again = run_study(base, plan, seeds=SEEDS, out=out)
    assert calls.count("finetune") == trained
    after = manifests(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert again.parts["item"]["all"] == study.parts["item"]["all"]


def test_aligned_once_the_seeds_are_those_of_fine_tuning(base: ChainSettings, tmp_path: Path, calls: list[str]) -> None:
    before, told = calls.count("align"), list[str]()
    plan = Plan({"full": [], "no-vcc": ["align.loss.vcc=0"]})
    found = run_study(base, plan, seeds=SEEDS, out=tmp_path, align_once=True, tell=told.append)
    assert not found.failures
    assert calls.count("align") == before + 2
    folders = {(cell.variant, cell.seed, cell.task): cell.folders for cell in found.cells}
    assert len(folders) == 8
    for variant in plan.variants:
        assert len({of["aligned"] for key, of in folders.items() if key[0] == variant}) == 1
    assert len({of[task] for (_, _, task), of in folders.items()}) == 8
    # data, texts, an alignment and its texts a variant, a model and a report a run: each is told once, by a name of
    # those that asked for it
    assert len(told) == 2 + 2 * 2 + 2 * 8
    assert told[:2] == ["[1/1] full, seed 0: data: done", "[2/2] full, seed 0: text: done"]
    assert any(line.startswith("[22/22] ") and "-report: " in line and "ndcg@10 0." in line for line in told)


def test_what_is_shared_is_made_before_what_shares_it(base: ChainSettings) -> None:
    """Also by a task that reads no text: both would else make the data at the same time."""
    assert stages_of(base, "item") == ["data", "text", "aligned", "text-aligned", "item", "item-report"]
    chain = load_chain(base=base, overrides=["align=null", "finetune.item=null", "finetune.item={name: sasrec}"])
    assert stages_of(chain, "item") == ["data", "item", "item-report"]
    assert stages_of(chain, "comment") == ["data", "text", "comment", "comment-report"]


def test_runs_that_read_the_same_are_one_job(base: ChainSettings, tmp_path: Path) -> None:
    def key(*overrides: str, task: Task = "item", until: str = "item-report") -> str:
        chain = load_chain(base=base, overrides=overrides)
        return Job.of(chain, name="any", task=task, seed=0, until=until, out=tmp_path).key

    assert key() == key("finetune.comment.train.learning_rate=0.1") == key("finetune.comment=null")
    assert key() != key("finetune.item.train.learning_rate=0.1")
    assert key() != key("align.loss.lm=0")
    assert key(until="item") == key("evaluate.max_targets=9", until="item") != key("align.loss.lm=0", until="item")
    for until in ("text", "text-aligned"):
        assert key(until=until) == key("finetune.item.train.seed=3", task="comment", until=until)
    assert key(until="text") == key("align.loss.lm=0", until="text")
    assert key(until="text") != key("encode.max_tokens=7", until="text")
    assert key(until="data") == key("encode.max_tokens=7", until="data")
    assert key(until="text-aligned") != key("align.loss.lm=0", until="text-aligned")
    shorter = "encode_aligned={max_tokens: 7}"  # than alignment reads: the same alignment, other vectors
    assert key(until="aligned") == key(shorter, until="aligned")
    assert key(until="text-aligned") != key(shorter, until="text-aligned")
    by_ids = ["align=null", "finetune.item=null", "finetune.item={name: sasrec}"]
    assert key(*by_ids) == key(*by_ids, "encode.max_tokens=7")  # two jobs of one folder would fail beside one another
    assert key(*by_ids) == key(*by_ids, f"align={json.dumps(ALIGN)}", "align.loss.lm=0")
    of_source = ["dataset=null", "source=threads", "raw=logs", "align=null"]
    assert key(*of_source) == key(*of_source, f"raw={Path('logs').resolve()}")
    assert key(*of_source) == key(*of_source, "prepare.source={opened_from: null}") != key(*of_source, "raw=log")
    floors = "item-floors"
    assert key(until=floors) == key("finetune.item.data.history_length=5", "align=null", until=floors)
    assert key(until=floors) != key("encode.max_tokens=7", until=floors)
    assert key(until=floors) != key("finetune.item.train.monitor_protocol=full", until=floors)
    assert key(*by_ids, until=floors) == key(*by_ids, "encode.max_tokens=7", until=floors) != key(until=floors)


def test_several_processes_reach_what_one_does(toy_dataset: Dataset, tmp_path: Path) -> None:
    file = write_config(tmp_path / "chain.yaml", dataset=str(toy_dataset.path))
    base = load_chain(file, overrides=["finetune.comment=null"])
    plan = Plan({"full": [], "slow": ["finetune.*.train.learning_rate=1e-5"], "broken": ["finetune.*.train.devices=2"]})
    one = run_study(base, plan, seeds=[0], out=tmp_path / "one")
    two = run_study(base, plan, seeds=[0], out=tmp_path / "two", jobs=2)
    assert two.parts == one.parts
    errors = [str(cell.error).replace(f"{tmp_path}/two", f"{tmp_path}/one") for cell in two.cells]
    assert errors == [str(cell.error) for cell in one.cells]
    assert len(manifests(tmp_path / "two")) == len(manifests(tmp_path / "one")) == 1 + 2 * 2
    assert (tmp_path / "two" / "workers.log").is_file()


def test_mistakes_of_every_variant_are_told_at_once(base: ChainSettings, tmp_path: Path) -> None:
    plan = Plan({"a/b": [], "typo": ["align.loss.scc=0"], "nothing": ["finetune.item.model.dims=1"]})
    with pytest.raises(ConfigError) as caught:
        run_study(base, plan, seeds=SEEDS, out=tmp_path / "o")
    for message in ("'a/b' names a folder", "variant typo", "did you mean 'vcc'?", "variant nothing", "'dim'?"):
        assert message in str(caught.value)
    assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="0 variants"):
        run_study(base, Plan({}), seeds=SEEDS, out=tmp_path / "o")


def test_a_folder_is_one_studys_at_a_time(base: ChainSettings, tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(ArtifactError, match="another run is writing"):
        run_study(base, Plan({"full": []}), seeds=[0], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_papers_ablations_each_change_what_they_name(base: ChainSettings) -> None:
    plan = ablations(base)
    assert len(plan.variants) == 10
    chains = {name: load_chain(base=base, overrides=of) for name, of in plan.variants.items()}
    assert next(iter(chains)) == "full"
    assert chains["full"] == base
    assert all(chain != base for name, chain in chains.items() if name != "full")
    aligned = {name: chain.align for name, chain in chains.items() if chain.align is not None}
    assert len(aligned) == 10
    assert (aligned["no-ssc"].loss.ssc, aligned["no-vcc"].loss.vcc, aligned["no-lm"].loss.lm) == (0, 0, 0)
    assert aligned["no-diversification"].data.history_probability == 0
    assert aligned["no-drawn-positions"].data.num_positions == aligned["full"].data.history_length
    assert aligned["no-alignment"].train.steps == 0
    assert aligned["frozen-encoder"].encoder == "frozen"
    assert [of.train.regularisation for of in chains["no-regularisation"].tasks.values()] == [0, 0]
    assert list(chains["no-comments"].tasks) == ["item"]
    assert not chains["no-comments"].tasks["item"].data.comments
    comment_only = load_chain(base=base, overrides=["finetune.item=null"])
    assert "no-comments" not in ablations(comment_only).variants


def test_the_papers_figures_as_plans(base: ChainSettings) -> None:
    plan = alignment_steps(base, [0, 100])
    assert plan.variants == {"steps-0": ["align.train.steps=0"], "steps-100": ["align.train.steps=100"]}
    assert plan.points == {"steps-0": 0, "steps-100": 100}
    chain = load_chain(base=base, overrides=unseen(base).variants["no-alignment"])
    assert chain.align is not None
    assert chain.align.train.steps == 0
    assert not any(of.model.use_item_ids for of in chain.tasks.values())  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="each once"):
        alignment_steps(base, [5, 5])
    for overrides in comments(base).variants.values():
        chain = load_chain(base=base, overrides=overrides)
        assert chain.align is not None
        assert (chain == base) == (not overrides)
    by_llm = backbones(base, ["minilm", "some/LLM-0.5B"]).variants
    assert list(by_llm) == ["minilm", "some-LLM-0.5B"]
    chain = load_chain(base=base, overrides=by_llm["some-LLM-0.5B"])
    assert chain.align is not None
    assert (chain.encode.encoder, chain.align.llm.name) == ("some/LLM-0.5B",) * 2
    with pytest.raises(ConfigError, match="each once"):
        backbones(base, ["minilm", "minilm"])
    with pytest.raises(ConfigError, match="two of them have one name, some-LLM; rename"):
        backbones(base, ["some/LLM", "some-LLM"])
    with pytest.raises(ConfigError, match="the chain has none"):
        unseen(load_chain(base=base, overrides=["align=null"]))


def ablate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


def test_ablate_prints_the_table(tmp_path: Path) -> None:
    # no model is trained here: every run fails at once, and is told
    file = write_config(tmp_path / "chain.yaml", dataset=str(tmp_path / "nowhere"), align=ALIGN)
    result = ablate(file, "--out", tmp_path / "o", "--seeds", "1")
    assert result.exit_code == 2, result.output
    assert "19 of 19 runs failed" in result.stderr
    assert "no-drawn-positions" in result.stdout
    assert "nowhere is not a folder" in (tmp_path / "o" / "study.md").read_text()
    assert "0, 1 failed" in result.stdout
    assert str(tmp_path / "o" / "study.md") in result.stdout
    for arguments, message in (
        (["--study", "step"], "did you mean 'steps'?"),
        (["--study", "steps"], "--steps and --study steps go together"),
        (["--study", "backbones"], "--llms and --study backbones go together"),
        (["--steps", "1"], "--steps and --study steps go together"),
        (["--study", "steps", "--steps", "a"], "expected whole numbers"),
        (["--set", "align=null"], "the chain has none"),
    ):
        wrong = ablate(file, "--out", tmp_path / "p", *arguments)
        assert wrong.exit_code == 2
        assert message in wrong.stderr
        assert not (tmp_path / "p").exists()
