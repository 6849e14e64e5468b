"""The whole lab on a GPU: a model of Phi-3.5-mini's exact shape, and AutoAWQ beside our AWQ.

    python -m benchmarks.gpu [--work FOLDER] [--parts chain,beside,ranks,engines,quality,steps] [--blocks 128]
                             [--ahead | --cold] [--again 2]

chain     AWQ -> 100 LoRA steps -> int4 ONNX with adapter of a random 3.8 B model, by `python -m pipeline run`
beside    that chain once, then twice at the same time on two GPUs: the walls of one and of both
ranks     400 LoRA steps of the float model, 32 rows each, on one GPU and on all: tokens/s, and the losses
engines   quantize of the same model by our AWQ and by AutoAWQ on the same calibration, one after the other
quality   `python -m pipeline scorecard` of the starter model, in groups of 64 and of 32: rtn, awq (with
          GPTQ after it), awq-alone, autoawq
steps     where the time of quantizing goes, AWQ alone and with GPTQ after it (`benchmarks.quantize_steps`):
          of that model, and of the starter model where `quality` or a run has unpacked it into --work
`chain` also says by its events how long each stage did what. With `--again 2` two more follow with other
seeds, whose recipe is not tried on one layer any more. With `--ahead` the worker has imported what stages
need before a run starts, as it has where the app runs. With `--cold` there is no worker: each run starts one.
With `--blocks 128` it calibrates on so many, of words in any order: the sample's rows do not fill them.
Needs CUDA and the GPU set. Seconds are those of the stages; `wall` is the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lab import serving
from pipeline import settings
from pipeline.display import size as as_size
from pipeline.passes.quantize.calibration import TEXTS
from pipeline.stages import events
from pipeline.store import Store
from pipeline.store.run import EVENTS, Run
from pipeline.system import hardware, locks
from pipeline.worker.ahead import warm
from pipeline.worker.loop import WORKER_LOCK

PARTS = ("chain", "beside", "ranks", "engines", "quality", "steps")
GROUPS = (64, 32)  # that quality is measured in
# Seconds without work of the process that imports, after which it has done so.
STILL_SECONDS = 3.0
DATA = settings.SAMPLES / "travel.jsonl"
# Phi-3.5-mini-instruct's config.json, but for the values of its long RoPE's factors, which change no time.
SHAPE: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "rope_parameters": {
        "rope_type": "longrope",
        "type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + i / 20 for i in range(48)],
        "long_factor": [1.0 + i for i in range(48)],
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CHAIN: dict[str, Any] = {
    "name": "phi",
    "quantize": {"algorithm": "awq", "compensate": False},  # the goals are of AWQ alone
    "finetune": {"max_steps": 100, "batch_size": 4, "learning_rate": 1e-4},
    "evaluate": None,
}
TRAINING: dict[str, Any] = {
    "quantize": None,
    "finetune": {"max_steps": 400, "batch_size": 32, "learning_rate": 1e-4},
    "optimize": None,
    "evaluate": None,
}
TEMPLATE = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where model and runs go; kept if given")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument(
        "--blocks", type=int, help="of 512 tokens, for chain (default: 32) and engines (128, AutoAWQ's)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the chain")
    parser.add_argument("--again", type=int, default=0, help="chains that follow, with other seeds")
    parser.add_argument("--ahead", action="store_true", help="start once the libraries are imported")
    parser.add_argument("--cold", action="store_true", help="the chain with no worker that runs before it")
    args = parser.parse_args()
    if not hardware.gpus():
        sys.exit("nvidia-smi found no NVIDIA GPU.")
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        home = work / "home"
        home.mkdir(parents=True, exist_ok=True)
        parts = args.parts.split(",")
        if not set(parts) <= set(PARTS):
            parser.error(f"--parts: allowed are {', '.join(PARTS)}")
        if set(parts) - {"quality"}:
            model = random_model(work / "phi")
        if "chain" in parts and args.cold:
            chain(home, model, args, workers_end=True)
        with serving(home, ahead=args.ahead):
            if args.ahead:
                until_imported()
            if "chain" in parts and not args.cold:
                chain(home, model, args)
            if "beside" in parts:
                beside(home, model, args.set)
            if "engines" in parts:
                engines(home, model, args.blocks or 128)
            if "quality" in parts:
                quality(home)
        if "ranks" in parts:
            ranks(work, model, args.set)
        if "steps" in parts:
            steps(home, model)


def random_model(folder: Path) -> Path:
    """Write a model of the shape with random weights and a tokenizer of 32,000 tokens, unless it is there."""
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers

    began = time.monotonic()
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**SHAPE))
    model.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    del model
    torch.cuda.empty_cache()
    torch.set_default_dtype(torch.float32)
    print(f"random model of {count / 1e9:.2f} B parameters in {time.monotonic() - began:.0f} s", flush=True)
    return folder


def tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on the bundled texts, with Phi's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    files = [*sorted(TEXTS.glob("*.txt")), DATA]
    trainer = trainers.BpeTrainer(
        vocab_size=32000, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train([str(file) for file in files], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="<|endoftext|>",
        pad_token="<unk>", additional_special_tokens=specials[3:],
    )  # fmt: skip


def chain(home: Path, model: Path, args: argparse.Namespace, *, workers_end: bool = False) -> None:
    """The whole chain, what it took, and so many more of them. `workers_end`: each starts its own worker."""
    more: dict[str, Any] = {}
    if args.blocks:
        quantize = {**CHAIN["quantize"], "calibration_blocks": args.blocks}
        data = shuffled_words(home / "words.jsonl")
        more = {"data": str(data), "eval_fraction": 0.014, "quantize": quantize}
    for seed in range(1 + args.again):
        recipe = {**CHAIN, **more, "name": f"phi{seed}", "seed": seed}
        began = time.monotonic()
        run = run_recipe(home, model, recipe, args.set)
        wall = time.monotonic() - began
        goals = "goals: cold 50, with --ahead 30, of 128 blocks 60"
        print(f"\nAWQ -> 100 LoRA steps -> int4 ONNX with adapter, wall {wall:.1f} s ({goals})")
        report(run)
        breakdown(home, run)
        if workers_end:
            end_worker(home)


def end_worker(home: Path) -> None:
    """End the worker that a run's command has started, and wait until it has."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("OLIVE_LAB_HOME") == str(home)
            if ours and process.cmdline()[1:4] == ["-m", "pipeline", "worker"]:
                process.terminate()
    while locks.held(home / WORKER_LOCK):
        time.sleep(0.05)


