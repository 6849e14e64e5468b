"""Verbs of an exported model: ask it, serve it, check it, add adapters, bind one, download it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import display, settings
from pipeline.cli.queue import Verb, positive
from pipeline.errors import InputError, LabError
from pipeline.store import Store
from pipeline.system.files import to_json, whole

if TYPE_CHECKING:  # imported where it is used, so that other verbs start faster
    from pipeline.exports.chat.sources import Source

Answers = dict[str, dict[str, Any]]  # by side: its text, and its figures once it is complete
STOPPED = {"stopped": True}
ROWS = "also rows of the data: a report with examples, and answers.json; without it, the ZIP holds none"


def add(verb: Verb) -> None:
    """Add them to the parser, but for `download`."""
    verb("chat", chat).flags = _chat_flags
    verb("serve", serve).flags = _serve_flags
    added = verb("verify", verify_)
    added.add_argument("target", metavar="FOLDER|RUN")
    added.add_argument("--json", action="store_true")
    added = verb("convert", convert)
    added.add_argument("adapter", type=Path, metavar="PEFT_FOLDER")
    added.add_argument("target", metavar="FOLDER|RUN", help="the exported graph")
    added.add_argument(
        "--to",
        type=Path,
        metavar="FILE.onnx_adapter",
        help="default: PEFT_FOLDER's name, in the current folder",
    )
    added.add_argument(
        "--same-base", action="store_true", help="the adapter's base is the same model under another name"
    )

    added = verb("bind", bind)
    added.add_argument("target", metavar="RUN|FOLDER", help="the exported graph with its detachable adapter")
    added.add_argument(
        "--adapter", metavar="NAME|FILE", help="another adapter in the folder, or an adapter file"
    )
    added.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="a new folder, or an empty one"
    )


def add_report(verb: Verb) -> None:
    """Add `report`."""
    added = verb("report", report)
    added.add_argument("run")
    added.add_argument("--to", type=Path, metavar="FILE", help="default: print it; a file there is replaced")
    added.add_argument("--format", choices=("html", "md"), help="default: by the name of the file, else md")
    added.add_argument("--rows", action="store_true", help="with examples from the run's data")


def report(args: argparse.Namespace) -> int:
    """Write what a run did, how good its adapter is, and by which files, as a page of HTML or Markdown."""
    from pipeline.publish.report import files

    store = Store(settings.home())
    by_name: files.Format = "html" if args.to and args.to.suffix.lower() in (".html", ".htm") else "md"
    kind: files.Format = args.format or by_name
    text = files.text(store.home, store.get(args.run), kind, args.rows)
    if args.to is None:
        print(text, end="")
        return 0
    if not args.to.parent.is_dir():
        raise InputError(f"{args.to.parent}: no such folder")
    with whole(args.to, shared=True) as part:
        part.write_text(text, encoding="utf-8")
    print(f"{args.to}: {len(text.encode()):,} bytes")
    return 0


def add_download(verb: Verb) -> None:
    """Add `download`."""
    added = verb("download", download)
    added.add_argument("run")
    added.add_argument(
        "--to", type=Path, metavar="FILE.zip", help="default: the run's name and id, in the current folder"
    )
    added.add_argument("--rows", action="store_true", help=ROWS)


def chat(args: argparse.Namespace) -> int:
    """Ask a finished run or an exported folder a question, with and without its adapter.

    What was answered until somebody stops it, or until it fails, is printed as well.
    """
    import asyncio

    from pipeline.exports.chat import sources

    folder = Path(args.run)
    home = settings.home()
    if folder.is_dir():
        source = sources.of_folder(folder, f"folder {folder}")
    else:
        source = sources.of_run(Store(home).get(args.run))
    if args.adapter:
        source = sources.with_adapter(source, args.adapter)
    sides = source.sides if args.side == "both" else (args.side,)
    answers: Answers = {side: {"text": ""} for side in sides}
    try:
        asyncio.run(_ask(home, source, answers, args))
    except (LabError, KeyboardInterrupt):
        if any(answer["text"] for answer in answers.values()):
            _print(answers, args)
        raise
    _print(answers, args)
    return 0


def _print(answers: Answers, args: argparse.Namespace) -> None:
    """Print answers, also those that have no figures because they were ended before they were complete."""
    if args.json:
        whole = {side: answer if "tokens" in answer else answer | STOPPED for side, answer in answers.items()}
        print(to_json({"prompt": args.prompt, "seed": args.seed, **whole}, indent=2, ensure_ascii=False))
        return
    for side, answer in answers.items():
        speed = "ended before it was complete"
        if "tokens" in answer:
            speed = f"{answer['tokens']} tokens, {answer['tokens_per_second']:.0f} a second"
        print(f"{side} ({speed}):\n{display.answer(answer).strip()}\n")


async def _ask(home: Path, source: Source, answers: Answers, args: argparse.Namespace) -> None:
    """Let the sides answer, in what `answers` has for each."""
    from pipeline.exports.chat import chat_client, chat_processes

    sides = tuple(answers)
    try:
        async for piece in chat_client.stream(
            home, source, args.prompt, sides, args.seed, args.max_new_tokens, args.temperature, args.system
        ):
            answer = answers[piece.pop("side")]
            answer["text"] += piece.pop("text", "")
            answer.update({key: value for key, value in piece.items() if key != "done"})
    finally:
        await chat_processes.shutdown()


def serve(args: argparse.Namespace) -> int:
    """Serve an exported model and its adapters to other programs, at an OpenAI-compatible endpoint."""
    from pipeline.serving import server

    return server.run(args)


def download(args: argparse.Namespace) -> int:
    """Write a finished run's exported model, with card, recipe and checksums, as a ZIP."""
    from pipeline.publish import zip_file

    store = Store(settings.home())
    found = store.get(args.run)
    target = args.to or Path(zip_file.file_name(found))
    written = zip_file.save(store.home, found, target, args.rows)
    print(f"{target}: {written:,} bytes; unpacked, `python app.py` in it needs only onnxruntime-genai")
    return 0


