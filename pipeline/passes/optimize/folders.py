"""A new folder for a changed graph, with hard links to the weights that stay the same."""

from __future__ import annotations

from pathlib import Path

from pipeline.system import files

ANOTHERS = ("artifact.json", "SHA256SUMS")


def carry_over(source: Path, folder: Path) -> list[Path]:
    """Link all files beside the graph `source`, weights included, into a new `folder`.

    Returns the linked files that are not weights. Adapters, manifest and checksums, which belong to the other
    run, are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = []
    for file in source.parent.iterdir():
        if file == source or not file.is_file() or file.suffix == ".onnx_adapter" or file.name in ANOTHERS:
            continue
        target = folder / file.name
        target.unlink(missing_ok=True)  # it may be a link, whose file must not change
        files.link_or_copy(file, target)
        if file.name != f"{source.name}.data":
            others.append(target)
    return others
