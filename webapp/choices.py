"""What can be chosen on the page: datasets, models and finished runs, as (label, value) for a dropdown."""

from __future__ import annotations

from pathlib import Path

from pipeline import datasets, settings
from pipeline.errors import InputError
from pipeline.models import CATALOGUE
from pipeline.run import DONE, Run
from pipeline.store import Store
from webapp import views

Choices = list[tuple[str, str]]


def data(home: Path) -> Choices:
    """The samples, then what was uploaded or used in a run, newest first."""
    samples = sorted(settings.SAMPLES.glob("*.jsonl"))
    digests = {datasets.sha256(path) for path in samples}
    kept = [
        path for path in (home / "datasets").glob("*/*") if path.is_file() and not path.name.startswith(".")
    ]
    kept = [path for path in kept if path.parent.name not in digests]
    kept.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    labels = [(f"{path.name} (sample)", str(path)) for path in samples]
    return labels + [(f"{path.name} · {views.moment(path.stat().st_mtime)}", str(path)) for path in kept]


def known_data(home: Path, chosen: str | None) -> Path:
    """The chosen dataset. Raises InputError for a path that the page did not offer."""
    if not chosen:
        raise InputError("data: choose a dataset, or upload one on the Data tab")
    if chosen not in {value for _, value in data(home)}:
        raise InputError("data: this dataset is not in the lab; upload it on the Data tab")
    return Path(chosen)


def models() -> Choices:
    """The catalogue."""
    return [(f"{entry.title} · {entry.parameters}", entry.id) for entry in CATALOGUE]


def finished(store: Store) -> Choices:
    """Runs with an exported model, newest first."""
    runs = [run for run in store.list() if run.status == DONE and run.artifact("onnx")]
    return [(f"{run.name} · {views.moment(run.created)} · {run.id}", run.id) for run in runs]


def run(store: Store, chosen: str | None) -> Run:
    """The chosen run. Raises InputError if there is none."""
    if not chosen:
        raise InputError("run: choose a finished run")
    return store.get(chosen)