def breakdown(home: Path, run: Run) -> None:
    """How long each stage did what its messages say; those that differ in their numbers count as one."""
    for stage in run.stages:
        assert stage.started is not None
        assert stage.finished is not None
        told, _ = events.read(Store(home).folder(run.id, stage.name) / EVENTS)
        said = [
            (event["time"], re.sub(r"\d+", "#", event["message"])) for event in told if "message" in event
        ]
        ends = [time for time, _ in said[1:]] + [stage.finished]
        parts = [(said[0][0] - stage.started, "begins")]
        for (begin, message), end in zip(said, ends, strict=True):
            if parts[-1][1] == message:
                parts[-1] = (parts[-1][0] + end - begin, message)
            else:
                parts.append((end - begin, message))
        print(f"{stage.name}, {stage.started - run.created:.2f} s after the run was queued:")
        for seconds, message in parts:
            print(f"{seconds:9.2f}  {message}")
    print(
        f"the end {max(stage.finished or 0.0 for stage in run.stages) - run.created:.2f} s after", flush=True
    )


def beside(home: Path, model: Path, changes: list[str]) -> None:
    """The chain alone, then two of them at once, none of which has anything to reuse."""
    recipes = [{**CHAIN, "name": f"phi{seed}", "seed": seed} for seed in (1, 2, 3)]
    began = time.monotonic()
    run_recipe(home, model, recipes[0], changes)
    alone = time.monotonic() - began
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda recipe: run_recipe(home, model, recipe, changes), recipes[1:]))
    both = time.monotonic() - began
    print(f"\none chain {alone:.1f} s, two beside each other {both:.1f} s: {both / alone:.2f} (limit 1.1)")
    for run in Store(home).list()[:3]:
        report(run)


