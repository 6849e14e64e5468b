"""Whose turn it is: a queue that is fair between people, however many runs each of them queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A queued run. `served` counts runs started: the greater, the later its owner last had a turn. `gpus` is
    how many its next stage uses.
    """

    id: str
    owner: str
    place: float
    urgent: bool = False
    served: int = 0
    name: str = ""
    created: float = 0.0
    gpus: int = 1


def in_turn(waiting: Sequence[Waiting]) -> list[Waiting]:
    """The runs in the order in which they will start.

    Interrupted runs come first. Then owners take turns, the one who has waited longest first; an owner's own
    runs go by their places.
    """
    interrupted = sorted((run for run in waiting if run.urgent), key=lambda run: run.place)
    lines: dict[str, list[Waiting]] = {}
    for run in sorted((run for run in waiting if not run.urgent), key=lambda run: run.place):
        lines.setdefault(run.owner, []).append(run)
    owners = sorted(lines, key=lambda owner: (lines[owner][0].served, lines[owner][0].place))
    order, turn = interrupted, 0
    while owners:
        order += [lines[owner][turn] for owner in owners]
        turn += 1
        owners = [owner for owner in owners if turn < len(lines[owner])]
    return order
