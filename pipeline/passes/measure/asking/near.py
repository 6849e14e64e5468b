"""How near all answers of an evaluation are to the expected ones, side by side, and what of it is claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation import answer_metrics, secondary
from pipeline.evaluation.checker import Checker
from pipeline.evaluation.examples import answered_by
from pipeline.evaluation.verdict import Metric, Pair

BASE, ADAPTER = answered_by.BASE, answered_by.ADAPTER
EXPECTED = "expected"


@dataclass(frozen=True)
class Near:
    """How near answers are to the expected ones: metrics of base and adapter, those of base and each other
    adapter by its side, and what of all these is to be judged."""

    own: dict[str, Any]
    others: dict[str, dict[str, Any]]
    claims: dict[str, tuple[Metric, Pair]]

    @classmethod
    def of(cls, answered: list[dict[str, Any]], others: Sequence[str], checks: str) -> Near:
        """Measure each side of rows of answers.json, which gets its figures."""
        every = (*answer_metrics.SIDES, answer_metrics.FLOAT, *others)
        with Checker(checks) as checker:
            for row in answered:
                for side in (side for side in every if row.get(side)):
                    outcomes = checker.apply(row[side]["text"])
                    row[side] = answer_metrics.measured(row["expected"], row[side], outcomes)
        own, first = answer_metrics.compare(answered, checker.checks)
        claims = {_claim(ADAPTER, name): claim for name, claim in first.items()}
        beside: dict[str, dict[str, Any]] = {}
        for side in others:
            pairs = [{BASE: row[BASE], ADAPTER: row[side]} for row in answered]
            beside[side], found = answer_metrics.compare(pairs, checker.checks)
            claims |= {_claim(side, name): claim for name, claim in found.items()}
        return cls(own, beside, claims)

    def put(self, told: secondary.Told, shares: Mapping[str, float]) -> None:
        """Add the verdicts, and how much of the answers stands in rows that were trained on."""
        for side, found in {ADAPTER: self.own, **self.others}.items():
            begin = _claim(side, "")
            names = {name: name.removeprefix(begin) for name in self.claims if name.startswith(begin)}
            answer_metrics.put(found, {named: told.verdicts[name] for name, named in names.items()})
            # A base's and expected answers are the same beside each adapter.
            known = {BASE: shares.get(BASE), ADAPTER: shares.get(side), EXPECTED: shares.get(EXPECTED)}
            if verbatim := {name: share for name, share in known.items() if share is not None}:
                found["verbatim"] = verbatim

    def beside(self, adapters: dict[str, Any]) -> dict[str, Any]:
        """The metrics of other adapters by name, with those of their answers."""
        found = {answered_by.other(side): {"answers": told} for side, told in self.others.items() if told}
        return {name: told | found.get(name, {}) for name, told in adapters.items()}


def _claim(side: str, name: str) -> str:
    """The name of what is claimed of a metric beside other claims; no adapter's name has a slash."""
    return f"{side}/{name}"
