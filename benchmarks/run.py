"""Run the benchmarks one after the other, write benchmarks/results.json and the tables in docs/performance.md.

Every script is a process of its own: first the peers, then ours, so that a ratio's two sides ran on the same machine
within the same run. A peer's virtual environment is installed where it is absent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import logs
from benchmarks.pairs import AGREEING, PAIRS
from benchmarks.rows import OURS, Measurement, Row, hardware, read_measurements
from reeltalk.data.dataset import Dataset

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PERFORMANCE = ROOT / "docs" / "performance.md"
RECORDED = ROOT / "benchmarks" / "peers" / "recbole-quality.jsonl"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
LESS_IS_BETTER = ("s", "ms", "MiB")


@dataclass(frozen=True)
class Script:
    """A module that prints measurements; `peer` names the environment it runs in, None is this one.

    `options` are added to its command line. In them {logs} is the folder of generated logs, {measured} a file of what
    the scripts before it printed, {recorded} a file of RecBole's quality in an earlier, longer run; {dataset} is a
    prepared dataset, {events} the folder of its events as RecBole reads them; {passes}, {seeds} and {checkpoints} are
    this run's; {fraction} and {texts} are options or nothing.
    """

    module: str
    peer: str | None = None
    options: tuple[str, ...] = ()


LOGS = ("--logs", "{logs}")
PARTLY = (*LOGS, "{fraction}")
SEEDS = ("--seeds", "{seeds}")
BENCHMARKS: dict[str, tuple[Script, ...]] = {
    "finetune": (
        Script(
            "benchmarks.peers.recbole_sasrec", "recbole", (*LOGS, "--passes", "{passes}", "--recorded", "{recorded}")
        ),
        Script("benchmarks.peers.rectools_sasrec", "rectools", PARTLY),
        Script("benchmarks.peers.rectools_flat", "rectools", PARTLY),
        Script("benchmarks.peers.replay_sasrec", "replay", PARTLY),
        Script("benchmarks.finetune", None, (*LOGS, "--measured", "{measured}")),
    ),
    "encode": (
        Script("benchmarks.peers.sentence_transformers_encode", "sentence-transformers", ("{texts}",)),
        Script("benchmarks.encode", None, ("{texts}",)),
    ),
    "baselines": (
        Script("benchmarks.peers.recbole_baselines", "recbole", PARTLY),
        Script("benchmarks.baselines", None, LOGS),
    ),
    "agreement": (
        Script(
            "benchmarks.peers.recbole_agreement",
            "recbole",
            ("--logs", "{events}", "--checkpoints", "{checkpoints}", *SEEDS),
        ),
        Script("benchmarks.agreement", None, ("--dataset", "{dataset}", "--measured", "{measured}", *SEEDS)),
    ),
    "align": (Script("benchmarks.align"),),
    "kuaicomt": (Script("benchmarks.kuaicomt"),),
}


def main() -> None:
    """Run what was asked for; results of other benchmarks stay as they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help="default: all that can run")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / "build" / "peers", help="folder of the peers' environments"
    )
    parser.add_argument("--no-peers", action="store_true", help="run our side alone; its rows have no ratio")
    parser.add_argument("--passes", type=int, default=1, help="passes of RecBole (10: all quality goals)")
    parser.add_argument(
        "--fraction",
        type=float,
        help="share of a pass that peers are timed on (default: RecTools, RePlay all of it, RecBole's models a tenth)",
    )
    parser.add_argument("--dataset", type=Path, help="agreement: prepared with split=leave_one_out")
    parser.add_argument("--seeds", type=int, default=1, help="agreement: trainings of each model, from --seed on")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=ROOT / "build" / "agreement",
        help="agreement: what RecBole's trainings go on from after a kill",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        choices=list(PAIRS),
        metavar="NAME",
        help="baselines, agreement: of the models that RecBole has these alone; other rows stay",
    )
    parser.add_argument("--texts", type=Path, help="real comments to encode, else generated ones (benchmarks/texts.py)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each script; the medians count")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.only is None:
        chosen.only = [name for name in BENCHMARKS if chosen.dataset or not reads_dataset(name)]
    for name in chosen.only:
        if reads_dataset(name) and chosen.dataset is None:
            parser.error(f"{name} trains on a prepared dataset; give --dataset, a folder that `reeltalk prepare` wrote")
        of_it = {"baselines": PAIRS, "agreement": AGREEING}.get(name, ())
        if unknown := [model for model in chosen.models if model not in of_it]:
            parser.error(f"--models: {name} has no {', '.join(unknown)}; leave them out, or give another --only")
    for name in chosen.only:
        try:
            measured = benchmark(name, chosen)
        except subprocess.CalledProcessError as error:
            command = " ".join(str(part) for part in error.cmd)
            sys.exit(f"{name}: a script failed (status {error.returncode}), nothing of {name} is recorded: {command}")
        rows = replaced(read_rows(), rows_of(name, measured), by_name=bool(chosen.models))
        RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n")
        write_tables(rows)
    Console().print(*tables(read_rows()), sep="\n")


