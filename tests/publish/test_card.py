"""The model card: what it says, and that nobody's text can say more in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.publish import card
from pipeline.runs import kept_datasets
from pipeline.store import Store
from pipeline.store.run import Run, StageRun
from tests.helpers import planted

HOSTILE = "x](http://evil) <script>alert(1)</script> `a` **b** & \u202e"


def written(store: Store, run: Run, title: str = "trips", description: str = "", **recipe: Any) -> str:
    return card.text(
        store.home, dataclasses.replace(run, recipe={**run.recipe, **recipe}), title, description
    )


def block(text: str, heading: str) -> Any:
    """The YAML under a heading, as CommonMark finds it: up to a fence at least as long as the first."""
    _, _, rest = text.partition(f"\n## {heading}\n\n")
    opening = re.match(r"(`{3,})yaml\n", rest)
    assert opening is not None
    closing = re.compile(rf"^ {{0,3}}`{{{len(opening[1])},}}\s*$", re.M)
    found = closing.search(rest, opening.end())
    assert found is not None
    return yaml.safe_load(rest[opening.end() : found.start()])


def test_it_names_base_licence_data_recipe_metrics_and_packages(
    store: Store, finished: Run, dataset: Path
) -> None:
    copy = kept_datasets.keep(store.home, dataset)
    folder = Path(str(finished.artifact("onnx")))
    (folder.parent / "artifact.json").write_text(json.dumps({"packages": {"onnxruntime-genai": "0.18.0"}}))
    text = written(store, dataclasses.replace(finished, data=str(copy)), finetune={"r": 8})
    digest = copy.parent.name
    adapter = hashlib.sha256((folder / "adapter_weights.onnx_adapter").read_bytes()).hexdigest()
    assert text.startswith(
        f"# trips\n\n{card.WITH_ADAPTER}\n\n- Base model: starter\n- Licence of the base: Apache-2.0, its"
        " text is in LICENSE-base-model.txt\n"
        f"- Adapter: adapter\\_weights.onnx\\_adapter, SHA-256 {adapter}\n"
        f"- Data: travel.jsonl, 20 rows, SHA-256 {digest}\n- Run: {finished.id}\n\n"
        "Run it with `pip install onnxruntime-genai==0.18.0` and `python app.py`.\n"
    )
    assert block(text, "Recipe")["finetune"] == {"r": 8}
    assert block(text, "Measured")["finetune"] == {"eval_loss_before": 2.5, "eval_loss_after": 1.25}
    assert block(text, "Made with") == {"onnxruntime-genai": "0.18.0"}


def test_a_merged_adapter_cannot_be_taken_off(store: Store, finished: Run) -> None:
    merged = {"name": "merged", "kind": "merged", "path": "merged.json", "bytes": 1}
    stages = [
        dataclasses.replace(
            stage,
            artifacts=[
                *(artifact for artifact in stage.artifacts if artifact["kind"] != "onnx_adapter"), merged,
            ],
        )
        for stage in finished.stages
    ]  # fmt: skip
    text = written(store, dataclasses.replace(finished, stages=stages))
    assert card.MERGED in text
    assert "detachable" not in text


def test_what_is_not_known_is_not_stated(store: Store, finished: Run) -> None:
    text = written(store, finished, model="/home/ann/mine", data="/home/ann/secret-project/x.jsonl")
    assert (
        "- Base model: mine\n- Licence of the base: not stated, its text was not at hand: see the page of the"
        " base model\n- Adapter: "
    ) in text
    assert "\n- Data: x.jsonl\n" in text
    assert "`pip install onnxruntime-genai` and" in text
    assert text.endswith("## Made with\n\nNot stated.\n")
    assert "ann" not in re.sub("cannot|channel", "", text)
    assert str(store.home) not in text


def test_whose_subscription_a_base_is_in_is_not_stated(store: Store, finished: Run) -> None:
    place = "subscriptions/1111/resourceGroups/ours/workspaces/secret-ws"
    text = written(store, finished, model=f"azureml://{place}/models/phi/versions/4")
    assert "- Base model: azureml:phi:4\n" in text
    assert [word for word in ("1111", "ours", "secret-ws") if word in text] == []
    shared = "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/4"
    assert f"model: {shared}\n" in written(store, finished, model=shared)


def test_what_runs_on_a_gpu_says_so(store: Store, finished: Run) -> None:
    folder = Path(str(finished.artifact("onnx")))
    (folder / "artifact.json").write_text(json.dumps({"packages": {"onnxruntime-genai-cuda": "0.18.0"}}))
    assert "install onnxruntime-genai-cuda==0.18.0`" in written(store, finished, optimize={"device": "gpu"})
    assert "install onnxruntime-genai==0.18.0`" in written(store, finished, optimize={"device": "cpu"})
    assert "install onnxruntime-genai==0.18.0`" in written(store, finished, optimize=None)


def test_a_model_without_an_adapter_has_none_in_its_card(store: Store, finished: Run) -> None:
    stages = tuple(
        dataclasses.replace(s, artifacts=[a for a in s.artifacts if a["kind"] != "onnx_adapter"])
        for s in finished.stages
    )
    assert card.WITHOUT in written(store, dataclasses.replace(finished, stages=stages))


def test_a_publishing_is_no_measurement(store: Store, finished: Run) -> None:
    publishing = StageRun("publish", "done", metrics={"path": "/home/ann/registry/trips/1"})
    run = dataclasses.replace(finished, stages=(*finished.stages, publishing))
    assert "/home/ann" not in written(store, run)


@pytest.mark.parametrize("where", ["title", "description", "model", "data"])
def test_a_users_text_is_shown_as_it_is_and_marks_nothing_up(store: Store, finished: Run, where: str) -> None:
    text = written(store, finished, **{where: HOSTILE + "\n\n# Trust me\n- yes"})
    head = text.partition("## Recipe")[0]
    assert r"x\]\(http" not in head  # brackets alone make no link
    assert r"x\](http://evil) \<script\>alert(1)\</script\> \`a\` \*\*b\*\* \& " in head
    assert "\u202e" not in head
    assert [line for line in head.splitlines() if line.startswith("# ")] == [head.splitlines()[0]]
    assert "\n- yes" not in head


@pytest.mark.parametrize(
    "template",
    ["a\n```\n# Trust me\n", "a\n`````\n\n<b>{prompt}\n````````\n{response}", "```yaml\nx: 1\n```"],
)
def test_no_text_of_the_recipe_ends_its_block(store: Store, finished: Run, template: str) -> None:
    text = written(store, finished, template=template)
    assert block(text, "Recipe")["template"] == template
    assert yaml.safe_load(card.recipe(dataclasses.replace(finished, recipe={**finished.recipe, "template": template})))["template"] == template  # fmt: skip  # noqa: E501
    assert block(text, "Measured")["finetune"]["eval_loss_after"] == 1.25


def test_figures_are_of_the_file_that_was_asked(store: Store) -> None:
    run = store.get(planted.finished(store, verdict={"outcome": "better", "text": "Better."}))
    figures = {"verdict": {"text": "Better."}, "base_loss": 3.0, "adapter_loss": 1.0}

    def told(**options: str) -> str:
        stages = (*run.stages[:-1], dataclasses.replace(run.stages[-1], metrics=figures, options=options))
        return card._judged(dataclasses.replace(run, stages=stages))[1]

    assert "| Loss on the answers of prompts.jsonl (nats a token) | 3 | 1 |" in told(data="/a/prompts.jsonl")
    assert "| Loss on held-out answers (nats a token) | 3 | 1 |" in told()
