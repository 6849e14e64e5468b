"""The whole lab on the starter model: the real weights, the real tokenizer, real prompts."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.exports import generation, verify
from pipeline.exports.contract import ADAPTER
from pipeline.exports.findings import Finding, failed
from pipeline.inputs.models import starter
from pipeline.inputs.prompts import model_template, templates
from pipeline.publish.foundry import publisher as foundry_local
from pipeline.stages import evaluate, optimize, quantize, score
from pipeline.store import Store
from pipeline.system import checksums
from tests.helpers import foundry, openai_client
from tests.helpers.planted import finish_all, plant
from tests.helpers.starter_lab import (
    ADVICE,
    SCORE,
    checksums_anew,
    described,
    failures,
    fifty,
    loss,
    losses,
    read_parameters,
    unpacked,
    write_parameters,
)

pytestmark = pytest.mark.chain

TOLERANCE = 1e-3  # on logits up to 37 in size, after 30 layers in float32 on either side; seen: 2e-4


def test_its_tokenizer_alone_is_the_same(model: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    from pipeline.inputs.models import starter_package

    starter.tokenizer(starter_package.file(), tmp_path)
    alone, whole = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path, model))
    assert alone.get_vocab() == whole.get_vocab()
    text = "<|im_start|>system\nCafé 12345\t don't <|im_end|>\n<filename> \u65e5\u672c \U0001f642  x"
    assert alone.encode(text).ids == whole.encode(text).ids
    alone, whole = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path, model))
    assert alone.special_tokens_map == whole.special_tokens_map
    assert alone(text)["input_ids"] == whole(text)["input_ids"]


def test_awq_is_measured_and_predicts_better_than_rounding(lab: dict[str, Any]) -> None:
    measured = lab["score"].metrics
    assert measured["tokens_per_second"] > 0
    assert measured["data_perplexity"] > 1
    rounded = lab["carry_out"](quantize, quantize.Options(algorithm="rtn"), "rtn", {})
    given = {"checkpoint": rounded.artifacts[0].path}
    plain = lab["carry_out"](score, SCORE, "rtn-score", given).metrics
    assert "tokens_per_second" not in plain  # without an exported graph there is none
    assert plain["not_compared"].startswith("there is no exported graph to compare with float")
    assert "against_float" not in plain
    assert measured["general_perplexity"] < 0.97 * plain["general_perplexity"]
    for text in ("data", "general"):
        assert measured[f"{text}_divergence"] < 0.7 * plain[f"{text}_divergence"]


def test_the_exported_graph_is_measured_too(lab: dict[str, Any], exact: Path) -> None:
    """With float32 activations and output layer it is as far from the float model as the checkpoint is."""
    measured = lab["score"].metrics
    given = {"checkpoint": lab["inputs"]["checkpoint"], "onnx": exact}
    found = lab["carry_out"](score, SCORE, "exact-score", given).metrics
    # The same six blocks; PyTorch may have computed in bfloat16.
    assert found["exported_divergence"] == pytest.approx(found["general_divergence"], rel=0.05)
    assert found["exported_perplexity"] == pytest.approx(found["general_perplexity"], rel=0.02)
    # The default export rounds output layer, embedding and activations to 8 bits: next to nothing.
    assert measured["exported_divergence"] == pytest.approx(found["exported_divergence"], rel=0.1)
    assert measured["exported_divergence"] != found["exported_divergence"]


def test_rows_are_read_by_the_exported_graph_and_the_float_model(lab: dict[str, Any]) -> None:
    measured = lab["score"].metrics
    exported, exact = losses(lab["score"], "held_out"), losses(lab["score"], "float")
    assert measured["rows"] == len(exported) == len(exact) > 1
    found = measured["against_float"]
    apart = [exported[line] - exact[line] for line in exported]
    assert found["difference"] == pytest.approx(sum(apart) / len(apart))
    assert measured["exported_loss"] - measured["float_loss"] == pytest.approx(found["difference"])
    assert found["words"]
    # The checkpoint's is near, and not what is told: the graph rounds activations and the output layer too.
    graph = math.log(measured["exported_data_perplexity"])
    assert math.log(measured["data_perplexity"]) == pytest.approx(graph, abs=0.1)
    assert math.log(measured["data_perplexity"]) != pytest.approx(graph, abs=1e-5)


def test_a_float_model_is_what_its_graph_is_compared_with(lab: dict[str, Any]) -> None:
    exports = {}
    for precision in ("fp32", "int8"):
        level = 1 if precision == "fp32" else 4
        options: Any = optimize.Options(precision=precision, accuracy_level=level)  # type: ignore[arg-type]
        made = lab["carry_out"](optimize, options, f"float-{precision}", {}).artifacts[0].path
        scored = lab["carry_out"](score, SCORE, f"float-{precision}-score", {"onnx": made})
        exports[precision] = scored.metrics
        assert "general_divergence" not in exports[precision]
        assert "against_float" not in exports[precision]
        if precision == "fp32":  # so PyTorch in float32 may stand for the float export
            assert losses(scored, "held_out") == pytest.approx(losses(lab["score"], "float"), abs=1e-3)
    assert abs(exports["fp32"]["exported_divergence"]) < 2e-3  # what bfloat16 may cost PyTorch
    assert exports["int8"]["exported_divergence"] < 2e-2


def test_a_merged_adapter_answers_alone_and_its_loss_is_measured(lab: dict[str, Any], merged: Any) -> None:
    made = merged
    assert [artifact.kind for artifact in made.artifacts] == ["onnx", "merged"]
    measured = made.metrics
    trained = lab["finetune"].metrics["eval_loss_after"]
    assert math.log(measured["held_out_perplexity_detachable"]) == pytest.approx(trained, rel=0.1)
    assert measured["held_out_perplexity_merged"] < math.exp(lab["finetune"].metrics["eval_loss_before"]) / 2
    assert 0 < measured["held_out_divergence_merged"] < 0.05
    inputs = {artifact.kind: artifact.path for artifact in made.artifacts}
    answered = lab["carry_out"](
        evaluate, evaluate.Options(prompts=2, max_new_tokens=24), "merged-answers", inputs
    )
    assert "base_tokens_per_second" not in answered.metrics
    assert answered.metrics["adapter_tokens_per_second"] > 0
    for row in json.loads(answered.artifacts[0].path.read_text())["rows"]:
        assert row["base"] is None
        assert "In " in row["adapter"]["text"]


def test_foundry_local_itself_answers_as_the_lab_does(
    lab: dict[str, Any], merged: Any, store: Store, pytestconfig: pytest.Config
) -> None:
    foundry.installed(pytestconfig)
    results = {
        "optimize": {"artifacts": [described(artifact) for artifact in merged.artifacts]},
        "evaluate": {"artifacts": [described(lab["evaluate"].artifacts[0])]},
    }
    run = finish_all(store, plant(store), results)
    made = foundry_local.publish(store.home, run, foundry_local.Options(name="trips"), lambda *told: None)
    assert (made["template"], made["unusual_prompts"]) == ("its own", 0)
    assert (made["answers"], made["same_answers"]) == (3, 3)
    weights = Path(made["path"]) / "model.onnx.data"
    assert weights.samefile(Path(str(run.artifact("onnx"))) / "model.onnx.data")


def test_quantized_to_less_than_half(lab: dict[str, Any]) -> None:
    metrics = lab["quantize"].metrics
    assert metrics["group_size"] == 64
    assert metrics["bytes_after"] < metrics["bytes_before"] / 2


def test_it_learns(lab: dict[str, Any]) -> None:
    metrics = lab["finetune"].metrics
    assert metrics["eval_loss_before"] < 6  # random weights would have ln(49152) = 10.8
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] / 2


def test_the_graph_has_kept_what_was_learned(lab: dict[str, Any]) -> None:
    """On the same rows, told beside the trained loss: an output layer in 4 bits would lose 0.04."""
    metrics = lab["optimize"].metrics
    assert metrics["eval_loss_trained"] == lab["finetune"].metrics["eval_loss_after"]
    # PyTorch may have computed in bfloat16.
    assert metrics["eval_loss_graph"] == pytest.approx(metrics["eval_loss_trained"], abs=0.02)
    assert metrics["eval_loss_graph"] != metrics["eval_loss_trained"]


def test_the_export_is_small_and_complete(lab: dict[str, Any]) -> None:
    from pipeline.exports.serving_ids import APP

    assert lab["optimize"].metrics["model_bytes"] < 105_000_000
    folder = lab["inputs"]["onnx"]
    names = ["genai_config.json", "tokenizer.json", "chat_template.jinja", "lab.json", *APP]
    assert [name for name in names if not (folder / name).is_file()] == []
    assert len((folder / "app.py").read_text("utf-8").splitlines()) <= 20


def test_the_export_verifies(lab: dict[str, Any]) -> None:
    found = {finding.check: finding for finding in verify.whole(lab["inputs"]["onnx"])}
    assert {finding.status for finding in found.values()} == {"ok"}, found
    assert re.match(r"fits: (\d+) of the graph's \1 adapter", found[f"adapter {ADAPTER}"].message)
    assert len(checksums.read(lab["inputs"]["onnx"])) > 5
    assert "answers differently from the base" in found[f"answers with {ADAPTER}"].message


def test_an_adapter_of_another_model_does_not_verify(copied: Path) -> None:
    other = read_parameters(copied / ADAPTER)
    renamed = {f"other.{name}": tensor for name, tensor in other.items()}
    write_parameters(copied / ADAPTER, renamed)
    (copied / checksums.NAME).unlink()
    found = verify.whole(copied)
    assert failures(found) == [f"adapter {ADAPTER}"]
    assert f"belongs to another graph: {min(renamed)} is not" in failed(found)[0].message
    assert found[-1] == Finding("answers", "skipped", found[-1].message)


def test_an_adapter_of_zeros_does_not_verify(copied: Path) -> None:
    zeros = {name: 0 * tensor for name, tensor in read_parameters(copied / ADAPTER).items()}
    write_parameters(copied / ADAPTER, zeros)
    assert failures(verify.whole(copied)) == ["checksums"]
    checksums_anew(copied)
    found = verify.whole(copied)
    assert failures(found) == [f"answers with {ADAPTER}"]
    assert "do not differ" in failed(found)[0].message


def test_both_sides_are_measured_on_held_out_rows(lab: dict[str, Any]) -> None:
    """One row is no verdict, whatever it says; the other is nearly one that was trained on, and not asked."""
    found = lab["evaluate"].metrics
    assert (found["rows"], found["copies_left_out"]) == (1, 1)
    assert found["adapter_loss"] < found["base_loss"] / 2
    assert found["verdict"]["outcome"] == "cannot_tell"
    assert (found["verdict"]["rows"], found["verdict"]["better"]) == (1, 1)
    assert found["base_loss_on_general_text"] < 6


def test_answers_name_their_files_and_the_base_is_probed(lab: dict[str, Any]) -> None:
    sums = checksums.read(lab["inputs"]["onnx"])
    graph = {name: sums[name] for name in ("model.onnx", "model.onnx.data")}
    told = {
        "base": {"adapter": "none", "graph": graph},
        "adapter": {"adapter": sums[ADAPTER], "graph": graph},
    }
    assert json.loads(lab["evaluate"].artifacts[0].path.read_text())["files"] == told
    assert lab["evaluate"].metrics["files"] == told
    probe = lab["evaluate"].metrics["probe"]
    assert probe["good"] is True, probe
    assert probe["off"] == probe["fresh"] != probe["on"]
    assert "bit for bit" in probe["text"]


def test_losses_by_genais_logits_are_those_of_the_graph(lab: dict[str, Any]) -> None:
    """Of the same tokens: kernels that round activations to 8 bits give other results for another number of
    them. One token more, the last, which is never read to predict another: 4.6918 instead of 4.6901; with
    float32 activations it changes nothing."""
    import torch

    from pipeline.exports import token_losses
    from pipeline.passes.measure.graph_logits import logits_of
    from pipeline.passes.measure.perplexity import loss_of_logits
    from pipeline.passes.rows import Rows

    folder = lab["inputs"]["onnx"]
    model = generation.load(folder, {"adapter": folder / ADAPTER})
    read = Rows(lab["rows"][:2], model.template, folder, 512, "response")
    samples = []
    for at in range(2):
        ids, labels = read[at][0]["input_ids"], read[at][1]
        end = int((labels >= 0).nonzero()[-1]) + 1
        samples.append((ids[:end], labels[:end]))
    for name in (None, "adapter"):
        whole = logits_of(folder, folder / ADAPTER if name else None)

        def without_last(ids: Any, whole: Any = whole) -> Any:
            return torch.nn.functional.pad(whole(ids[:-1]), (0, 0, 0, 1))

        right = loss_of_logits(without_last, samples)
        found = [
            token_losses.measure(model, ids.tolist(), (labels >= 0).tolist(), name) for ids, labels in samples
        ]
        mean = sum(loss.total for loss in found) / sum(loss.tokens for loss in found)
        assert mean == pytest.approx(right, abs=1e-4)  # seen: 1e-5


def test_answers_of_both_sides(lab: dict[str, Any]) -> None:
    rows = json.loads(lab["inputs"]["answers"].read_text())["rows"]
    assert len(rows) == 1
    for row in rows:
        assert row["adapter"]["text"] != row["base"]["text"]
        assert row["base"]["tokens_per_second"] > 0
        assert 0 < row["adapter"]["tokens"] <= 24
        assert "In " in row["adapter"]["text"]
        assert row["prompt"] in [r["prompt"] for r in lab["rows"]]


def test_the_zip_answers_where_there_is_nothing_but_onnxruntime_genai(
    lab: dict[str, Any], bound: dict[str, Path], fresh: Path, store: Store, tmp_path: Path
) -> None:
    made = {kind: lab["inputs"][kind] for kind in ("onnx", "onnx_adapter")}
    folder = unpacked(store, made, tmp_path / "elsewhere")

    def answers(folder: Path = folder) -> dict[str, str]:
        """What app.py answers to the same question asked twice, by side."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [fresh, "app.py"], input=f"{ADVICE['prompt']}\n" * 2, cwd=folder, env=bare,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        said = re.findall(r"^\[(\w+)\] (.*?)\n\n(?=\[|\Z)", done.stdout, re.M | re.S)
        assert said[: len(said) // 2] == said[len(said) // 2 :]
        return dict(said)

    both = answers()
    assert list(both) == ["base", "adapter_weights"]
    loaded = generation.load(lab["inputs"]["onnx"], {"adapter": lab["inputs"]["onnx_adapter"]})
    for side, name in (("base", None), ("adapter_weights", "adapter")):
        ours = generation.stream(loaded, loaded.template.prompt(ADVICE), name, max_new_tokens=200)
        assert both[side] == "".join(ours).strip()
    (folder / "adapter_weights.onnx_adapter").rename(folder / "warm.onnx_adapter")
    assert answers() == {"base": both["base"], "warm": both["adapter_weights"]}
    (folder / "warm.onnx_adapter").unlink()
    assert answers() == {"base": both["base"]}
    alone = generation.load(bound["bound"])
    ours = "".join(generation.stream(alone, alone.template.prompt(ADVICE), max_new_tokens=200))
    assert answers(unpacked(store, bound, tmp_path / "bound")) == {"bound": ours.strip()}


def test_logits_of_torch_and_of_the_graph(lab: dict[str, Any], exact: Path) -> None:
    import torch
    from olive.model import HfModelHandler
    from peft import PeftModel
    from transformers import AutoTokenizer

    from pipeline.passes.finetune.quant_lora import unpack_where_it_fits
    from tests.passes.optimize.test_export import exported, run

    checkpoint, adapter = lab["inputs"]["checkpoint"], lab["inputs"]["adapter"]
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    logits = exported(exact)
    model = handler.load_model(cache_model=False).eval()
    unpack_where_it_fits(model, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    template = templates.parse("chat", model_template.chat_template(checkpoint))
    prompts = [tokenizer(template.prompt(row))["input_ids"] for row in (ADVICE, lab["rows"][0])]
    base = [run(model, ids) for ids in prompts]
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    for ids, before in zip(prompts, base, strict=True):
        after = run(adapted, ids)
        assert abs(after - before).max() > 5
        assert abs(before - logits(ids, False)).max() < TOLERANCE
        assert abs(after - logits(ids, True)).max() < TOLERANCE


def test_the_graph_predicts_what_pytorch_does(lab: dict[str, Any], exact: Path) -> None:
    """On fifty prompts: all but the same in float32, and near it as exported by default, where the output
    layer, embedding and activations are rounded besides."""
    from pipeline.passes.measure import parity

    checkpoint, adapter, default = (lab["inputs"][kind] for kind in ("checkpoint", "adapter", "onnx"))
    texts = fifty(checkpoint)
    known = parity.expected(checkpoint, adapter, texts)
    # With an output layer in 4 bits the second divergence is ten times that.
    for folder, agreement, divergence in ((exact, 0.995, 1e-4), (default, 0.95, 0.01)):
        found = parity.measure(known, folder, folder / ADAPTER, texts)
        print(found)
        for side in ("base", "adapter"):
            assert found[side].agreement > agreement
            assert found[side].divergence < divergence


def test_a_bound_adapter_computes_what_the_detachable_one_does(bound: dict[str, Path], lab: Any) -> None:
    """Bit for bit, as shipped and where no constants are packed ahead: 1e-5 a token would do as shipped."""
    import torch

    from pipeline.exports.bound.binding import facts_of
    from pipeline.passes.measure.graph_logits import logits_of

    folder = bound["onnx"]
    assert facts_of(bound["bound"])["tensors"] == 300
    assert [each.status for each in verify.static(bound["bound"])] == ["ok"] * 7
    assert (bound["bound"] / "model.onnx.data").samefile(folder / "model.onnx.data")
    texts = fifty(lab["inputs"]["checkpoint"])[:4]
    short = texts[0][:12]  # without packing ahead each call unpacks the output layer, for most of a second
    plain, shipped = (logits_of(bound["bound"], prepacked=prepacked) for prepacked in (False, True))
    beside = folder / ADAPTER
    assert torch.equal(plain(short), logits_of(folder, beside, prepacked=False)(short))
    detachable, base = logits_of(folder, beside), logits_of(folder)
    for ids in texts:
        assert torch.equal(shipped(ids), detachable(ids))
    assert abs(shipped(short) - base(short)).max() > 1


def test_another_adapter_takes_the_same_graph(lab: dict[str, Any], tmp_path: Path) -> None:
    """Of other rank, over some of the modules: only its file is written."""
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(lab["inputs"]["adapter"], tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "v_proj"]}))
    weights = load_file(other / "adapter_model.safetensors")
    some = {name: each for name, each in weights.items() if "q_proj" in name or "v_proj" in name}
    half = {
        name: (each[: len(each) // 2] if "lora_A" in name else each[:, : each.shape[1] // 2]).contiguous()
        for name, each in some.items()
    }
    save_file(half, other / "adapter_model.safetensors")
    first = lab["inputs"]["onnx"]
    given = {"checkpoint": lab["inputs"]["checkpoint"], "adapter": other}
    graphs = {first: lab["optimize"].metrics["places"]}
    made = lab["carry_out"](optimize, optimize.Options(), "another", given, graphs=graphs)
    assert made.metrics["graph_reused"] is True
    assert lab["optimize"].metrics["graph_reused"] is False
    folder = made.artifacts[0].path
    for name in ("model.onnx", "model.onnx.data"):
        assert checksums.of(folder, [name]) == checksums.of(first, [name])
    assert (folder / ADAPTER).stat().st_size < (first / ADAPTER).stat().st_size / 4
    loaded = generation.load(folder, {"whole": first / ADAPTER, "part": folder / ADAPTER})
    prompt = loaded.template.prompt(ADVICE)
    texts = {
        name: "".join(generation.stream(loaded, prompt, name, max_new_tokens=24))
        for name in (None, "whole", "part")
    }
    assert len(set(texts.values())) == 3
    assert not failed(verify.static(folder))


def test_prompts_are_rendered_and_tokenized_alike_everywhere(lab: dict[str, Any], model: Path) -> None:
    """By us, by transformers, and by ONNX Runtime GenAI, as app.py does."""
    import onnxruntime_genai as og
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    template = templates.parse("chat", model_template.chat_template(model))
    messages = [{"role": "user", "content": ADVICE["prompt"]}]
    text = template.prompt(ADVICE)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answered = [*messages, {"role": "assistant", "content": ADVICE["response"]}]
    assert template.full(ADVICE) == tokenizer.apply_chat_template(answered, tokenize=False).rstrip()
    exported = og.Tokenizer(og.Model(str(lab["inputs"]["onnx"])))
    assert exported.apply_chat_template(messages=json.dumps(messages), add_generation_prompt=True) == text
    assert list(exported.encode(text)) == tokenizer(text)["input_ids"]


def test_one_loaded_model_serves_both_sides(lab: dict[str, Any]) -> None:
    loaded = generation.load(lab["inputs"]["onnx"], {"adapter": lab["inputs"]["onnx_adapter"]})
    prompt = loaded.template.prompt(ADVICE)

    def answer(adapter: str | None, **options: Any) -> dict[str, Any]:
        said = generation.stream(loaded, prompt, adapter, **{"max_new_tokens": 12, **options})
        assert "".join(said) == said.text
        return said.facts()

    base, adapted = answer(None), answer("adapter")
    assert adapted["text"] != base["text"]
    assert answer(None)["text"] == base["text"], "the adapter must leave no trace"
    assert answer("adapter")["text"] == adapted["text"]
    hot = {"temperature": 1.5, "top_p": 0.95}
    assert answer(None, seed=1, **hot)["text"] == answer(None, seed=1, **hot)["text"]
    assert answer(None, seed=1, **hot)["text"] != answer(None, seed=2, **hot)["text"]
    short, whole = answer("adapter", max_new_tokens=3), answer("adapter", max_new_tokens=500)
    assert (short["tokens"], short["cut"], whole["cut"]) == (3, True, False)
    assert not answer("adapter", max_new_tokens=whole["tokens"])["cut"], "the end token is the last allowed"
    assert answer("adapter", max_new_tokens=whole["tokens"] - 1)["cut"]
    with pytest.raises(ValueError, match="this model reads 8192"):
        next(iter(generation.stream(loaded, "word " * 9000)))


def test_perplexity_of_the_checkpoint_is_near_the_float_models(lab: dict[str, Any], model: Path) -> None:
    """Loaded wrongly, a quantized checkpoint has random weights, a perplexity of 1e18, and no error."""
    before, after = loss(model), loss(lab["inputs"]["checkpoint"])
    assert before < 3
    assert after < before + 0.7


def test_openais_client_gets_the_answers_of_both_sides(
    lab: dict[str, Any], asking: openai_client.Asking
) -> None:
    folder = lab["inputs"]["onnx"]
    model = generation.load(folder, {"adapter_weights": folder / ADAPTER})
    prompt = model.template.prompt({"prompt": openai_client.QUESTION})
    expected = {}
    for name in ("base", "adapter_weights"):
        adapter = name if name in model.names else None
        answer = generation.stream(model, prompt, adapter, max_new_tokens=openai_client.TOKENS)
        expected[name] = "".join(answer).strip()
    assert expected["base"] != expected["adapter_weights"]
    openai_client.check_answers(asking, expected, len(model.reader.encode(prompt)))


def test_openais_client_chooses_how_answers_are(asking: openai_client.Asking) -> None:
    openai_client.check_options(asking)


def test_openais_client_is_refused_in_sentences(asking: openai_client.Asking) -> None:
    openai_client.check_refusals(asking, 8192)


def test_sixteen_clients_at_once_get_the_answers_of_one(asking: openai_client.Asking) -> None:
    openai_client.check_many(asking, ("base", "adapter_weights"))


def test_a_client_that_goes_leaves_the_model_to_others(asking: openai_client.Asking) -> None:
    with asking.ask("Tell a long story of the sea.", max_tokens=8000, stream=True) as stream:
        next(iter(stream))
    began = time.monotonic()
    alone = asking.ask(max_tokens=8)
    assert alone.choices[0].message.content
    assert time.monotonic() - began < 60, "the story would take minutes"
