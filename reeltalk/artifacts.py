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
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from reeltalk.errors import ArtifactError, ReeltalkError
from reeltalk.lock import only_writer

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
    partial = _partial(path)
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    """Where a file or folder is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


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
    manifest = _manifest(path)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind}, expected a {kind}")
    if manifest.digest != _content_digest(manifest.kind, manifest.config, manifest.parents, manifest.files):
        raise ArtifactError(f"{path} was changed by hand; delete the folder and write it again")
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(sorted(missing))}, which its manifest names; write it again")
    return manifest


class _Facts(dict[str, Any]):
    """A manifest's facts; one that is missing is an error of the folder."""

    def __init__(self, values: Mapping[str, Any], *, path: Path) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise ArtifactError(f"{self._path} lacks the fact {name!r}; delete the folder and write it again")


def _manifest(path: Path) -> Manifest:
    """What a manifest's file holds, of any kind; raises ArtifactError where it is no manifest, or another version's."""
    found = _json_object(path)
    if found.get("format", FORMAT) != FORMAT:
        made_by = dict(found.get("versions") or {}).get("reeltalk", "an unknown version")
        raise ArtifactError(
            f"{path.parent} has format {found['format']} (reeltalk {made_by}), this version reads format {FORMAT}; "
            "delete it and write it again"
        )
    of_manifest = fields(Manifest)
    wrong = found.keys() ^ {field.name for field in of_manifest}
    wrong |= {
        field.name for field in of_manifest if "dict" in str(field.type) and type(found.get(field.name)) is not dict
    }
    if wrong:
        names = ", ".join(sorted(wrong))
        raise ArtifactError(f"{path} is no manifest (see {names}); delete the folder and write it again")
    return Manifest(**found | {"facts": _Facts(found["facts"], path=path)})


def _json_object(path: Path) -> dict[str, Any]:
    """What a manifest or progress file holds; raises ArtifactError where that is no object."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete the folder and write it again") from error


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Within it a file of a folder is read: what its format's reader raises is told as an ArtifactError."""
    try:
        yield
    except (ReeltalkError, MemoryError):
        raise
    except Exception as error:  # each format has errors of its own
        told = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"{path} cannot be read ({told}); it is damaged: write its folder again") from error


def folder_kind(folder: Path) -> str | None:
    """The kind of a folder that a step finished, or began; None where none did.

    Raises ArtifactError where the file that tells it cannot be read.
    """
    if (folder / MANIFEST).is_file():
        return _manifest(folder / MANIFEST).kind
    if (folder / PROGRESS).is_file():
        return str(_json_object(folder / PROGRESS).get("kind"))
    return None


def facts_of(folder: Path) -> dict[str, Any]:
    """What a finished folder, of whatever kind, tells of itself; raises ArtifactError where its manifest is damaged."""
    return _manifest(folder / MANIFEST).facts


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
    manifest = Manifest(
        kind=kind,
        format=FORMAT,
        config=dict(config),
        parents=dict(parents),
        files=files,
        facts=dict(facts or {}),
        versions=versions(),
        digest=_content_digest(kind, config, parents, files),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    (folder / PROGRESS).unlink(missing_ok=True)
    return manifest


def _content_digest(kind: str, config: Mapping[str, Any], parents: Mapping[str, str], files: Mapping[str, str]) -> str:
    return digest_of({"kind": kind, "config": dict(config), "parents": dict(parents), "files": dict(files)})


def refuse_existing(out: Path, *, kind: str, overwrite: bool | None) -> None:
    """Raise ArtifactError where `out` holds something that a step which writes this kind would destroy.

    `overwrite` replaces a finished folder of the same kind that holds no files but its own; None: the step never does.
    """
    if not out.exists() or (out.is_dir() and not {*out.iterdir()} - {_partial(out / PROGRESS)}):
        return
    if not out.is_dir():
        raise ArtifactError(f"{out} is a file; choose another place for the folder")
    if not overwrite or not (out / MANIFEST).is_file():
        way_out = ", or pass --overwrite to replace a finished one" if overwrite is False else ""
        raise ArtifactError(f"{out} already exists and is not empty; choose another folder{way_out}")
    held = _manifest(out / MANIFEST)
    if held.kind != kind:
        raise ArtifactError(f"{out} holds a {held.kind}, which a {kind} does not replace; choose another folder")
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    if others := sorted(map(str, {*files} - {Path(name) for name in (*held.files, MANIFEST)})):
        raise ArtifactError(
            f"{out} also holds {len(others)} files that are not of the {kind}, first {others[0]}; move them away, or "
            "choose another folder"
        )


@contextmanager
def new_folder(out: Path, *, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    The block must call `write_manifest`. What stood at `out` stays until the new folder is whole.
    """
    refuse_existing(out, kind=kind, overwrite=overwrite)
    place = out.resolve()  # a link stays one
    partial, old = _partial(place), place.with_name(f".{place.name}.old")
    with only_writer(partial, out=out):
        for path in partial.iterdir():  # what a run that was killed left
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            refuse_existing(out, kind=kind, overwrite=overwrite)  # another run may have ended in between
            yield partial
            if not (partial / MANIFEST).is_file():
                raise AssertionError("a step must write its manifest before its folder is finished")
            shutil.rmtree(old, ignore_errors=True)
            if place.exists():
                os.replace(place, old)
            os.replace(partial, place)
        finally:
            if old.exists() and not place.exists():
                os.replace(old, place)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)


def resumable_folder(out: Path, *, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
    """Open `out` for a long step; True where an interrupted run of the same step left its progress there.

    Call it as the `only_writer` of `out`.

    Raises ArtifactError where `out` is finished, holds something else, or was begun with another config or other
    parents.
    """
    identity = {"kind": kind, "config": _as_json(config), "parents": dict(parents)}
    path = out / PROGRESS
    if path.is_file() and not (out / MANIFEST).is_file():
        begun = _json_object(path)
        if begun == identity:
            return True
        changed = sorted(_changed(begun, identity))
        raise ArtifactError(
            f"{out} was begun with other settings ({'; '.join(changed)}); go on with those, or choose another folder"
        )
    if (out / MANIFEST).is_file():
        raise ArtifactError(f"{out} already exists, finished; choose another folder, or delete it to make it anew")
    refuse_existing(out, kind=kind, overwrite=None)
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
