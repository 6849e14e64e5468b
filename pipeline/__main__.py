"""`python -m pipeline`, or `olive-lab` where a wheel is installed: the lab's verbs on the command line.

Exit codes: 0 good, 1 the run or stage did not end well, 2 bad input and nothing was started.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import display, settings
from pipeline.cli import azure, history, hub, page, publish, queue, starter
from pipeline.cli.queue import note, recipe_of
from pipeline.errors import LONGEST_PROBLEM, InputError, LabError, sentence
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, QUEUED, RUNNING
from pipeline.system import terminal_guard
from pipeline.system.files import to_json

if TYPE_CHECKING:  # imported where it is used: other verbs are there sooner without it
    from pipeline.exports.chat_client import Source

TRACEBACKS = "errors.log"  # in the home


def check(args: argparse.Namespace) -> int:
    """Check a dataset against a template; with --model also against that model's chat template."""
    from pipeline import display
    from pipeline.inputs.models import base_models
    from pipeline.runs import data_check
    from pipeline.stages import recipe

    model = base_models.resolve(recipe.model_path(args.model, Path.cwd())) if args.model else None
    report = data_check.check(args.data, args.template, model, max_length=args.max_length)
    fields = ", ".join(display.short(field) for field in report.fields)
    print(f"{display.plain(str(args.data))}: {report.rows:,} rows, fields {fields}: good")
    for text in [*report.notes, *([report.unasked] if report.unasked else [])]:
        print(f"Note: {text}")
    if report.example:
        print(f"\nThe first row as the model reads it:\n\n{display.plain(report.example)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Queue a run and follow it to its end."""
    from pipeline.cli import terminal
    from pipeline.runs import submit

    store = Store(settings.home())
    run_id = submit.submit(store, recipe_of(store, args.recipe, args.set), note=note)
    print(f"Run {run_id} is queued. Ctrl-C stops following; the run goes on.", flush=True)
    return terminal.run(store, run_id)


def submit_(args: argparse.Namespace) -> int:
    """Queue a run and print its id."""
    from pipeline.runs import submit

    store = Store(settings.home())
    print(submit.submit(store, recipe_of(store, args.recipe, args.set), note=note))
    return 0


def show(args: argparse.Namespace) -> int:
    """One run with its stages."""
    from pipeline.cli import terminal

    found = Store(settings.home()).get(args.run)
    print(to_json(found.to_dict(), indent=2) if args.json else terminal.summary(found))
    return 0


def logs(args: argparse.Namespace) -> int:
    """The log of a stage, by default of the one that runs or ran last."""
    from pipeline.cli import terminal

    store = Store(settings.home())
    found = store.get(args.run)
    names = [stage.name for stage in found.stages]
    if args.stage and args.stage not in names:
        raise InputError(f"{display.line(args.stage)}: no such stage; this run has {', '.join(names)}")
    if args.stage is None and found.current is None:
        raise InputError(f"{found.id}: this run has no stages")
    stage = args.stage or (found.current.name if found.current else "")
    terminal.log(store, found.id, stage, wait=args.follow)
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Ask for the end of a run and wait for it."""
    from pipeline.cli import terminal
    from pipeline.worker import loop

    store = Store(settings.home())
    found = store.get(args.run)
    store.request_cancel(found.id)
    loop.ensure(store.home)
    ended = terminal.until_ended(store, found.id)
    if found.status != DONE:
        print(f"Run {ended.id} is {ended.status}.")
    for stage in found.stages:
        if stage.kind == PUBLISH and stage.status in (QUEUED, RUNNING):
            print(f"{stage.name} of run {ended.id} is {ended.stage(stage.name).status}.")
    return 0


def retry(args: argparse.Namespace) -> int:
    """Queue a run again from the stage that did not end well."""
    from pipeline.worker import loop

    store = Store(settings.home())
    found = store.get(args.run)
    store.retry(found.id)
    loop.ensure(store.home)
    print(f"Run {found.id} is queued again; `{settings.command()} logs {found.id} --follow` follows it.")
    return 0


def chat(args: argparse.Namespace) -> int:
    """Ask a finished run, or an exported folder, something, with and without its adapter."""
    import asyncio

    from pipeline.exports import chat_client

    folder = Path(args.run)
    home = settings.home()
    if folder.is_dir():
        source = chat_client.of_folder(folder, f"folder {folder}")
    else:
        source = chat_client.of_run(Store(home).get(args.run))
    if args.adapter:
        source = chat_client.with_adapter(source, args.adapter)
    sides = source.sides if args.side == "both" else (args.side,)
    answers = asyncio.run(_ask(home, source, sides, args))
    if args.json:
        print(to_json({"prompt": args.prompt, "seed": args.seed, **answers}, indent=2, ensure_ascii=False))
        return 0
    for side, answer in answers.items():
        speed = f"{answer['tokens']} tokens, {answer['tokens_per_second']:.0f} a second"
        print(f"{side} ({speed}):\n{display.answer(answer).strip()}\n")
    return 0


async def _ask(
    home: Path, source: Source, sides: tuple[str, ...], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    from pipeline.exports import chat_client

    answers: dict[str, dict[str, Any]] = {side: {"text": ""} for side in sides}
    try:
        async for piece in chat_client.stream(
            home, source, args.prompt, sides, args.seed, args.max_new_tokens, args.temperature, args.system
        ):
            answer = answers[piece.pop("side")]
            answer["text"] += piece.pop("text", "")
            answer.update({key: value for key, value in piece.items() if key != "done"})
    finally:
        await chat_client.shutdown()
    return answers


def download(args: argparse.Namespace) -> int:
    """Write a finished run's exported model, with card, recipe and checksums, as a ZIP."""
    from pipeline.publish import zip_file

    store = Store(settings.home())
    found = store.get(args.run)
    target = args.to or Path(zip_file.file_name(found))
    written = zip_file.save(store.home, found, target)
    print(f"{target}: {written:,} bytes; unpacked, `python app.py` in it needs only onnxruntime-genai")
    return 0


def verify_(args: argparse.Namespace) -> int:
    """Check an exported folder, or the one of a run: its files fit together, and the model answers."""
    from pipeline.cli import terminal
    from pipeline.exports import verify
    from pipeline.exports.findings import failed

    folder = _exported(args.target)
    findings = verify.whole(folder)
    good = not failed(findings)
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(to_json({"folder": str(folder), "good": good, "checks": rows}, indent=2, ensure_ascii=False))
    else:
        print(f"{folder}\n{terminal.checks(findings)}")
    return 0 if good else 1


def convert(args: argparse.Namespace) -> int:
    """Write a PEFT LoRA adapter as a file for a graph that is exported already."""
    from pipeline.runs import convert_adapter

    folder = _exported(args.target)
    file = convert_adapter.convert(args.adapter, folder, args.to, same_base=args.same_base)
    print(f"{file}: {file.stat().st_size:,} bytes, for the graph in {folder}")
    return 0


def _exported(target: str) -> Path:
    """The folder that was given, or the exported one of the run of that id. Raises InputError."""
    if Path(target).is_dir():
        return Path(target).resolve()
    if "/" in target:
        raise InputError(f"{target}: no such folder")
    found = Store(settings.home()).get(target)
    folder = found.artifact("onnx")
    if folder is None:
        raise InputError(f"{found.id}: this run has no exported model; it is {found.status}")
    return Path(folder)


def scorecard_(args: argparse.Namespace) -> int:
    """Quantize a model in several ways and measure each: size, perplexity, time, memory, speed."""
    from pipeline.cli import terminal
    from pipeline.runs import scorecard
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
    return 0 if not refused and all(row.status == DONE for row in rows) else 1


def serve(args: argparse.Namespace) -> int:
    """Serve the queue until it has been empty for a while."""
    from pipeline.worker import loop

    return loop.serve(settings.home(), args.lock)


def installed() -> int:
    """The command that a wheel installs: the same, by its own name."""
    settings.call_it(settings.COMMAND)
    return main()


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and carry out the verb."""
    settings.quiet_this_process()
    settings.keep_private()
    terminal_guard.guard()
    args = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], int] = args.action
    try:
        if action not in (serve, page.app):  # the page has its own place for it
            _tell_notice()
        code = action(args)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except LabError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"{sentence(error)}{'' if isinstance(error, OSError) else _kept()}", file=sys.stderr)
        return 1


def _kept() -> str:
    """Keep the traceback of what went wrong here in the home, for a report; say where it is."""
    try:
        file = settings.home() / TRACEBACKS
        with file.open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
    except (LabError, OSError):
        return ""
    return f" The details are in {file}."


def _tell_notice() -> None:
    """Say once what people are to know of the database, such as that it was damaged and is restored."""
    with suppress(LabError):  # the verb will say it, if it needs the store at all
        home = settings.home()
        if (home / "runs.db").exists() and (notice := Store(home).unheard()):
            print(notice, file=sys.stderr)


class _Verb(argparse.ArgumentParser):
    """A verb. Its `flags` are added when it is used: what they name takes imports that others do without."""

    flags: Callable[[argparse.ArgumentParser], None] | None = None

    def error(self, message: str) -> NoReturn:
        """As usual, but never pages of what was given."""
        super().error(display.cut(message, LONGEST_PROBLEM))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, with the flags."""
        flags, self.flags = self.flags, None
        if flags is not None:
            flags(self)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Verb(prog=settings.command(), description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Verb)

    def verb(name: str, action: Callable[[argparse.Namespace], int]) -> _Verb:
        added = verbs.add_parser(name, help=(action.__doc__ or "").splitlines()[0])
        added.set_defaults(action=action)
        return added

    verb("check", check).flags = _check_flags
    for name, action in (("run", run), ("submit", submit_)):
        added = verb(name, action)
        added.add_argument(
            "recipe", metavar="RECIPE.yaml|RUN", help="a file, or a run to do again with changes"
        )
        added.add_argument("--set", action="append", metavar="KEY=VALUE", help="finetune.max_steps=10, say")
    page.add(verb)
    starter.add(verb)
    history.add(verb)
    added = verb("show", show)
    added.add_argument("run")
    added.add_argument("--json", action="store_true")
    added = verb("logs", logs)
    added.add_argument("run")
    added.add_argument("stage", nargs="?")
    added.add_argument("--follow", action="store_true", help="go on until the stage ends")
    verb("cancel", cancel).add_argument("run")
    verb("retry", retry).add_argument("run")
    queue.add(verb)
    verb("scorecard", scorecard_).flags = _scorecard_flags
    verb("chat", chat).flags = _chat_flags
    added = verb("verify", verify_)
    added.add_argument("target", metavar="FOLDER|RUN")
    added.add_argument("--json", action="store_true")
    added = verb("convert", convert)
    added.add_argument("adapter", type=Path, metavar="PEFT_FOLDER")
    added.add_argument("target", metavar="FOLDER|RUN", help="the exported graph")
    added.add_argument(
        "--to", type=Path, metavar="FILE.onnx_adapter", help="default: PEFT_FOLDER's name, here"
    )
    added.add_argument(
        "--same-base", action="store_true", help="the adapter's base is this one by another name"
    )
    publish.add(verb)
    azure.add(verb)
    hub.add(verb)
    added = verb("download", download)
    added.add_argument("run")
    added.add_argument("--to", type=Path, metavar="FILE.zip", help="default: the run's name and id, here")
    # An open descriptor of the worker's lock, from whoever started this process: see worker.ensure.
    verb("worker", serve).add_argument("--lock", type=int, help=argparse.SUPPRESS)
    return parser


def _check_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.inputs.prompts import templates
    from pipeline.stages import finetune

    added.add_argument("data", type=Path, metavar="DATA.jsonl")
    added.add_argument("--template", default=templates.CHAT, help="chat, or a text with {placeholders}")
    added.add_argument("--model", help="render every row with this model's chat template, and count tokens")
    added.add_argument(
        "--max-length", type=_positive, default=finetune.Options.max_length, metavar="N",
        help="finetune.max_length: rows of more tokens are counted (default: %(default)s)",
    )  # fmt: skip


def _chat_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.exports import chat_client

    added.add_argument("run", metavar="RUN|FOLDER")
    added.add_argument("prompt")
    added.add_argument("--system", default="", metavar="TEXT", help="a system text before the prompt")
    added.add_argument(
        "--adapter", metavar="NAME|FILE", help="another adapter of the folder, or a file of one"
    )
    added.add_argument("--side", choices=[*chat_client.SIDES, "both"], default="both")
    added.add_argument("--json", action="store_true")
    added.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N")
    added.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    added.add_argument("--seed", type=int, default=0)


def _scorecard_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.inputs.prompts import templates
    from pipeline.runs import scorecard

    added.add_argument("model", help="a catalogue id, a hub id such as org/name, or a folder")
    added.add_argument("--data", type=Path, required=True, metavar="DATA.jsonl")
    added.add_argument("--template", default=templates.CHAT, help="chat, or a text with {placeholders}")
    listed = ",".join((scorecard.FLOAT, *scorecard.WAYS))
    added.add_argument(
        "--algorithms", default=",".join(scorecard.DEFAULT), help=f"some of {listed} (default: %(default)s)"
    )
    added.add_argument("--set", action="append", metavar="KEY=VALUE", help="quantize.group_size=32, say")
    added.add_argument("--json", action="store_true")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
