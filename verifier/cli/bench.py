"""`verifier bench`: folders of instances, one process each, and a table per benchmark."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from verifier.bench.instances import Instance
    from verifier.bench.live import Show
    from verifier.bench.record import Record
    from verifier.bench.runner import Resources
    from verifier.bench.score import Other

_OUT = Path("results.csv")


def command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders with instances.csv, or folders of such.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The competition's table; JSON lines go beside it.")
    ] = _OUT,
    timeout_scale: Annotated[float, typer.Option(metavar="X", help="Multiply each instance's limit.")] = 1.0,
    only: Annotated[
        str, typer.Option(metavar="GLOB", help="Only these: a benchmark, or benchmark/model/spec.")
    ] = "*",
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Instances at a time; by default one, or one per device.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads of each; by default all, divided among jobs.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(metavar="X", help="Kill an instance whose processes take more together.")
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="LIST", help="cpu, or cuda:0,cuda:1: jobs are dealt out to them.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the JSON lines have and run the rest.")
    ] = False,
    shard: Annotated[
        str, typer.Option(metavar="i/n", help="Only the i-th of n parts of the instances.")
    ] = "1/1",
    share: Annotated[
        bool, typer.Option("--share", help="Bound and attack the queries of one network in one batch.")
    ] = False,
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = "",
    against: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Compare with another tool's results.csv.")
    ] = None,
) -> None:
    """Run every instance of benchmarks in a process of its own, and count verdicts and points."""
    from verifier.bench.instances import find_all
    from verifier.bench.live import showing
    from verifier.bench.pool import divide
    from verifier.bench.record import append, environment, locked
    from verifier.bench.score import read_other, write_csv
    from verifier.errors import OptionsError

    if not timeout_scale > 0:
        raise OptionsError(f"--timeout-scale must be positive, not {timeout_scale:g}.")
    if memory_gb is not None and not memory_gb > 0:
        raise OptionsError(f"--memory-gb must be positive, not {memory_gb:g}.")
    others = [read_other(path) for path in against or []]
    if ray and (share or jobs is not None):
        raise OptionsError("--ray starts as many instances as the cluster has room for, each on its own.")
    slots = divide(jobs, [d.strip() for d in devices.split(",") if d.strip()], threads, memory_gb)
    instances = find_all(folders, only, _shard(shard))
    lines = out.with_suffix(".jsonl")
    settings = {"jobs": len(slots), "threads": slots[0].threads, "memory_gb": memory_gb, "devices": devices}
    settings |= {"timeout_scale": timeout_scale, "only": only, "shard": shard, "share": share, "ray": ray}
    with locked(lines):
        done = _kept(lines, instances, timeout_scale, resume)
        left = [instance for instance in instances if instance.key not in done]
        try:
            if left:
                append(lines, environment(_now(), settings))
            with (
                showing(len(instances), len(done)) as show,
                closing(_records(left, slots, timeout_scale, lines, show, share, ray)) as records,
            ):
                for record in records:
                    append(lines, record)  # on the disk before anything else happens to it
                    done[record.key] = record
                    show.ended(record)
        finally:
            rows = [done[instance.key] for instance in instances if instance.key in done]
            if rows:
                write_csv(rows, out)
                _print(rows, others)
    if any(row.wrong for row in rows):
        raise typer.Exit(1)


def _records(
    left: Sequence[Instance],
    slots: Sequence[Resources],
    scale: float,
    lines: Path,
    show: Show,
    share: bool,
    ray: str,
) -> Generator[Record, None, None]:
    """What the instances give, in the order in which they end."""
    import threading

    from verifier.bench.instances import by_network
    from verifier.bench.pool import run_all
    from verifier.bench.runner import run_instance, run_together

    witnesses = lines.with_name(f"{lines.stem}_witnesses")
    if left:
        witnesses.mkdir(parents=True, exist_ok=True)

    def file(instance: Instance) -> Path:
        return (
            witnesses / f"{'_'.join(filter(None, (instance.benchmark, instance.version)))}_{instance.row}.txt"
        )

    def run(
        group: list[Instance], slot: Resources, stop: threading.Event, emit: Callable[[Record], None]
    ) -> None:
        if share:
            show.together(group)
            run_together(group, scale, slot, file, stop, emit, show.started)
            return
        show.started(group[0])
        record = run_instance(group[0], scale, resources=slot, witness=file(group[0]), stop=stop)
        if not stop.is_set():
            emit(record)

    if ray:
        from verifier.bench.cluster import run_on_ray

        yield from run_on_ray(ray, left, scale, slots[0], file)
        return
    groups = by_network(left, len(slots)) if share else [[instance] for instance in left]
    yield from run_all(groups, slots, run)


def _kept(lines: Path, instances: Sequence[Instance], scale: float, resume: bool) -> dict[str, Record]:
    """What an earlier run left, by key; without `resume` that is put aside. Raises OptionsError where limits differ."""
    from verifier.bench.record import read, repair
    from verifier.errors import OptionsError

    if not lines.exists():
        return {}
    if not resume:
        lines.replace(lines.with_name(f"{lines.name}.before"))
        return {}
    repair(lines)
    wanted = {instance.key: instance for instance in instances}
    kept = {record.key: record for record in read(lines)[1] if record.key in wanted}
    for key, record in kept.items():
        if record.timeout != wanted[key].timeout * scale:
            raise OptionsError(
                f"{record.name} was run with a limit of {record.timeout:g} s, now it would have "
                f"{wanted[key].timeout * scale:g}. Resume with the same --timeout-scale, or write elsewhere (--out)."
            )
    return kept


def _shard(text: str) -> tuple[int, int]:
    from verifier.errors import OptionsError

    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise OptionsError(f"--shard {text} is not of the form i/n with 1 <= i <= n, for example 2/3.")
    return int(part), int(parts)


def _print(rows: Sequence[Record], others: Sequence[Other]) -> None:
    from verifier.bench.score import alone, comparison, disagreements, summary
    from verifier.report.columns import columns

    typer.echo(columns(*summary(rows, others)))
    if not others:
        return
    typer.echo("\n" + columns(*comparison(rows, others)))
    ours, theirs = alone(rows, others)
    differing = [f"{r.name}: {r.verdict}, {o.tool} says otherwise" for r, o in disagreements(rows, others)]
    for title, names in (
        ("solved by us alone", [r.name for r in ours]),
        ("solved by others alone", [r.name for r in theirs]),
        ("contradictions", differing),
    ):
        typer.echo("\n".join([f"\n{title}: {len(names)}", *(f"  {name}" for name in names)]))


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")
