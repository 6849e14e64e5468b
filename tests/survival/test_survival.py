"""A lab whose processes are killed loses nothing. `make soak` does the same for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survival.soak import KINDS, Soak

pytestmark = pytest.mark.chain


def test_a_kill_of_each_kind(tmp_path: Path) -> None:
    soak = Soak(tmp_path / "home", seed=20261123)
    soak.go(times=1)
    assert soak.faults == [], soak.table()
    assert [sum(kill.kind == kind for kill in soak.kills) for kind in KINDS] == [1] * len(KINDS)
    assert {kill.stage for kill in soak.kills} >= {"finetune"}
    assert len(soak.submitted) >= 2
