from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import display
from pipeline.inputs.models import about, base_models, catalogue
from pipeline.inputs.models.about import About
from pipeline.inputs.models.base_models import Model
from pipeline.system.capacity import Capacity

GB = 1000**3
LLAMA = {"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192}
# What the models' own config.json say of their shapes.
SHAPES: dict[str, dict[str, Any]] = {
    "starter": base_models.STARTER_CONFIG,
    "meta-llama/Llama-3.2-1B-Instruct": {
        **LLAMA, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "tie_word_embeddings": True, "max_position_embeddings": 131072,
    },
    "microsoft/Phi-3.5-mini-instruct": {
        "model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 3072, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "google/gemma-2-2b-it": {
        "model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
    },
}  # fmt: skip


def known(parameters: int | None = 4 * 10**9, here: bool = False, **facts: Any) -> About:
    given = {"licence": "MIT", "context": 4096, "gated": False, "bytes": 8 * GB, **facts}
    return About("org/x", "X", parameters=parameters, here=here, **given)


@pytest.mark.parametrize("model", list(SHAPES))
def test_parameters_are_counted_from_the_shapes(model: str) -> None:
    entry = catalogue.entry(model)
    assert entry is not None
    # All but biases and norms, which are a thousandth at most.
    assert about.parameters(SHAPES[model]) == pytest.approx(entry.parameters, rel=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": "many"},
        {**SHAPES["starter"], "num_experts": 8},
        {**SHAPES["starter"], "hidden_size": 10**400},
        {**SHAPES["starter"], "head_dim": "x"},
        {**SHAPES["starter"], "intermediate_size": [1, 2]},
    ],
)
def test_where_a_config_does_not_say_they_are_unknown(config: dict[str, Any]) -> None:
    assert about.parameters(config) is None


ENOUGH = Capacity(15 * GB, None, 15 * GB)


@pytest.mark.parametrize(
    ("there", "fits", "reason"),
    [
        (ENOUGH, True, "needs about 13.0 GB of memory, 14.2 GB of disk space"),
        (Capacity(14 * GB, None, 99 * GB), False, "12.6 GB can be used here"),
        (
            Capacity(8 * GB, None, 99 * GB),
            False,
            "needs about 13.0 GB of memory, and 7.2 GB can be used here",
        ),
        (
            Capacity(15 * GB, None, 9 * GB),
            False,
            "needs about 14.2 GB of disk space, and 9.0 GB can be used here",
        ),
        (
            Capacity(15 * GB, 5 * GB, 99 * GB),
            False,
            "needs about 5.6 GB of GPU memory, and 5.0 GB can be used here",
        ),
        (Capacity(15 * GB, 6 * GB, 99 * GB), True, "5.6 GB of GPU memory"),
    ],
)
def test_whether_it_fits_has_a_reason(there: Capacity, fits: bool, reason: str) -> None:
    found = about.fit(known(), there)
    assert found.fits is fits
    assert reason in found.reason


def test_what_is_here_needs_no_room_for_itself() -> None:
    assert about.fit(known(here=True), Capacity(15 * GB, None, 7 * GB)).fits
    assert not about.fit(known(), Capacity(15 * GB, None, 7 * GB)).fits


def test_of_an_unknown_size_nothing_is_promised() -> None:
    found = about.fit(known(None), ENOUGH)
    assert (found.fits, found.word) == (None, "size unknown")


def test_a_line_tells_size_licence_context_gate_and_fit() -> None:
    gated = known(gated=True)
    assert (
        about.words(gated, about.fit(gated, ENOUGH)) == "4.0 B · 8.0 GB · MIT · 4,096 tokens · gated · fits"
    )
    assert "https://huggingface.co/org/x" in about.gate(gated)
    assert about.gate(known(gated=True, here=True)) == about.gate(known()) == ""


def test_a_model_of_the_hub_is_what_its_files_and_the_hub_say(home: Path) -> None:
    hub = {"licence": "apache-2.0", "gated": True, "bytes": 123}
    model = Model("org/x", "hub", "0" * 40, SHAPES["starter"], None, hub)
    starter = about.of_model(Model("starter", "starter", "1", SHAPES["starter"], None), home)
    assert starter.parameters == 134_515_008  # as published, with all norms
    found = about.of_model(model, home)
    assert (found.licence, found.gated, found.bytes, found.here) == ("apache-2.0", True, 123, False)
    assert (found.context, display.parameters(found.parameters or 0)) == (8192, "134 M")
    folder = model.folder(home)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 10)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    found = about.of_model(model, home)
    assert (found.licence, found.bytes, found.here) == ("mit", 10, True)


def test_a_number_that_is_no_context_is_not_shown(home: Path) -> None:
    config = {**SHAPES["starter"], "max_position_embeddings": 10**3000}
    assert about.of_model(Model("org/x", "hub", "0" * 40, config, None), home).context is None


def test_a_folder_says_what_it_is(home: Path, model_folder: Path) -> None:
    found = about.of_model(base_models.resolve(str(model_folder)), home)
    assert (found.title, found.licence, found.gated, found.here) == ("tiny-llama", None, False, True)


def test_an_entry_is_here_once_its_own_folder_is(home: Path) -> None:
    entry = catalogue.entry("Qwen/Qwen3-4B@0123")
    assert entry is not None
    other = "Qwen--Qwen3-4B-Instruct-2507-0123456789ab"
    for name in (other, "Qwen--Qwen3-4B-0123456789ab.part"):
        (home / "models" / name).mkdir(parents=True)
    assert not about.of_entry(entry, home).here
    (home / "models" / "Qwen--Qwen3-4B-0123456789ab").mkdir()
    assert about.of_entry(entry, home).here


def test_every_line_of_the_catalogue_is_whole() -> None:
    ids = [entry.id for entry in catalogue.CATALOGUE]
    assert ids[0] == "starter"
    assert len(set(ids)) == len(ids)
    for entry in catalogue.CATALOGUE:
        assert entry.licence
        assert 10**8 < entry.parameters < 10**10
        assert 1000 < entry.context <= 131_072
        assert entry.bytes >= 2 * entry.parameters
