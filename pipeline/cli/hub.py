"""`hub` shows who is logged in to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from pipeline.cli.queue import Verb
from pipeline.system.files import to_json

PATIENCE_SECONDS = 30.0


def hub(args: argparse.Namespace) -> int:
    """Show who is logged in to the Hugging Face Hub, and the organisations they may publish to."""
    from pipeline.publish.hub.client import Hub, account
    from pipeline.publish.hub.faults import explained

    with explained("The hub"):
        found = account(Hub(PATIENCE_SECONDS).who())
    if args.json:
        print(to_json(found, indent=2, ensure_ascii=False))
        return 0
    token = f", by the token {found['token']} ({found['role']})" if found["token"] else ""
    print(f"{found['name']}{token}")
    for name in found["organisations"]:
        print(f"  and the organisation {name}")
    return 0


def add(verb: Verb) -> None:
    """Add the verb to the parser."""
    verb("hub", hub).flags = _flags


def _flags(added: argparse.ArgumentParser) -> None:
    added.add_argument("what", choices=["whoami"])
    added.add_argument("--json", action="store_true")
