"""`azure` shows who is logged in, workspaces and models; `pull` downloads a registered model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import settings
from pipeline.cli.queue import Verb
from pipeline.system.files import to_json

if TYPE_CHECKING:  # imported where they are used, so that other verbs start faster
    from pipeline.inputs.azure_workspace import Place

WHAT = ("whoami", "workspaces", "models", "recipe")


def azure(args: argparse.Namespace) -> int:
    """Show who is logged in to Azure, workspaces and models, and the recipe of a model."""
    from pipeline.inputs import azure_workspace
    from pipeline.inputs.azure_workspace import Place
    from pipeline.publish.azure.faults import explained

    home = settings.home()
    where = _place(home, args)
    # Workspaces are listed over all subscriptions, so an error there says nothing about the remembered one.
    with explained(Place(where.login) if args.what == "workspaces" else where):
        asked = {"whoami": _whoami, "workspaces": _workspaces, "models": _models, "recipe": _recipe}
        found = asked[args.what](where, args)
    if args.remember:
        azure_workspace.remember(home, where)
    if args.json:
        print(to_json(found, indent=2, ensure_ascii=False, default=str))
    else:
        for line in _lines(args.what, found):
            print(line)
    return 0


def pull(args: argparse.Namespace) -> int:
    """Download a registered model by ranged reads, and compare its checksums."""
    from pipeline.publish.azure import pull as pulling
    from pipeline.publish.azure.faults import explained

    home = settings.home()
    where = _place(home, args)
    told = [0]

    def report(message: str, fraction: float, **facts: Any) -> None:
        percent = int(fraction * 100)
        if not args.json and percent >= told[0] + 5:
            told[0] = percent
            print(f"{percent:3d} %  {message}", flush=True)

    with explained(where):
        pulled = pulling.pull(home, where, args.model, args.to, report)
    if args.json:
        print(to_json(pulled, indent=2))
    else:
        print(f"{pulled['folder']}: {pulled['files']} files, {pulled['bytes']:,} bytes, {pulled['compared']}")
    return 0


def _place(home: Path, args: argparse.Namespace) -> Place:
    from pipeline.inputs import azure_workspace
    from pipeline.inputs.azure_workspace import Place

    given = Place(args.login or "", args.subscription, args.resource_group, args.workspace, args.registry)
    return azure_workspace.find(home, given, args.config)


def _whoami(where: Place, args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish.azure import login, workspace

    found = login.identity(where)
    if where.workspace:
        found |= dataclasses.asdict(where)
        opened = workspace.Workspace(where.required())
        found["location"] = opened.about()["location"]  # fails if there is no such workspace
        found["may"] = login.allowed(opened.permissions())
    return found


def _workspaces(where: Place, args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish.azure import workspace

    found, left_out = workspace.workspaces(where.login)
    return {"workspaces": [dataclasses.asdict(place) for place in found], "left_out": left_out}


def _models(where: Place, args: argparse.Namespace) -> list[dict[str, Any]]:
    from pipeline.publish.azure import login
    from pipeline.publish.azure.registry import opened
    from pipeline.publish.azure.workspace import MOST_LISTED, MOST_MODELS

    workspace = opened(where.required())
    names = [args.name] if args.name else workspace.names()
    found = workspace.models(names[:MOST_MODELS])
    if len(names) > MOST_MODELS or len(found) > MOST_LISTED:
        print(
            f"These are the newest {MOST_LISTED} versions at most, of the {MOST_MODELS} models that changed"
            " last; name a model to see its own.",
            file=sys.stderr,
        )
    found = found[:MOST_LISTED]
    tenant = "" if where.registry else login.identity(where)["tenant"]
    # A browser that is logged in to several tenants is led to the right one.
    return [{**model, "portal": f"{model['portal']}&tid={tenant}"} for model in found] if tenant else found


def _recipe(where: Place, args: argparse.Namespace) -> dict[str, str]:
    from pipeline.inputs import azure_address
    from pipeline.publish import zip_file
    from pipeline.publish.azure import pull

    uri = azure_address.PREFIX + str(args.name).removeprefix(azure_address.PREFIX)
    found = azure_address.parse(uri, where)
    return {"uri": found.uri, "recipe": pull.read_text(found, zip_file.RECIPE)}


def _lines(what: str, found: Any) -> list[str]:
    from pipeline.publish.azure.login import KEY, WITHOUT_KEY

    if what == "whoami":
        lines = [f"{found['name']} of tenant {found['tenant']}, by {found['login']}"]
        may = found.get("may", {})
        lines += [
            f"  {'may' if yes else 'may not'} {word} in {found['workspace']}" for word, yes in may.items()
        ]
        return lines + ([f"  {WITHOUT_KEY}."] if may.get(KEY) is False else [])
    if what == "recipe":
        return [found["recipe"].rstrip()]
    if what == "workspaces":
        rows = found["workspaces"]
        seen = [f"{row['workspace']}  {row['resource_group']}  {row['subscription']}" for row in rows]
        return seen + [f"Left out: {sentence}" for sentence in found["left_out"]]
    return [
        f"{row['name']}:{row['version']}  {row['created']}  verified: {row['tags'].get('verified', '?')}"
        for row in found
    ]


def add(verb: Verb) -> None:
    """Add these verbs to the parser."""
    verb("azure", azure).flags = _azure_flags
    verb("pull", pull).flags = _pull_flags


def _azure_flags(added: argparse.ArgumentParser) -> None:
    added.add_argument("what", choices=WHAT)
    added.add_argument("name", nargs="?", help="with models: list only this one; with recipe: NAME:VERSION")
    added.add_argument("--remember", action="store_true", help="remember login and workspace")
    _where(added)


def _pull_flags(added: argparse.ArgumentParser) -> None:
    added.add_argument("model", metavar="azureml:NAME:VERSION|azureml://registries/R/models/N/versions/V")
    added.add_argument(
        "--to", type=Path, metavar="FOLDER", help="default: NAME-VERSION, in the current folder"
    )
    _where(added)


def _where(added: argparse.ArgumentParser) -> None:
    from pipeline.inputs.azure_workspace import LOGINS

    added.add_argument("--login", choices=LOGINS, help="default: the last one that worked, or cli")
    for flag in ("--subscription", "--resource-group", "--workspace"):
        added.add_argument(flag, default="", help="default: the remembered one")
    added.add_argument(
        "--registry", default="", help="a registry that workspaces share, instead of a workspace"
    )
    added.add_argument("--config", default="", metavar="FILE", help="a config.json as Azure ML writes it")
    added.add_argument("--json", action="store_true")