def verify_(args: argparse.Namespace) -> int:
    """Check an exported folder, or the one of a run: its files fit together, and the model answers."""
    from pipeline.cli import terminal
    from pipeline.exports import verify
    from pipeline.exports.findings import failed

    folder = _exported(args.target, shipped=True)
    findings = verify.whole(folder)
    good = not failed(findings)
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(to_json({"folder": str(folder), "good": good, "checks": rows}, indent=2, ensure_ascii=False))
    else:
        print(f"{folder}\n{terminal.checks(findings)}")
    return 0 if good else 1


def convert(args: argparse.Namespace) -> int:
    """Convert a PEFT LoRA adapter into a file for a graph that is already exported."""
    from pipeline.runs import convert_adapter

    folder = _exported(args.target)
    file = convert_adapter.convert(args.adapter, folder, args.to, same_base=args.same_base)
    print(f"{file}: {file.stat().st_size:,} bytes, for the graph in {folder}")
    return 0


def bind(args: argparse.Namespace) -> int:
    """Make a folder with an adapter as a part of the graph, for runtimes that load no adapters."""
    from pipeline.exports.bound import binding

    made = binding.bind(_exported(args.target), args.adapter, args.to)
    print(f"{made}\nCheck it with `{settings.command()} verify {display.plain(str(args.to))}`.")
    return 0


def _exported(target: str, shipped: bool = False) -> Path:
    """The given folder, or the exported folder of the run with that id: the one whose graph takes adapters,
    or the one that is `shipped`. Raises InputError."""
    if Path(target).is_dir():
        return Path(target).resolve()
    if "/" in target:
        raise InputError(f"{target}: no such folder")
    found = Store(settings.home()).get(target)
    folder = found.shipped if shipped else found.artifact("onnx")
    if folder is None:
        raise InputError(f"{found.id}: this run has no exported model; it is {found.status}")
    return Path(folder)


def _chat_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.exports.chat import sources

    added.add_argument("run", metavar="RUN|FOLDER")
    added.add_argument("prompt")
    added.add_argument("--system", default="", metavar="TEXT", help="a system text before the prompt")
    added.add_argument(
        "--adapter", metavar="NAME|FILE", help="another adapter in the folder, or an adapter file"
    )
    added.add_argument("--side", choices=[*sources.SIDES, "both"], default="both")
    added.add_argument("--json", action="store_true")
    added.add_argument("--max-new-tokens", type=positive, default=128, metavar="N")
    added.add_argument("--temperature", type=float, default=0.0, help="0 always picks the most likely token")
    added.add_argument("--seed", type=int, default=0)


def _serve_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.serving import server

    server.add_arguments(added)
