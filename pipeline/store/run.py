"""Records of runs and stages, and the words for their status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUEUED = "queued"
RUNNING = "running"
DONE = "done"
FAILED = "failed"
CANCELED = "canceled"
INTERRUPTED = "interrupted"

ENDED = (DONE, FAILED, CANCELED, INTERRUPTED)
RETRYABLE = (FAILED, CANCELED, INTERRUPTED)

PUBLISH = "publish"

# Files of a stage's folder.
LOCK = "lock"
PROCESS = "process.json"
RESULT = "result.json"
EVENTS = "events.jsonl"
COST = "cost.json"  # what the stage was predicted to take, and what it took
OUTPUT = "output.txt"  # holds the name of the folder under artifacts/ that the stage writes to

PREFLIGHT = "preflight.json"  # of a run's folder: what its stages were predicted to take


def outer_bytes(artifacts: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of artifacts on disk; what is inside another one's folder counts once."""
    folders = tuple(f"{artifact['path']}/" for artifact in artifacts)
    return sum(a["bytes"] for a in artifacts if not str(a["path"]).startswith(folders))


@dataclass(frozen=True)
class StageRun:
    """One stage of one run. Times are seconds since the epoch; `seconds` was measured by the stage."""

    name: str
    status: str = QUEUED
    options: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    reused: bool = False
    error: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0

    @property
    def kind(self) -> str:
        """The stage's name without the number a repeated publish has: `publish-2` is a `publish`."""
        return self.name.split("-")[0]

    @property
    def bytes(self) -> int:
        """What the stage's artifacts take on disk; a file inside another artifact's folder counts once."""
        return outer_bytes(self.artifacts)

    @property
    def verdict(self) -> str:
        """What an evaluation says of the adapter, in words; "" for other stages, and those of before."""
        told = self.metrics.get("verdict")
        return str(told.get("text", "")) if isinstance(told, dict) else ""

    @property
    def others(self) -> dict[str, str]:
        """What an evaluation says of other adapters in the exported folder, in words, by their names."""
        told = self.metrics.get("adapters")
        adapters = told if isinstance(told, dict) else {}
        verdicts = {name: one.get("verdict") for name, one in adapters.items() if isinstance(one, dict)}
        return {name: str(one.get("text", "")) for name, one in verdicts.items() if isinstance(one, dict)}

    @property
    def asked(self) -> str:
        """The name of the file that an evaluation asks in place of held-out rows; "" where it asks these."""
        return Path(str(self.options.get("data") or "")).name if self.kind == "evaluate" else ""

    @property
    def worse(self) -> int:
        """On how many rows an evaluation found the adapter worse than the base; 0 for other stages."""
        told = self.metrics.get("verdict")
        count = told.get("worse") if isinstance(told, dict) else None
        return count if isinstance(count, int) else 0

    def to_dict(self) -> dict[str, Any]:
        """As `show --json` prints it."""
        keys = ("name", "status", "started", "finished", "seconds", "reused", "error", "metrics", "artifacts")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Run:
    """One run with its stages, as it stood when it was read from the store."""

    id: str
    name: str
    status: str
    created: float
    recipe: dict[str, Any]
    data: str  # the dataset's own copy in the home
    stages: tuple[StageRun, ...] = ()
    cancel_requested: bool = False
    owner: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    deleted: float | None = None  # when, in seconds since the epoch

    def stage(self, name: str) -> StageRun:
        """The stage of that name. Raises KeyError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def current(self) -> StageRun | None:
        """The running stage, else the first that has not finished, else the last."""
        for wanted in ((RUNNING,), (FAILED, CANCELED, INTERRUPTED), (QUEUED,)):
            for stage in self.stages:
                if stage.status in wanted:
                    return stage
        return self.stages[-1] if self.stages else None

    @property
    def verdict(self) -> str:
        """Whether its adapter is better than the base, in words; "" where no stage says so."""
        return next((stage.verdict for stage in reversed(self.stages) if stage.verdict), "")

    @property
    def others(self) -> dict[str, str]:
        """The same of other adapters in its exported folder, by their names."""
        return next((stage.others for stage in reversed(self.stages) if stage.others), {})

    @property
    def asked(self) -> str:
        """The file that its evaluation asks in place of held-out rows; "" if none."""
        return next((stage.asked for stage in self.stages if stage.asked), "")

    @property
    def worse(self) -> int:
        """On how many held-out rows that verdict found its adapter worse."""
        return next((stage.worse for stage in reversed(self.stages) if stage.verdict), 0)

    def artifact(self, kind: str) -> str | None:
        """The path of the newest artifact of that kind, or None."""
        for stage in reversed(self.stages):
            for artifact in stage.artifacts:
                if artifact["kind"] == kind and stage.status == DONE:
                    return str(artifact["path"])
        return None

    @property
    def shipped(self) -> str | None:
        """The exported folder that leaves the lab: the bound one, where its recipe asks for one."""
        return self.artifact("bound") or self.artifact("onnx")

    def to_dict(self) -> dict[str, Any]:
        """As `show --json` prints it."""
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "created": self.created,
            "owner": self.owner,
            "notes": self.notes,
            "tags": list(self.tags),
            "recipe": self.recipe,
            "stages": [stage.to_dict() for stage in self.stages],
        }