def ranks(work: Path, model: Path, changes: list[str]) -> None:
    """A training on one GPU and on all, each in a home of its own: equal results would be reused."""
    rates, losses = [], []
    for count in (1, hardware.gpus()):
        home = work / f"ranks-{count}"
        home.mkdir(exist_ok=True)
        with serving(home):
            recipe = {"name": "ranks", **TRAINING, "finetune": {**TRAINING["finetune"], "gpus": count}}
            run = run_recipe(home, model, recipe, changes)
        found, _ = events.read(Store(home).folder(run.id, "finetune") / EVENTS)
        steps = [event for event in found if "loss" in event]
        half = steps[len(steps) // 2 :]  # with all shapes of batches recorded
        made = run.stage("finetune").metrics
        rates.append((made["tokens_per_second"], (len(half) - 1) / (half[-1]["time"] - half[0]["time"])))
        losses.append([event["loss"] for event in steps])
        print(
            f"\n{count} GPUs: {rates[-1][0]:.0f} tokens/s, {rates[-1][1]:.2f} steps/s in the second half,"
            f" training {made['train_seconds']:.1f} s, held-out loss {made['eval_loss_after']:.4f}"
        )
        report(run)
    whole, late = (after / before for before, after in zip(*rates, strict=True))
    apart = max(abs(two - one) for one, two in zip(*losses, strict=True))
    print(
        f"\ntokens/s {whole:.2f} times, steps/s in the second half {late:.2f} times (goal 1.8 on two);"
        f" a step's loss differs by {apart:.4f} at most, their mean by"
        f" {abs(sum(losses[1]) - sum(losses[0])) / len(losses[0]):.5f}",
        flush=True,
    )


def until_imported() -> None:
    """Wait until the process that imports what stages need has nothing to do any more."""
    worked, since = -1.0, time.monotonic()
    while time.monotonic() - since < STILL_SECONDS:
        importing = [
            process for process in psutil.Process().children(recursive=True) if warm.FLAG in process.cmdline()
        ]
        total = sum(sum(process.cpu_times()[:2]) for process in importing)
        if total != worked or not importing:
            worked, since = total, time.monotonic()
        time.sleep(0.1)


def engines(home: Path, model: Path, blocks: int) -> None:
    """Our AWQ and AutoAWQ on the same blocks."""
    seconds = {}
    data = shuffled_words(home / "words.jsonl")
    for engine in ("lab", "autoawq"):
        quantize = {"algorithm": "awq", "engine": engine, "calibration_blocks": blocks, "general_text": 0.0}
        quantize["compensate"] = False  # AutoAWQ has no GPTQ after it
        others = {"finetune": None, "optimize": None, "evaluate": None}
        recipe = {"name": engine, "data": str(data), "quantize": quantize, **others}
        run = run_recipe(home, model, recipe, [])
        seconds[engine] = run.stage("quantize").metrics["olive_seconds"]
        print(f"\nquantize by {engine}, {blocks} blocks")
        report(run)
    print(f"\nAutoAWQ / our AWQ: {seconds['autoawq'] / seconds['lab']:.1f} (goal 8)", flush=True)


def shuffled_words(file: Path) -> Path:
    """A dataset long enough for all blocks; what it says changes no time."""
    words = (TEXTS / "calibration.txt").read_text("utf-8").split()
    dice = random.Random(0)
    rows = [
        {"prompt": " ".join(dice.sample(words, 40)), "response": " ".join(dice.sample(words, 60))}
        for _ in range(1000)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def quality(home: Path) -> None:
    """Scorecards of the starter model."""
    for group in GROUPS:
        size = f"quantize.group_size={group}"
        command = ["-m", "pipeline", "scorecard", "starter", "--data", str(DATA), "--set", size]
        text = printed(home, [*command, "--algorithms", "rtn,awq,awq-alone,autoawq"])
        print(f"\n{size}\n{text[text.index('ALGORITHM') :]}", flush=True)


def steps(home: Path, model: Path) -> None:
    """Where the time of quantizing goes, in a process of its own for each model."""
    chosen = [(model, ["--template", TEMPLATE])]
    chosen += [(folder, []) for folder in sorted((home / "models").glob("starter-*"))]
    for folder, template in chosen:
        text = printed(home, ["-m", "benchmarks.quantize_steps", str(folder), *template])
        print(f"\n{folder.name}\n{text.strip()}", flush=True)


def printed(home: Path, command: list[str]) -> str:
    """What our Python prints when given a command. Ends this one if that fails."""
    environment = {**os.environ, "OLIVE_LAB_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def run_recipe(home: Path, model: Path, recipe: dict[str, Any], changes: list[str]) -> Run:
    """Run a recipe by the command line; return the run, which must be done."""
    given = {"model": str(model), "data": str(DATA), "template": TEMPLATE, **recipe}
    file = home / f"{recipe['name']}.yaml"
    file.write_text(json.dumps(given), "utf-8")
    sets = [part for change in changes for part in ("--set", change)]
    command = [sys.executable, "-m", "pipeline", "run", str(file), *sets]
    done = subprocess.run(
        command, env={**os.environ, "OLIVE_LAB_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        logs = "".join(path.read_text(errors="replace")[-3000:] for path in home.glob("runs/*/*/log.txt"))
        sys.exit(f"{done.stdout}\n{done.stderr}\n{logs}")
    made = next(run for run in Store(home).list() if run.recipe["name"] == recipe["name"])
    if any(stage.reused for stage in made.stages):
        sys.exit("A stage was reused, so its time says nothing; give an empty --work.")
    return made


def report(run: Run) -> None:
    """A line a stage."""
    print(f"{'stage':10}{'seconds':>9}{'in Olive':>10}{'size':>12}{'memory':>12}{'on GPU':>12}")
    for stage in run.stages:
        facts = stage.metrics
        sizes = [stage.bytes, facts.get("peak_memory_bytes", 0), facts.get("peak_gpu_memory_bytes", 0)]
        print(
            f"{stage.name:10}{stage.seconds:9.1f}{facts.get('olive_seconds', 0):10.1f}"
            + "".join(f"{as_size(size):>12}" for size in sizes)
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
