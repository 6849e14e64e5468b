"""What preflight predicts and what the run then takes: memory, disk and time of each stage.

    python -m benchmarks.preflight [--device gpu] [--fit] [--only NAME,NAME] [--work FOLDER]

Every configuration is a random model of some shape and a recipe. It is run by the lab's own worker; memory is
that of the stage's whole process group, looked at 25 times a second from outside, and on a GPU that of the
allocator. A line of JSON is printed for each stage as soon as it has ended, with everything that decides it,
and at the end how far the predictions were off. `--fit` runs the configurations from which the constants in
`pipeline/stages/costs/` were derived; the others are never used for that.

`--again FILE` predicts once more for the lines that were printed before, without running anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lab import serving
from benchmarks.preflight_set import SETS, SHAPES, Configuration, Shape
from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models
from pipeline.runs import submit
from pipeline.runs.preflight import predict, row_facts
from pipeline.stages import events
from pipeline.stages import recipe as recipes
from pipeline.stages.costs import machine as machines
from pipeline.stages.costs.cost import Cost, Rows
from pipeline.store import Store
from pipeline.store.run import ENDED, EVENTS, PROCESS, Run
from pipeline.system import hardware, own_process
from pipeline.system.files import write_whole
from pipeline.worker import probe
from tests.helpers import tiny

LOOK_SECONDS = 0.04
MEASURE = """
import json
from pathlib import Path
from pipeline.runs.preflight import calibration
print(json.dumps(calibration.measure(Path.home())))
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--fit", action="store_true", help="the configurations for fitting instead")
    parser.add_argument("--only", default="", metavar="NAME;NAME", help="these configurations")
    parser.add_argument("--work", type=Path, help="where models and runs go; kept if given")
    parser.add_argument(
        "--again", type=Path, nargs="+", metavar="FILE", help="predict for lines printed before"
    )
    parser.add_argument(
        "--processor", type=float, metavar="SECONDS",
        help="with --again: compare processor time (of one thread, on a machine that others use as well), of"
        " which importing the libraries takes so much",
    )  # fmt: skip
    args = parser.parse_args()
    if args.again:
        texts = [text for file in args.again for text in file.read_text("utf-8").splitlines()]
        known = [json.loads(text) for text in texts if text.startswith("{") and '"stage"' in text]
        compare(known, args.device, args.processor)
        return
    chosen = [
        one for one in SETS[args.device, args.fit]
        if not args.only or one.name in args.only.split(";")
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        home = work / "home"
        home.mkdir(parents=True, exist_ok=True)
        os.environ["OLIVE_LAB_HOME"] = str(home)
        with serving(home):
            once = calibrated() if args.device == "gpu" else None  # nobody else is there
            done: list[dict[str, Any]] = []
            for one in chosen:
                try:
                    done += measured(one, work, home, once or calibrated())
                except (LabError, OSError) as error:
                    print(json.dumps({"name": one.name, "error": str(error)}), flush=True)
            compare(done, args.device)


def measured(one: Configuration, work: Path, home: Path, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a configuration and print a line for each stage; return them."""
    model = random_model(work / one.shape, SHAPES[one.shape])
    data = rows(work / f"{one.rows}-{one.prompt}-{one.response}.jsonl", one)
    given = {"name": "preflight", "model": str(model), "data": str(data), **one.stages()}
    chosen = recipes.from_dict(given)
    if not one.tried:
        mark_as_tried(home, chosen, data, model)
    store = Store(home)
    with watching(store) as peaks:
        run = submit.submit(store, chosen)
        while store.get(run).status not in ENDED:
            time.sleep(0.2)
    counted = tokens(model, data, one)
    found = []
    for line in lines(one, store.get(run), peaks):
        said = marks(store, run, line["stage"])
        found.append({**line, "machine": machine, "tokens": counted, "marks": said})
    for line in found:
        print(json.dumps(line), flush=True)
    return found


def tokens(model: Path, data: Path, one: Configuration) -> dict[str, Any]:
    """What is counted of the rows before a run."""
    return asdict(row_facts.of(data, "chat", base_models.resolve(str(model)), one.rows, 0.1))


def predictions(
    run: list[dict[str, Any]], device: str, processor: dict[str, float] | None = None
) -> dict[str, Cost]:
    """What was to be expected of the stages of one run, given as its lines; on another machine, if given."""
    first = run[0]
    chosen = recipes.from_dict(
        {
            "data": "x.jsonl",
            **dict.fromkeys(recipes.OPTIONS),
            **{line["stage"]: line["options"] for line in run},
        }
    )
    if processor:
        first = {**first, "machine": {device: processor}, "tried": False}
    gpu = device == "gpu"
    measured = first["machine"]
    # Calibrations before version 2 had what the processor does beside a GPU only here.
    plain = {
        "plain_bytes": measured["cpu"].get("import_bytes"),
        "plain_product": measured["cpu"].get("product_fp32"),
    }
    assumed = machines.GPU if gpu else machines.Machine()
    machine = machines.parsed({**(plain if gpu else {}), **measured[device]}, assumed)
    rows = Rows(**first["tokens"])
    tried = first["tried"] or trial_ran(first)
    question = predict.Question(first["config"], rows, machine, not tried, not processor)
    return predict.costs(chosen, question)


def trial_ran(line: dict[str, Any]) -> bool:
    """Whether a small layer was tried in a stage: unasked, where the code was changed meanwhile."""
    return any(text.startswith(probe.TITLE[:20]) for _, text in line["marks"])


def best(found: list[dict[str, Any]], imports: float) -> dict[str, float]:
    """The best rates of all calibrations on a CPU: what it does while nobody else computes."""
    known = [line["machine"]["cpu"] for line in found]
    rates = ("product_bf16", "product_fp32", "elements", "copy", "disk")
    calls = min(one["call_seconds"] for one in known)
    most = {name: max(one[name] for one in known) for name in rates}
    return {**known[0], **most, "call_seconds": calls, "import_seconds": imports}


def compare(found: list[dict[str, Any]], device: str, imports: float | None = None) -> None:
    """Print predicted and measured for each stage, and the error.

    With `imports`, seconds of processor time that importing the libraries takes, these are compared.
    """
    errors: dict[str, list[float]] = {}
    processor = best(found, imports) if imports else None
    for name in dict.fromkeys(line["name"] for line in found):
        run = [line for line in found if line["name"] == name]
        for line, cost in zip(run, predictions(run, device, processor).values(), strict=True):
            told = line["measured"]
            if told["status"] != "done" or told["reused"] or not told["peak"]:
                continue
            if line is not run[0] and trial_ran(line):
                continue  # the trial took most of it
            pairs = {
                "memory": (cost.memory.high, told["peak"]),
                "seconds": (cost.seconds.likely, told["cpu_seconds" if processor else "seconds"]),
            }
            if cost.gpu_memory and cost.gpu_memory.high and told["gpu_peak"]:
                pairs["GPU memory"] = (cost.gpu_memory.high, told["gpu_peak"])
            off = {what: said / was - 1 for what, (said, was) in pairs.items()}
            for what, value in off.items():
                errors.setdefault(what, []).append(value)
                errors.setdefault(f"{what} of {line['stage']}", []).append(value)
            words = [
                f"{what} {said / scale:8.2f} {was / scale:8.2f} {off[what]:+6.1%}"
                for what, (said, was) in pairs.items()
                for scale in [1.0 if what == "seconds" else 1e9]
            ]
            print(f"{name:26} {line['stage']:9} {'   '.join(words)}", file=sys.stderr)
    for what, values in errors.items():
        typical = statistics.median(abs(value) for value in values)
        print(
            f"{what:24} of {len(values):2}: median {typical:.1%}, {min(values):+.1%} to {max(values):+.1%}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def calibrated() -> dict[str, Any]:
    """A calibration of this moment, as nice to others as the stages are: not at all."""
    found = own_process.run(["-c", MEASURE], None, settings.stage_environment(hardware.on_gpu()))
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def marks(store: Store, run: str, stage: str) -> list[tuple[float, str]]:
    """When a stage said what, in seconds from its start."""
    found, _ = events.read(store.folder(run, stage) / EVENTS)
    said = [(event["time"], event["message"]) for event in found if event.get("message")]
    return [(round(at - said[0][0], 2), text[:40]) for at, text in said]


def lines(one: Configuration, run: Run, peaks: dict[str, int]) -> Iterator[dict[str, Any]]:
    """What there is to say of each stage."""
    about = {
        "name": one.name,
        "shape": one.shape,
        "rows": one.rows,
        "prompt": one.prompt,
        "response": one.response,
        "tried": one.tried,
    }
    config = json.loads((Path(run.recipe["model"]) / "config.json").read_text("utf-8"))
    for stage in run.stages:
        facts = stage.metrics
        found = {
            "status": stage.status, "seconds": stage.seconds, "reused": stage.reused,
            "peak": peaks.get(stage.name), "mapped": peaks.get(f"{stage.name} mapped"),
            "cpu_seconds": peaks.get(f"{stage.name} cpu", 0) / 100,
            "gpu_peak": facts.get("peak_gpu_memory_bytes"), "own_peak": facts.get("peak_memory_bytes"),
            "olive_seconds": facts.get("olive_seconds"), "train_seconds": facts.get("train_seconds"),
            "bytes": stage.bytes, "error": stage.error,
        }  # fmt: skip
        yield {**about, "stage": stage.name, "options": stage.options, "config": config, "measured": found}


@contextmanager
def watching(store: Store) -> Iterator[dict[str, int]]:
    """Look at all running stages meanwhile: the most bytes of the process group of each, by its name."""
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            for file in (store.home / "runs").glob(f"*/*/{PROCESS}"):
                if (file.parent / "result.json").exists():
                    continue
                with suppress(OSError, ValueError):
                    size, mapped, ticks = group_use(json.loads(file.read_text())["pid"])
                    name = file.parent.name
                    if size > peaks.get(name, 0):
                        peaks[name], peaks[f"{name} mapped"] = size, mapped
                    peaks[f"{name} cpu"] = max(peaks.get(f"{name} cpu", 0), ticks)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def group_use(group: int) -> tuple[int, int, int]:
    """Of all processes of a group: resident bytes, those of files among them, hundredths of seconds of
    processor time."""
    ticks = 0
    sizes = set()  # a process that is just being started still shares all memory with its parent
    for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of names, and nothing else of them
        if name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(name)) == group:
                    sizes.add(tuple(map(int, Path(f"/proc/{name}/statm").read_text().split()[:3])))
                    fields = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()
                    ticks += sum(map(int, fields[11:15]))
    resident, mapped = (sum(size[at] for size in sizes) * PAGE for at in (1, 2))
    return resident, mapped, ticks


def mark_as_tried(home: Path, chosen: recipes.Recipe, data: Path, model: Path) -> None:
    """Let the probe believe that it has tried this recipe: it is not what is measured here."""
    walk, tokenizer = probe.keys(chosen, model)
    kept = home / probe.PROBES
    (kept / tokenizer).mkdir(parents=True, exist_ok=True)
    write_whole(kept / tokenizer / f"{datasets.sha256(data)}.json", {})
    write_whole(kept / f"{walk}.json", {})


def rows(file: Path, one: Configuration) -> Path:
    """Rows of so many letters, each a token: a fifth more or less."""
    words = "the quick brown fox jumps over a lazy dog and runs away "

    def text(length: int, number: int) -> str:
        size = max(8, round(length * (0.8 + 0.4 * (number % 11) / 10)))
        return (f"{number} " + words * (size // len(words) + 1))[:size].strip()

    lines = [
        json.dumps({"prompt": text(one.prompt, n), "response": text(one.response, n * 7)}) + "\n"
        for n in range(one.rows)
    ]
    file.write_text("".join(lines), "utf-8")
    return file


def random_model(folder: Path, given: Shape) -> Path:
    """Write a random model of a shape and its tokenizer, unless it is there."""
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers

    kind, dtype, sizes = given
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = getattr(transformers, f"{kind}ForCausalLM")(
                getattr(transformers, f"{kind}Config")(**sizes)
            )
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    tiny.tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
