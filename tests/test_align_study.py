"""A study with the real alignment, tiny: the variants that go another way through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_align import small_settings
from tiny_chains import TINY, write_config
from tiny_llms import save_llm

from reeltalk.artifacts import Manifest, read_manifest
from reeltalk.data.dataset import Dataset
from reeltalk.experiments.ablations import ablations
from reeltalk.experiments.chain import load_chain
from reeltalk.experiments.outcome import Study
from reeltalk.experiments.study import Plan, run_study
from reeltalk.llm.align import LLM
from reeltalk.text.table import TextTable
from reeltalk.training.start import ALIGNED

VARIANTS = ("full", "no-alignment", "frozen-encoder", "no-comments", "no-lm")


@pytest.fixture(scope="module")
def study(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    llm = save_llm(root / "llm", "qwen3")
    file = write_config(
        root / "chain.yaml",
        dataset=str(toy_dataset.path),
        encode={"encoder": str(llm), "precision": "float32", "max_tokens": 6},
        align=small_settings(llm).model_dump(mode="json"),
        finetune={"item": TINY["finetune"]["item"]},
    )
    base = load_chain(file)
    everything = ablations(base).variants
    return run_study(base, Plan({name: everything[name] for name in VARIANTS}), seeds=[3], out=root / "out")


def folder(study: Study, variant: str, step: str) -> Path:
    return Path(next(cell for cell in study.cells if cell.variant == variant).folders[step])


def aligned(study: Study, variant: str) -> Manifest:
    return read_manifest(folder(study, variant, ALIGNED), ALIGNED)


def test_every_variant_reaches_a_report(study: Study) -> None:
    assert [cell.error for cell in study.cells] == [None] * len(VARIANTS)
    assert list(study.parts["item"]["all"]) == list(VARIANTS)
    assert len({folder(study, variant, "text") for variant in VARIANTS}) == 1
    digests = {read_manifest(folder(study, variant, "item"), "model").digest for variant in VARIANTS}
    assert len(digests) == len(VARIANTS)


def test_each_variant_went_its_way_through_alignment(study: Study) -> None:
    everything = {"lm", "sr", "prefix", "ssc", "vcc", "teacher"}
    expected = {name: everything for name in VARIANTS} | {
        "no-alignment": {"sr", "prefix"},
        "no-lm": everything - {"lm"},
    }
    assert {name: set(aligned(study, name).facts["losses"]) for name in VARIANTS} == expected
    trained = {name for name in VARIANTS if aligned(study, name).facts["trained_encoder"]}
    assert trained == {"full", "no-comments", "no-lm"}
    with_llm = {name for name in VARIANTS if (folder(study, name, ALIGNED) / LLM).is_dir()}
    assert with_llm == set(VARIANTS) - {"no-alignment"}
    assert "llm" in aligned(study, "frozen-encoder").parents
    assert aligned(study, "frozen-encoder").facts["text_tokens"] == 0
    assert aligned(study, "no-comments").facts["losses"]["vcc"] == 0


def test_finetuning_reads_what_its_alignment_encoded(study: Study) -> None:
    vectors = {}
    for name in VARIANTS:
        model = read_manifest(folder(study, name, "item"), "model")
        table = TextTable.load(folder(study, name, "text-aligned"))
        digest = aligned(study, name).digest
        assert (model.parents["aligned"], model.parents["text"]) == (digest, table.encoding)
        assert table.manifest.config["weights"] == digest
        assert model.config["model"]["text_map"] == "none"
        vectors[name] = np.asarray(table.vectors[np.lexsort(np.load(table.path / "keys.npy").T)], np.float32)
    for name in VARIANTS[1:]:
        assert not np.allclose(vectors[name], vectors["full"], atol=1e-4), name
