"""What axe finds wrong on a page: what keeps people from reading or using it."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe

RULES = {"rules": {"label-content-name-mismatch": {"enabled": True}}}  # off by itself: axe calls it new

STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"


def faults(page: Any) -> list[str]:
    """Whatever it finds, of any weight, once colors that are changing have changed."""
    page.add_style_tag(content=STILL)
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]
