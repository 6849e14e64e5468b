"""The verbs of the history: find, annotate, compare and delete runs, and free space."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.store import Store, run
from pipeline.store.run import Run
from pipeline.system.files import to_json

if TYPE_CHECKING:
    from pipeline.runs.history import Row
    from pipeline.runs.voting.judge_client import Judge

Verb = Callable[[str, Callable[[argparse.Namespace], int]], Any]  # a parser with `flags`, added when used
STATUSES = (run.QUEUED, run.RUNNING, *run.ENDED)


def list_(args: argparse.Namespace) -> int:
    """List runs, newest first."""
    from pipeline.cli import terminal
    from pipeline.runs import history

    runs = Store(settings.home()).list(deleted=args.deleted)
    found = history.search(runs, args.search, args.status, args.tag, args.owner, args.group)
    if args.json:
        print(to_json([r.to_dict() for r in found], indent=2))
    elif found:
        print(terminal.table(found))
    elif runs:
        print(f"No matching runs among {len(runs):,}.")
    elif args.deleted:
        print("There are no deleted runs to restore.")
    else:
        print(f"There are no runs yet; `{settings.command()} run RECIPE.yaml` makes one.")
    return 0


def note(args: argparse.Namespace) -> int:
    """Write notes and tags on a run, and print those it has."""
    from pipeline.runs import history

    store = Store(settings.home())
    found = store.get(args.run)
    tags = None
    if args.tag or args.untag:
        tags = [tag for tag in [*found.tags, *args.tag] if tag not in args.untag]
    history.annotate(store, found.id, args.text, tags)
    found = store.get(found.id)
    print(f"Tags: {', '.join(found.tags) or 'none'}\nNotes: {found.notes or 'none'}")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Show where the recipes of runs differ and what each run measured."""
    from pipeline.cli import terminal
    from pipeline.runs import history

    store = Store(settings.home())
    runs = [store.get(given) for given in [args.run, *args.runs]]
    differences, metrics = history.differences(runs), history.metrics(runs)
    if args.json:
        told = {"runs": [found.id for found in runs]}
        rows = {"differences": differences, "metrics": metrics}
        print(to_json(told | {what: {r.key: r.values for r in of} for what, of in rows.items()}, indent=2))
        return 0
    head = ("", *(found.id for found in runs))
    names = ("name", *(found.name for found in runs))
    print("\n".join(terminal.columns([head, names, *map(_cells, differences)])))
    if not differences:
        print("The recipes are the same.")
    print("\n" + "\n".join(terminal.columns([head, *map(_cells, metrics)])))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Judge a run against another on the same held-out rows: which adapter, or quantization, is better."""
    from pipeline.runs.comparing import compare_rows

    store = Store(settings.home())
    found = compare_rows.judge(store.get(args.run), store.get(args.other))
    print(to_json(found, indent=2) if args.json else "\n".join(compare_rows.sentences(found)))
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    return (row.key, *(_figure(row.key, value) for value in row.values))


def _figure(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and not value.isprintable():
        return to_json(value, ensure_ascii=False)  # a template may have several lines
    return display.measure(key, value)


def delete(args: argparse.Namespace) -> int:
    """Delete a run; for a day it can be restored, then its space is freed."""
    store = Store(settings.home())
    found = store.get(args.run)
    if found.deleted is not None:
        raise InputError(f"{found.id}: is deleted; `{settings.command()} restore {found.id}` restores it")
    if not args.yes and not _agreed(store, found):
        print("Nothing was deleted.")
        return 1
    store.delete(found.id)
    print(f"Run {found.id} is deleted. `{settings.command()} restore {found.id}` restores it within a day.")
    return 0


def _agreed(store: Store, found: Run) -> bool:
    """Ask whether to delete a run. Raises InputError without a terminal to ask on."""
    from pipeline.runs import disk

    if not sys.stdin.isatty():
        raise InputError(f"{found.id}: cannot ask for confirmation here; give --yes to delete it")
    takes = disk.of(store, found.id)
    print(f"Run {found.id} ({found.name}): {display.size(takes.freed)} will be freed a day from now.")
    try:
        return input("Delete it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def restore(args: argparse.Namespace) -> int:
    """Restore a deleted run, by its full id."""
    store = Store(settings.home())
    found = store.get(args.run)
    if found.deleted is None:
        raise InputError(
            f"{found.id}: is not deleted; `{settings.command()} list --deleted` shows those that are"
        )
    store.restore(found.id)
    print(f"Run {found.id} is back.")
    return 0


def gc(args: argparse.Namespace) -> int:
    """Free the space of results and datasets that no run refers to."""
    from pipeline.runs import disk

    store = Store(settings.home())
    found = disk.unused(store) if args.dry_run else disk.collect(store)
    for kind, names in (("result", found.results), ("dataset", found.datasets)):
        for name in names:
            print(f"{kind:<7}  {name}")
    would = "would be freed; this was a dry run" if args.dry_run else "were freed"
    print(f"{display.size(found.bytes)} {would}.")
    return 0


def votes(args: argparse.Namespace) -> int:
    """Show what the blind vote on a run says, export it, or have a model judge."""
    from pipeline.cli import terminal
    from pipeline.inputs.data.telling import ended
    from pipeline.runs.voting import blind_rows, booth, judge_client, preference_pairs

    judge = judge_client.named(args)
    store = Store(settings.home())
    found = store.get(args.run)
    answers, folder = blind_rows.recorded(found), store.folder(found.id)
    if args.drop_others and not args.only:
        raise InputError("--drop-others: say with --only whose votes stay")
    if args.only:  # a name that is refused is so before a judge is asked
        ended(booth.everything(str(folder), str(answers), args.only))
    if args.drop_others:
        _drop_others(folder, args.only)
    if judge is not None:
        _judge(store, found.id, judge)
    if args.export is not None:
        written = preference_pairs.export(folder, answers, args.export, args.only)
        print(f"{written['pairs']:,} pairs are in {display.plain(str(args.export))}; {written['ties']:,} rows"
              " without a preference are left out.", file=sys.stderr)  # fmt: skip
    told = ended(booth.everything(str(folder), str(answers), args.only))
    print(to_json(told, indent=2) if args.json else terminal.votes(told))
    return 0


def _drop_others(folder: Path, names: Sequence[str]) -> None:
    """Drop the votes of all but the people of these names. Raises InputError, LabError, OSError."""
    from pipeline.runs.voting import ballots

    dropped, before = ballots.drop_others(folder, [ballots.person(name)[0] for name in names])
    print(
        f"The votes of {dropped:,} others are dropped; all as they were before are in {before}.",
        file=sys.stderr,
    )


def _judge(store: Store, run: str, judge: Judge) -> None:
    """Have a judge vote, with a line for each row. Raises LabError where that fails."""
    from pipeline.runs.voting import judging

    def tell(told: dict[str, Any]) -> None:
        print(f"{judge.voter.shown}: {told['done']:,} of {told['rows']:,} rows", file=sys.stderr)

    told = judging.now(store, run, judge, tell)
    if told["left_out"]:
        print(f"{told['left_out']:,} rows could not be judged.", file=sys.stderr)


def _votes_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.runs.voting import ballots, judge_client

    added.add_argument("run")
    added.add_argument("--json", action="store_true")
    added.add_argument(
        "--export", type=Path, metavar="FILE",
        help="write the rows in which people prefer an answer as JSON lines: prompt, chosen, rejected",
    )  # fmt: skip
    added.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="count the votes of these people only: give it once for each (default: the first"
        f" {ballots.MOST_VOTERS})",
    )  # fmt: skip
    added.add_argument(
        "--drop-others", action="store_true",
        help="with --only: drop the votes of all other people, where made-up names have filled the run",
    )  # fmt: skip
    judge_client.add_arguments(added)


def add(verb: Verb) -> None:
    """Add these verbs to the command line."""
    added = verb("list", list_)
    added.add_argument("--json", action="store_true")
    added.add_argument(
        "--search", default="", metavar="TEXT", help="words in name, model, notes and the like"
    )
    added.add_argument("--status", default="", choices=STATUSES, metavar="S", help=", ".join(STATUSES))
    for flag in ("tag", "owner", "group"):
        added.add_argument(f"--{flag}", default="", metavar=flag[0].upper())
    added.add_argument("--deleted", action="store_true", help="deleted runs that can be restored")
    added = verb("note", note)
    added.add_argument("run")
    added.add_argument("text", nargs="?", help="the new notes; '' removes them")
    added.add_argument("--tag", action="append", default=[], metavar="T")
    added.add_argument("--untag", action="append", default=[], metavar="T")
    added = verb("diff", diff)
    added.add_argument("run", metavar="RUN")
    added.add_argument("runs", nargs="+", metavar="RUN")
    added.add_argument("--json", action="store_true")
    added = verb("compare", compare)
    added.add_argument("run", metavar="RUN")
    added.add_argument("other", metavar="RUN", help="the run that is judged against the first")
    added.add_argument("--json", action="store_true")
    added = verb("delete", delete)
    added.add_argument("run")
    added.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    verb("votes", votes).flags = _votes_flags
    verb("restore", restore).add_argument("run")
    verb("gc", gc).add_argument(
        "--dry-run", action="store_true", help="say what would be freed, free nothing"
    )