def reads_dataset(name: str) -> bool:
    """Whether a benchmark needs `--dataset`."""
    return any("{dataset}" in script.options for script in BENCHMARKS[name])


def benchmark(name: str, chosen: argparse.Namespace) -> list[Measurement]:
    """Run a benchmark's scripts one after the other, as often as asked for."""
    scripts = [script for script in BENCHMARKS[name] if not (chosen.no_peers and script.peer)]
    console, measured = Console(stderr=True), list[Measurement]()
    with tempfile.TemporaryDirectory() as scratch:
        folder, so_far = Path(scratch) / "logs", Path(scratch) / "measured.jsonl"
        if any("{logs}" in script.options for script in scripts):
            logs.write(logs.generate(seed=chosen.seed), folder)
        events = Path(scratch) / "events"
        if any("{events}" in script.options for script in scripts):
            logs.write_events(Dataset.load(chosen.dataset), events)
        values = {
            "logs": str(folder),
            "measured": str(so_far),
            "recorded": str(RECORDED),
            "passes": str(chosen.passes),
            "fraction": "" if chosen.fraction is None else f"--fraction={chosen.fraction}",
            "dataset": str(chosen.dataset.resolve()) if chosen.dataset else "",
            "events": str(events),
            "checkpoints": str(chosen.checkpoints.resolve()),
            "seeds": str(chosen.seeds),
            "texts": f"--texts={chosen.texts.resolve()}" if chosen.texts else "",
        }
        for repeat in range(chosen.repeats):
            for script in scripts:
                console.print(f"{name}: {script.module} (run {repeat + 1} of {chosen.repeats})")
                options = [filled for option in script.options if (filled := option.format_map(values))]
                if chosen.models:
                    options += ["--models", *chosen.models]
                measured += run(script, [*options, "--seed", str(chosen.seed)], chosen.peers)
                so_far.write_text("".join(json.dumps(asdict(one)) + "\n" for one in measured))
    return measured


