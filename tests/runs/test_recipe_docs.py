"""The page about options is what the options say."""

from __future__ import annotations

from pipeline import settings
from pipeline.inputs.options import describe
from pipeline.runs import recipe_docs
from pipeline.stages.recipe import OPTIONS


def test_the_committed_page_is_current() -> None:
    page = (settings.ROOT / "docs" / "recipe.md").read_text("utf-8")
    assert page == recipe_docs.markdown(), "run: python -m pipeline.runs.recipe_docs > docs/recipe.md"


def test_every_option_is_on_it_with_its_help() -> None:
    page = recipe_docs.markdown()
    for cls in OPTIONS.values():
        for option in describe(cls):
            assert f"| `{option.name}` |" in page
            assert option.help in page
