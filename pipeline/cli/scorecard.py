"""`scorecard`: quantize a model in several ways and compare them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from pipeline import settings
from pipeline.cli.queue import Verb, note
from pipeline.store import Store
from pipeline.store.run import DONE
from pipeline.system.files import to_json


def add(verb: Verb) -> None:
    """Add it to the parser."""
    verb("scorecard", scorecard_).flags = _scorecard_flags


def scorecard_(args: argparse.Namespace) -> int:
    """Quantize a model in several ways and measure each: size, perplexity, time, memory, speed."""
    from pipeline.cli import terminal
    from pipeline.inputs.data.telling import ended
    from pipeline.runs.comparing import compare_ways, scorecard
    from pipeline.stages import recipe

    store = Store(settings.home())
    given = {
        "name": Path(args.model).resolve().name or "model",
        "model": args.model,
        "data": str(args.data),
        "template": args.template,
    }
    base = recipe.build({**given, "finetune": None, "evaluate": None}, Path.cwd(), args.set)
    names = [name.strip() for name in args.algorithms.split(",")]
    group, refused = scorecard.start(store, base, names, note=note)
    for name, reason in refused.items():
        print(f"{name} is left out. {reason}", file=sys.stderr)
    quiet = args.json
    for row in scorecard.rows(store, group):
        if quiet:
            terminal.until_ended(store, row.run)
        else:
            print(f"{row.algorithm} (run {row.run})", flush=True)
            terminal.run(store, row.run, summarize=False)
    rows = scorecard.rows(store, group)
    print(
        to_json([dataclasses.asdict(row) for row in rows], indent=2)
        if quiet
        else "\n" + terminal.scores(rows)
    )
    if not quiet and (best := ended(compare_ways.best(store, group))):
        print(f"\n{best}")
    return 0 if not refused and all(row.status == DONE for row in rows) else 1


def _scorecard_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.inputs.prompts import templates
    from pipeline.runs.comparing import scorecard

    added.add_argument("model", help="a catalogue id, a hub id such as org/name, or a folder")
    added.add_argument("--data", type=Path, required=True, metavar="DATA.jsonl")
    added.add_argument("--template", default=templates.CHAT, help="chat, or a text with {placeholders}")
    listed = ",".join((scorecard.FLOAT, *scorecard.WAYS))
    added.add_argument(
        "--algorithms", default=",".join(scorecard.DEFAULT), help=f"some of {listed} (default: %(default)s)"
    )
    added.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="for example quantize.group_size=32"
    )
    added.add_argument("--json", action="store_true")
