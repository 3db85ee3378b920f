"""Which way imports run: read from the source, so that also imports inside functions count."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import reeltalk

ROOT = Path(reeltalk.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

GROUND = {"errors", "artifacts", "config", "lock", "memory", "precision", "weights"}
MAY_IMPORT = {
    "errors": set[str](),
    "memory": set[str](),
    "precision": set[str](),
    "weights": set[str](),
    "artifacts": {"errors", "lock"},
    "lock": {"errors"},
    "config": {"errors"},
    "data": GROUND,
    "text": GROUND | {"data"},
    "losses": {"errors", "precision"},
    "models": GROUND | {"data", "text", "losses"},
    "objectives": {"errors", "data", "losses", "models"},
    "pretraining": {"errors", "data", "losses", "models", "objectives"},
    "evaluation": GROUND | {"data", "text"},
    "training": GROUND | {"data", "text", "losses", "models", "objectives", "pretraining", "evaluation"},
    "llm": GROUND | {"data", "text", "losses", "models", "objectives", "evaluation", "training"},
    "api": GROUND | {"data", "text", "losses", "models", "objectives", "evaluation", "training", "llm"},
    "experiments": GROUND
    | {"data", "text", "losses", "models", "objectives", "pretraining", "evaluation", "training", "llm", "api"},
}
TORCH_IN_DATA = {"data/batch.py"}  # a dataset knows no torch; a batch is made of tensors


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(file: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; with `at_import_time`, not those inside functions or for type checkers only."""
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_import_time and is_lazy):
            pending.extend(ast.iter_child_nodes(node))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def third_party(file: Path, *, at_import_time: bool = False) -> set[str]:
    first = {name.split(".")[0] for name in imports(file, at_import_time=at_import_time)}
    return first - set(sys.stdlib_module_names) - {"reeltalk"}


def test_imports_run_one_way() -> None:
    for file in FILES:
        part = part_of(file)
        if part not in ("cli", "__main__", "__init__"):
            ours = {name.split(".")[1] for name in imports(file) if name.startswith("reeltalk.")}
            assert ours - {part} <= MAY_IMPORT[part], f"{name_of(file)} may import {sorted(MAY_IMPORT[part])}"


def test_the_dataset_knows_no_torch() -> None:
    using = {name_of(file) for file in FILES if part_of(file) == "data" and "torch" in third_party(file)}
    assert using <= TORCH_IN_DATA


def test_preparing_data_loads_no_torch() -> None:
    code = "import sys, reeltalk.data.prepare, reeltalk.data.sources; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_language_models_are_used_by_few_and_when_needed() -> None:
    assert {part_of(file) for file in FILES if "transformers" in third_party(file)} <= {"text", "llm"}
    assert {part_of(file) for file in FILES if "peft" in third_party(file)} <= {"llm"}
    needed_at_once = [third_party(file, at_import_time=True) & {"transformers", "peft"} for file in FILES]
    assert not any(needed_at_once)


def test_lightning_is_used_by_training_alone() -> None:
    assert {part_of(file) for file in FILES if "lightning" in third_party(file)} <= {"training"}


def test_every_third_party_import_is_declared() -> None:
    declared = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    names = [
        *declared["dependencies"],
        *(name for extra in declared["optional-dependencies"].values() for name in extra),
    ]
    packages = {name.split(">=")[0].split("==")[0].lower().replace("-", "_") for name in names} - {"pyyaml"} | {"yaml"}
    used = {name for file in FILES for name in third_party(file)}
    assert used <= packages


def test_files_stay_small() -> None:
    assert not {name_of(file) for file in FILES if len(file.read_text().splitlines()) > 450}
