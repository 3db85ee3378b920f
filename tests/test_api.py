"""The README's example is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import reeltalk
from reeltalk import api

README = Path(reeltalk.__file__).parent.parent / "README.md"


def test_the_example_in_the_readme_runs(
    toy_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) < 20
    source, raw = '"simulator", raw=None', f'"tables", raw=Path({str(toy_tables)!r})'
    assert source in found[1]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(found[1].replace(source, raw), names)
    report, items, users = names["report"], names["items"], names["users"]
    assert isinstance(report, api.Report)
    assert isinstance(items, torch.Tensor)
    assert isinstance(users, torch.Tensor)
    assert (users @ items.T).shape == (2, 60)
    printed = capsys.readouterr().out
    assert "Interval(mean=" in printed
    assert "item_key" in printed


def test_all_names_are_there_and_sorted() -> None:
    assert all(hasattr(api, name) for name in api.__all__)
    assert api.__all__ == sorted(api.__all__)
