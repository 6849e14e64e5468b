"""`publish`: a finished run as a named version somewhere. Its flags are the options of the publishers.

`foundry-local` shows or makes the environment that one of them needs.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from pipeline import settings
from pipeline.cli.queue import Verb
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system.files import to_json

if TYPE_CHECKING:  # imported where they are used, so that other verbs start faster
    from pipeline.inputs.options import Option


def publish(args: argparse.Namespace) -> int:
    """Publish a finished run; with --dry-run only say what would be published."""
    from pipeline.cli import terminal
    from pipeline.publish.targets import options_of
    from pipeline.runs import submit

    store = Store(settings.home())
    found = store.get(args.run)
    names = _options()
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    options = options_of(args.to, given)
    if args.dry_run:
        return _dry_run(store, found, args, options)
    print(_shown(submit.plan(store, found, args.to, options)), flush=True)
    stage = submit.publish_planned(store, found, args.to, options)
    terminal.until_ended(store, found.id, stage)
    ended = store.get(found.id).stage(stage)
    print(f"Published to {ended.metrics['path']}" if ended.status == DONE else ended.error or ended.status)
    return 0 if ended.status == DONE else 1


def _dry_run(store: Store, found: Run, args: argparse.Namespace, options: Any) -> int:
    from pipeline.exports.findings import failed
    from pipeline.publish.targets import PREFLIGHTS, PUBLISHERS

    planned = PUBLISHERS[args.to].plan(store.home, found, options)
    asks = PREFLIGHTS.get(args.to)
    findings = asks.preflight(store.home, found, options) if asks else []
    bad = bool(failed(findings))
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(to_json({"plan": planned, "findings": rows, "good": not bad}, indent=2, ensure_ascii=False))
    else:
        print(_shown(planned))
        for finding in findings:
            print(f"  {finding.status:8} {finding.check}: {finding.message}")
        print("Nothing was published: this was a dry run.")
    return 1 if bad else 0


def _shown(planned: dict[str, Any]) -> str:
    lines = [f"{planned['name']} version {planned['version']} -> {planned['target']}"]
    lines += [f"  {file['bytes']:>14,} bytes  {file['path']}" for file in planned["files"]]
    if "command" in planned:
        lines.append(f"The same with the Azure CLI: {planned['command']}")
    return "\n".join(lines)


def _options() -> dict[str, Option]:
    """The options of all publishers, by name. Where publishers describe one differently, its help says so."""
    from pipeline.inputs.options import describe
    from pipeline.publish.targets import PUBLISHERS

    found: dict[str, Option] = {}
    for to, module in PUBLISHERS.items():
        for option in describe(module.Options):
            first = found.setdefault(option.name, option)
            if option.help not in first.help:
                help_ = f"{first.help}. With {to}: {option.help}"
                found[option.name] = dataclasses.replace(first, help=help_)
    return found


def foundry_local(args: argparse.Namespace) -> int:
    """Show or install Foundry Local's package, which has an environment of its own; list its versions."""
    from pipeline.publish.foundry import environment, publisher

    home = settings.home()
    if args.install:
        environment.ready(home, lambda text: print(text, flush=True))
    where = environment.folder(home)
    installed, found = environment.complete(where), publisher.versions(home)
    if args.json:
        told = {"environment": str(where), "installed": installed, "versions": found}
        print(to_json(told, indent=2, ensure_ascii=False))
        return 0
    print(f"Foundry Local's package is {'installed' if installed else 'not installed'}: {where}")
    for version in found:
        print(f"  {version['id']}  {version['path']}")
    return 0


def add(verb: Verb) -> None:
    """Add the verbs to the parser."""
    verb("publish", publish).flags = _flags
    verb("foundry-local", foundry_local).flags = _foundry_flags


def _foundry_flags(added: argparse.ArgumentParser) -> None:
    added.add_argument("--install", action="store_true", help="install it, if it is not there yet")
    added.add_argument("--json", action="store_true")


def _flags(added: argparse.ArgumentParser) -> None:
    from pipeline.publish.targets import PUBLISHERS

    added.add_argument("run")
    added.add_argument("--to", choices=list(PUBLISHERS), required=True)
    for name, option in _options().items():
        add_option(added, name, option)
    added.add_argument("--dry-run", action="store_true", help="say what would be published, write nothing")
    added.add_argument("--json", action="store_true", help="with --dry-run: as JSON")


def add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    """Add a flag for an option of a dataclass; its value is None when left out."""
    flag, about = f"--{name.replace('_', '-')}", option.help.replace("%", "%%")
    if bool in option.types:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
    elif option.choices:
        parser.add_argument(flag, choices=option.choices, help=about)
    else:
        kind = next((kind for kind in (float, int) if kind in option.types), str)
        parser.add_argument(flag, type=kind, required=name == "name", help=about)
