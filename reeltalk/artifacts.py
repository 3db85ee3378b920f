"""Folders that a step writes: whole or not there at all, and able to say what they were made from.

Every step reads folders and writes one. A folder is finished when it holds ``manifest.json``, which is written last.
Steps that cannot go on where they were (`new_folder`) write beside their target and rename at the end; long steps
(`resumable_folder`) write in place, keep ``progress.json`` while they run, and go on from it when they are run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from reeltalk.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
LIBRARIES = ("reeltalk", "numpy", "polars", "torch", "lightning", "transformers")


@dataclass(frozen=True)
class Manifest:
    """What a finished folder says of itself.

    ``digest`` names the content: it is the hash of the config, the parents' digests and the files' hashes, so two
    folders with the same digest hold the same bytes. ``facts`` are figures worth a look (counts, dropped rows).
    """

    kind: str
    format: int
    config: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, str]
    facts: dict[str, Any]
    versions: dict[str, str]
    digest: str


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest_of(value: object) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(partial, path)


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a finished folder of this kind.

    Raises ArtifactError where the folder is missing, unfinished, of another kind, made by another format version, or
    lacks a file that its manifest names.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; expected a finished {kind} folder there")
    if not path.is_file():
        if (folder / PROGRESS).is_file():
            raise ArtifactError(f"{folder} is unfinished: run the step that writes it again, it goes on where it was")
        raise ArtifactError(f"{folder} holds no {MANIFEST}, so it is no reeltalk folder; expected a {kind}")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); write the folder again") from error
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind}, expected a {kind}")
    if manifest.format != FORMAT:
        made_by = manifest.versions.get("reeltalk", "an unknown version")
        raise ArtifactError(
            f"{folder} has format {manifest.format} (reeltalk {made_by}), this version reads format {FORMAT}; "
            "write it again"
        )
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(sorted(missing))}, which its manifest names; write it again")
    return manifest


def folder_kind(folder: Path) -> str | None:
    """The kind of a folder that a step finished, or began; None where none did."""
    for file in (folder / MANIFEST, folder / PROGRESS):
        if file.is_file():
            kind: str | None = json.loads(file.read_text()).get("kind")
            return kind
    return None


def require_parent(manifest: Manifest, folder: Path, name: str, parent: Manifest, parent_folder: Path) -> None:
    """Raise ArtifactError, naming both, where `folder` was not made from `parent_folder`."""
    recorded = manifest.parents.get(name)
    if recorded != parent.digest:
        raise ArtifactError(
            f"{folder} was made from {name} {recorded}, but {parent_folder} is {name} {parent.digest}; "
            f"give the {name} it was made from, or write {folder} again"
        )


def write_manifest(
    folder: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
) -> Manifest:
    """Finish a folder: hash its files, write the manifest last, and remove the progress file.

    What lies in the folders `leave_out` is no part of it, and may be removed.
    """
    names = sorted(
        str(name)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name not in (MANIFEST, PROGRESS)
        if (name := path.relative_to(folder)).parts[0] not in leave_out
    )
    files = {name: file_digest(folder / name) for name in names}
    content = {"kind": kind, "config": dict(config), "parents": dict(parents), "files": files}
    manifest = Manifest(
        kind=kind,
        format=FORMAT,
        config=dict(config),
        parents=dict(parents),
        files=files,
        facts=dict(facts or {}),
        versions=versions(),
        digest=digest_of(content),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    (folder / PROGRESS).unlink(missing_ok=True)
    return manifest


def refuse_existing(out: Path, *, overwrite: bool | None) -> None:
    """Raise ArtifactError where `out` holds something that this step would destroy; None: it replaces no folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if overwrite and (out / MANIFEST).is_file():
        return
    way_out = ", or pass --overwrite to replace a finished one" if overwrite is False else ""
    raise ArtifactError(f"{out} already exists and is not empty; choose another folder{way_out}")


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    The block must call `write_manifest`. What stood at `out` stays until the new folder is whole.
    """
    refuse_existing(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise AssertionError("a step must write its manifest before its folder is finished")
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def resumable_folder(out: Path, *, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
    """Open `out` for a long step; True where an interrupted run of the same step left its progress there.

    Raises ArtifactError where `out` is finished, holds something else, or was begun with another config or other
    parents.
    """
    identity = {"kind": kind, "config": _as_json(config), "parents": dict(parents)}
    path = out / PROGRESS
    if path.is_file() and not (out / MANIFEST).is_file():
        begun = json.loads(path.read_text())
        if begun == identity:
            return True
        changed = sorted(_changed(begun, identity))
        raise ArtifactError(
            f"{out} was begun with other settings ({'; '.join(changed)}); go on with those, or choose another folder"
        )
    if (out / MANIFEST).is_file():
        raise ArtifactError(f"{out} already exists, finished; choose another folder, or delete it to make it anew")
    refuse_existing(out, overwrite=None)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)
    return False


def is_finished(out: Path, *, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
    """Whether `out` holds what a step of this config and these parents would write; False where it is still to run.

    Of the config, what `config` names is compared. Raises ArtifactError where `out` is finished with another config or
    other parents (naming each difference), is of another kind, or lacks files.
    """
    if not (out / MANIFEST).is_file():
        return False
    held = read_manifest(out, kind)
    wanted = _as_json(config)
    changed = [*_changed(_part(held.config, wanted), wanted), *_changed(held.parents, dict(parents))]
    if changed:
        raise ArtifactError(
            f"{out} was made with other settings ({'; '.join(sorted(changed))}); go back to those, or choose another "
            "folder"
        )
    return True


def _as_json(config: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(config), default=str))


def _part(held: Any, wanted: Any) -> Any:
    """Of what is held, the sections and fields that are wanted."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        return {name: _part(held.get(name), value) for name, value in wanted.items()}
    return held


def _changed(before: object, after: object, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from _changed(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
    elif before != after:
        yield f"{name}: {before!r} then, {after!r} now"
