"""The model of docs/own-model.md: trained and measured as the page says, opened again, and held to the contract."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_models as contract
from test_training import write_text_table
from typer.testing import CliRunner

from reeltalk import api
from reeltalk.cli import app
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.models import MODELS, model_spec

PAGE = Path(__file__).parent.parent / "docs" / "own-model.md"
MODULE, NAME = "recent_items", "recent_items:SPEC"


def block(language: str) -> str:
    """The only block of code in that language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def go_to(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """As a new process that starts in `folder`: nothing of the module is left in this one."""
    patch.chdir(folder)
    patch.setattr(sys, "path", [path for path in sys.path if not Path(path, f"{MODULE}.py").exists()])
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def home(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page has it: the file, data/ and text/."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{MODULE}.py").write_text(block("python"), encoding="utf-8")
    shutil.copytree(toy_dataset.path, folder / "data")
    write_text_table(toy_dataset, folder / "text")
    return folder


@pytest.fixture(scope="module")
def printed(home: Path) -> Iterator[dict[str, str]]:
    """What each command of the page prints, run in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        go_to(home, patch)
        shown = {}
        for line in block("sh").splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "reeltalk"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            shown[arguments[0]] = result.stdout
        yield shown


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(home, monkeypatch)


def test_the_commands_of_the_page_train_it_and_measure_it(printed: dict[str, str], home: Path) -> None:
    assert "model.dim" in printed["settings"]
    report = json.loads((home / "recent-report" / "report.json").read_text())
    assert report["system"] == NAME
    reached = {system: of["metrics"]["sampled"]["ndcg@10"]["mean"] for system, of in report["systems"].items()}
    assert reached[NAME] > max(reached["random"], reached["popularity"]) + 0.05  # toy users keep to a topic
    assert NAME in printed["evaluate"]


def test_a_saved_one_is_found_again_where_its_file_is(
    printed: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = api.load_system(home / "recent").item_vectors().numpy()
    assert type(api.load_system(home / "recent").recommender).__module__ == MODULE
    go_to(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=f"no module '{MODULE}', installed or in {tmp_path}; run this") as caught:
        api.load_system(home / "recent")
    assert "PYTHONPATH" in str(caught.value)
    monkeypatch.syspath_prepend(home)
    assert np.array_equal(api.load_system(home / "recent").item_vectors().numpy(), vectors)


def test_a_saved_one_does_not_fit_other_code(
    printed: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = block("python").replace("nn.LayerNorm(", "nn.RMSNorm(")
    (tmp_path / f"{MODULE}.py").write_text(other, encoding="utf-8")
    go_to(tmp_path, monkeypatch)
    with pytest.raises(ArtifactError, match=rf"does not fit {NAME} as it is now.*norm\.bias"):
        api.load_system(home / "recent")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recent_items:SPECS", "SPECS in .*recent_items.py is not there; did you mean 'SPEC'"),
        ("recent_items:RecentItems", "is no ModelSpec; choices: SPEC"),
        ("json:SPEC", r"put SPEC = ModelSpec\(\.\.\) there"),
        ("recent_items.py:SPEC", "no module 'recent_items.py'"),
        ("recent-items:SPEC", "expected package.module:SPEC"),
        (":SPEC", "expected package.module:SPEC"),
        ("recent_items", "or package.module:SPEC for your own"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.finetune_settings(name, "item")


def test_what_the_file_itself_gets_wrong_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import recent_itemz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="recent_itemz"):
        api.finetune_settings("needy:SPEC", "item")
    with pytest.raises(ConfigError, match="does the item task, not comment"):
        monkeypatch.chdir(PAGE.parent)
        model_spec("sasrec", "comment")


def test_a_chain_may_name_it(home: Path) -> None:
    from reeltalk.experiments.chain import load_chain

    chain = load_chain(overrides=["dataset=data", f"finetune.item={{name: '{NAME}', model: {{dim: 8}}}}"])
    assert chain.tasks["item"].name == NAME
    assert chain.reads_text("item")


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_it_keeps_the_contract(
    precision: tuple[type[np.float32 | np.float64], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, NAME, model_spec(NAME, "item"))
    for seed in range(2):
        contract.test_a_position_of_a_whole_history_equals_the_prefix_alone(NAME, "item", *precision, seed)
        contract.test_future_events_change_nothing(NAME, "item", seed)
    contract.test_full_windows_stand_beside_padding(NAME, "item")
    contract.test_a_row_alone_equals_the_row_in_a_batch(NAME, "item", *precision)
    contract.test_the_target_itself_does_not_show(NAME, "item")
    contract.test_every_parameter_gets_a_gradient(NAME)
    contract.test_saved_and_loaded_is_bit_equal(NAME, "item", tmp_path)
    contract.test_a_model_reads_what_its_spec_says(NAME, "item")
