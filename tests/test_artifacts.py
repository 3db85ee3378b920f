"""Folders that steps write: what may replace them, who may write them, and what is said where one was changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reeltalk import artifacts
from reeltalk.artifacts import MANIFEST, folder_kind, new_folder, read_manifest, resumable_folder, write_manifest
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ArtifactError
from reeltalk.lock import only_writer
from reeltalk.weights import save_weights

HOLD = "import sys; from pathlib import Path; from reeltalk.lock import only_writer\n"
HOLD += "with only_writer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def made(out: Path, *, kind: str = "thing", overwrite: bool = False, text: str = "x") -> Path:
    """A finished folder with one file."""
    with new_folder(out, kind=kind, overwrite=overwrite) as folder:
        (folder / "file").write_text(text)
        write_manifest(folder, kind=kind, config={"size": 1}, parents={}, facts={"rows": 3})
    return out


def changed(out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    manifest = json.loads((out / MANIFEST).read_text())
    change(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest))
    return out


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    made(out, overwrite=True, text="y")
    assert (out / "file").read_text() == "y"
    with pytest.raises(ArtifactError, match="holds a thing, which a report does not replace"):
        made(out, kind="report", overwrite=True)
    with pytest.raises(ArtifactError, match="or pass --overwrite to replace a finished one"):
        made(out)
    (out / "logs").mkdir()
    (out / "logs" / "raw.csv").write_text("my own")
    with pytest.raises(ArtifactError, match=r"also holds 1 files that are not of the thing, first logs/raw\.csv"):
        made(out, overwrite=True)
    assert (out / "logs" / "raw.csv").read_text() == "my own"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_old_folder_stays_until_the_new_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace = made(tmp_path / "out"), os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(source).name == ".out.partial":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", fails)
        made(out, overwrite=True, text="y")
    assert (out / "file").read_text() == "x"
    made(out, overwrite=True, text="y")
    assert (out / "file").read_text() == "y"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_run_finished_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def late(folder: Path, *, out: Path | None = None) -> Iterator[None]:
        with only_writer(folder, out=out):
            (tmp_path / "other").rename(tmp_path / "out")
            yield

    made(tmp_path / "other")
    monkeypatch.setattr(artifacts, "only_writer", late)
    with pytest.raises(ArtifactError, match="already exists and is not empty"):
        made(tmp_path / "out", text="y")
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_a_step_that_could_not_write_its_first_file_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "replace", full)
        resumable_folder(out, kind="thing", config={}, parents={})
    assert list(out.iterdir())
    assert not resumable_folder(out, kind="thing", config={}, parents={})
    assert resumable_folder(out, kind="thing", config={}, parents={})


def test_a_file_is_no_place_for_a_folder_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="file is a file"):
            made(tmp_path / "file", overwrite=overwrite)
    with only_writer(tmp_path / "file"), pytest.raises(ArtifactError, match="file is a file"):
        resumable_folder(tmp_path / "file", kind="thing", config={}, parents={})
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    made(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "file").is_file()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: manifest["config"].update(size=2), "was changed by hand"),
        (lambda manifest: manifest["parents"].update(dataset="zz"), "was changed by hand"),
        (lambda manifest: manifest.update(facts=None), r"is no manifest \(see facts\)"),
        (lambda manifest: manifest.pop("versions"), r"is no manifest \(see versions\)"),
        (lambda manifest: manifest.update(format=7, more=1, versions={"reeltalk": "9"}), r"format 7 \(reeltalk 9\)"),
        (lambda manifest: manifest.update(format=7, versions=None), "an unknown version"),
    ],
)
def test_a_changed_manifest_is_told(change: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=expected):
        read_manifest(changed(made(tmp_path / "out"), change), "thing")


def test_a_missing_fact_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    manifest = read_manifest(changed(made(tmp_path / "out"), lambda found: found["facts"].clear()), "thing")
    with pytest.raises(ArtifactError, match=r"manifest.json lacks the fact 'rows'"):
        manifest.facts["rows"]
    assert manifest.facts.get("rows") is None


@pytest.mark.parametrize("content", [b"", b"zz", b"[1]", b"7", b"\xff\xfe\x00"])
def test_what_is_no_manifest_is_told(content: bytes, tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    (out / MANIFEST).write_bytes(content)
    for read in (lambda: read_manifest(out, "thing"), lambda: folder_kind(out)):
        with pytest.raises(ArtifactError, match=r"manifest.json cannot be read .* delete the folder"):
            read()


def test_a_damaged_table_is_told(toy_tables: Path, tmp_path: Path) -> None:
    from reeltalk.data.prepare import prepare

    dataset = prepare("tables", raw=toy_tables, out=tmp_path / "out")
    dataset.items.drop("title").write_parquet(dataset.path / "items.parquet")
    file = dataset.path / "item_events.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    fresh = Dataset.load(dataset.path)
    with pytest.raises(ArtifactError, match=r"items.parquet lacks title"):
        fresh.items  # noqa: B018
    with pytest.raises(ArtifactError, match=r"item_events.parquet cannot be read .* damaged"):
        fresh.item_events  # noqa: B018


def test_a_second_run_does_not_write_beside_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial = tmp_path / ".out.partial"
    for folder in (out, partial):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            with pytest.raises(ArtifactError, match="another run is writing"):
                if folder == out:
                    with only_writer(out):
                        pass
                else:
                    made(out)
            assert folder.is_dir()
            first.kill()
    made(out)  # a run that was killed holds nothing
    assert read_manifest(out, "thing").facts["rows"] == 3
    assert not partial.exists()


def test_of_the_processes_of_several_devices_the_first_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_writer(tmp_path):
        with pytest.raises(ArtifactError, match="another run is writing"), only_writer(tmp_path):
            pass
        monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
        with only_writer(tmp_path):
            pass


def test_layers_may_share_weights(tmp_path: Path) -> None:
    """As the output layer of a model of one's own with its item embedding."""
    items, out = nn.Embedding(5, 3), nn.Linear(3, 5)
    out.weight = items.weight
    model = nn.ModuleDict({"item_embedding": items, "out": out})
    save_weights(model.state_dict(), tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert sorted(saved) == ["item_embedding.weight", "out.bias", "out.weight"]
    assert torch.equal(saved["out.weight"], items.weight)
    model.load_state_dict(saved)