def run(script: Script, options: Sequence[str], peers: Path) -> list[Measurement]:
    """Run one script to its end and return what it measured; its progress goes to stderr."""
    python = sys.executable
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if script.peer:
        subprocess.run([ROOT / "benchmarks" / "peers" / "install.sh", script.peer, peers], check=True)
        python = str(peers.resolve() / script.peer / "bin" / "python")
        environment["PYTHONWARNINGS"] = "ignore"
    command = [python, "-m", script.module, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return read_measurements(done.stdout)


def rows_of(benchmark: str, measured: Iterable[Measurement]) -> list[Row]:
    """One row a pair of our number and a peer's of the same name; medians where a script ran more than once."""
    by_name: dict[str, dict[str, list[Measurement]]] = {}
    for one in measured:
        by_name.setdefault(one.name, {}).setdefault(one.system, []).append(one)
    machine = hardware()
    rows = []
    for systems in by_name.values():
        ours = _median(systems.pop(OURS, []))
        peers = [_median(runs) for runs in systems.values()] or [None]
        rows += [_row(benchmark, ours, peer, machine) for peer in peers]
    return rows


def _median(runs: list[Measurement]) -> tuple[Measurement, int] | None:
    if not runs:
        return None
    return replace(runs[-1], value=statistics.median(one.value for one in runs)), len(runs)


def _row(
    benchmark: str,
    ours: tuple[Measurement, int] | None,
    peer: tuple[Measurement, int] | None,
    machine: dict[str, str | int | float],
) -> Row:
    present = [side for side in (ours, peer) if side]
    shown, repeats = present[0]
    notes = [f"{one.system}: {one.note}" for one, _ in present if one.note]
    versions: dict[str, str] = {}
    for one, _ in present:
        versions |= {f"{one.system}: {name}": version for name, version in one.versions.items()}
    return Row(
        benchmark=benchmark,
        name=shown.name,
        value=_number(ours),
        unit=shown.unit,
        peer=peer[0].system if peer else None,
        peer_value=_number(peer),
        ratio=_ratio(ours[0], peer[0]) if ours and peer else None,
        repeats=repeats,
        note="; ".join(notes),
        hardware=machine,
        versions=versions,
        seed=shown.seed,
    )


def _number(side: tuple[Measurement, int] | None) -> float | None:
    """The value; None where the side did not measure, or measured no number (a goal that it did not reach)."""
    return side[0].value if side and math.isfinite(side[0].value) else None


def _ratio(ours: Measurement, peer: Measurement) -> float | None:
    """How many times better we are; None for what is no amount of time, memory or work."""
    if ours.unit != peer.unit:
        raise ValueError(
            f"{ours.name}: {ours.unit!r} of {ours.system} and {peer.unit!r} of {peer.system} do not compare"
        )
    if not (math.isfinite(ours.value) and math.isfinite(peer.value)):
        return None
    if ours.unit in LESS_IS_BETTER:
        return peer.value / ours.value
    return ours.value / peer.value if ours.unit.endswith("/s") else None


def replaced(recorded: Iterable[Row], new: Sequence[Row], *, by_name: bool = False) -> list[Row]:
    """The rows with those of the same benchmarks and machine (by_name: and name) exchanged for the new ones."""

    def key(row: Row) -> tuple[object, ...]:
        return row.benchmark, row.hardware, row.name if by_name else None

    runs = [key(row) for row in new]
    return [*(row for row in recorded if key(row) not in runs), *new]


def read_rows() -> list[Row]:
    """The rows recorded so far."""
    return [Row(**row) for row in json.loads(RESULTS.read_text())] if RESULTS.exists() else []


HEADINGS = ("", "reeltalk", "peer", "peer's", "ratio", "note")


def cells(row: Row) -> tuple[str, ...]:
    """A row as the tables show it."""

    def amount(value: float | None) -> str:
        return "" if value is None else f"{value:,.4g} {row.unit}".strip()

    ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
    return row.name, amount(row.value), row.peer or "", amount(row.peer_value), ratio, row.note


def machine_of(row: Row) -> str:
    """What the row was measured on, as the tables show it."""
    return ", ".join(f"{key} {value}" for key, value in row.hardware.items())


def by_machine(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each machine, in the order in which the machines first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(machine_of(row), []).append(row)
    return found


def tables(rows: Iterable[Row]) -> Iterator[Table]:
    """The rows for a terminal, a table a machine."""
    for machine, measured in by_machine(rows).items():
        shown = Table(*HEADINGS, title=machine)
        for row in measured:
            shown.add_row(*cells(row))
        yield shown


def write_tables(rows: Sequence[Row]) -> None:
    """Rewrite the marked block of docs/performance.md; raises ValueError where a marker is missing."""
    text = PERFORMANCE.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{PERFORMANCE} lacks the line {BEGIN} or {END}; put both where the tables belong")
    lines = ["A ratio is how many times less time or memory, or more work a second.", ""]
    for machine, measured in by_machine(rows).items():
        versions = {f"{name} {version}" for row in measured for name, version in row.versions.items()}
        seeds = {str(row.seed) for row in measured if row.seed is not None}
        lines += [
            f"**Machine: {machine}.** Seed {', '.join(sorted(seeds))}.",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---|--:|---|--:|--:|---|",
            *(f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |" for row in measured),
            "",
            f"Versions: {', '.join(sorted(versions))}.",
            "",
        ]
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PERFORMANCE.write_text("\n".join([before + BEGIN, *lines[:-1], END]) + after)


if __name__ == "__main__":
    main()
