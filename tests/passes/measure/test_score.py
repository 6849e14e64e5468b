"""Score on a small model: the exported graph and the float model read the same rows."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pipeline.stages import optimize, quantize, score
from pipeline.stages.context import Results
from tests.helpers import carry, tiny

pytestmark = pytest.mark.chain

OPTIONS = score.Options(rows=3, general_blocks=1, decode_tokens=8)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of the stage on an export of the rounded model, and what it was given."""
    folder = tmp_path_factory.mktemp("score")
    data = folder / "data.jsonl"
    rows = [{"prompt": f"town {n}", "response": f"{n * 7919} in valley {n * n}"} for n in range(20)]
    rows.append({"prompt": "long", "response": "x" * 300})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny.build("llama", folder / "model")
    given = carry.context_of(folder, model, data=data, eval_fraction=0.5)
    made = carry.stage(given, "rounded", quantize, quantize.Options(algorithm="rtn", group_size=16))
    checkpoint = made.artifacts[0].path
    exported = carry.stage(
        given, "exported", optimize, optimize.Options(block_size=16), checkpoint=checkpoint
    )
    inputs = {"checkpoint": checkpoint, "onnx": exported.artifacts[0].path}
    return given, inputs, carry.stage(given, "scored", score, OPTIONS, **inputs)


def lines(made: Results) -> list[dict[str, Any]]:
    (file,) = (artifact.path for artifact in made.artifacts if artifact.kind == "row_losses")
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_the_verdict_is_on_the_exported_graph(scored: Any) -> None:
    from pipeline.exports import generation
    from pipeline.inputs.data import datasets
    from pipeline.inputs.data.sampling import spread
    from pipeline.passes.measure.row_losses import Losses, Record

    given, inputs, made = scored
    metrics = made.metrics
    kept = lines(made)
    graph, exact = ({each["line"]: each for each in kept if side in each} for side in ("base", "float"))
    assert metrics["rows"] == len(graph) == len(exact)
    assert metrics["rows"] + metrics["long_rows_left_out"] == 3
    tokens = sum(each["tokens"] for each in graph.values())
    whole = math.exp(sum(each["base"] for each in graph.values()) / tokens)
    assert metrics["exported_data_perplexity"] == pytest.approx(whole)
    assert len({each["tokens"] for each in graph.values()}) > 1  # else both means would be the same
    for name, kind, side in (("exported_loss", graph, "base"), ("float_loss", exact, "float")):
        means = [each[side] / each["tokens"] for each in kind.values()]
        assert metrics[name] == pytest.approx(sum(means) / len(means))
    apart_of_means = metrics["exported_loss"] - metrics["float_loss"]
    assert metrics["against_float"]["difference"] == pytest.approx(apart_of_means)
    apart = [(each["base"] - exact[line]["float"]) / each["tokens"] for line, each in graph.items()]
    assert metrics["against_float"]["difference"] == pytest.approx(sum(apart) / len(apart))
    assert metrics["tokens_per_second"] > 0
    # As an evaluation reads the same rows.
    loaded = generation.load(inputs["onnx"])
    positions = spread(datasets.split(given.data, loaded.template, 0.5, 0).held_out, 3)
    record = Record(given.work.parent / "again.jsonl", {})
    again = Losses(loaded, given.model, given.data, loaded.template, {"base": None}, record)
    assert {row.line: row.totals["base"] for row in again.rows("held_out", positions)} == {
        line: each["base"] for line, each in graph.items()
    }


@pytest.fixture(scope="module")
def of_copies(scored: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores stages on rows whose held-out ones are copies of training rows, all of them or half."""
    given, inputs, _ = scored

    def made(share: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"copies-{share}")
        data = folder / "data.jsonl"
        market = "The market of the old town, and then the river with its bridges. " * 2
        rows = [
            {"prompt": f"{n}?", "response": market if n % share == 0 else f"{n * 7919} in valley {n * n}"}
            for n in range(24)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        context = carry.context_of(folder, given.model, data=data, eval_fraction=0.5)
        options = score.Options(rows=100, general_blocks=1, decode_tokens=8)
        return {"data": data, "made": carry.stage(context, "scored", score, options, **inputs)}

    return made


def test_near_copies_of_training_rows_are_in_no_figure_and_are_counted(of_copies: Any) -> None:
    """Neither in the graph's nor in the checkpoint's: calibration may have read those rows."""
    made = of_copies(2)["made"]
    metrics = made.metrics
    assert metrics["copies_left_out"] > 0
    assert metrics["rows"] + metrics["copies_left_out"] + metrics["long_rows_left_out"] == 12
    assert {each["line"] % 2 for each in lines(made) if each["kind"] in ("held_out", "float")} == {0}
    assert metrics["data_perplexity"] > 1


def test_where_all_held_out_rows_are_copies_it_says_so(of_copies: Any) -> None:
    metrics = of_copies(1)["made"].metrics
    assert (metrics["rows"], metrics["copies_left_out"]) == (0, 12)
    assert metrics["not_compared"].startswith("each held-out row is the same, or nearly, as one that is tra")
    assert metrics["general_perplexity"] > 1
    assert not {"data_perplexity", "exported_loss", "against_float"} & metrics.keys()


def test_without_a_graph_nothing_is_compared_and_it_says_why(scored: Any) -> None:
    """The checkpoint's figures don't take the place of the export's."""
    given, inputs, _ = scored
    metrics = carry.stage(given, "alone", score, OPTIONS, checkpoint=inputs["checkpoint"]).metrics
    assert metrics["not_compared"] == (
        "there is no exported graph to compare with float; leave optimize in the recipe"
    )
    assert metrics["data_perplexity"] > 1
    assert not {"against_float", "exported_loss", "tokens_per_second"} & metrics.keys()
