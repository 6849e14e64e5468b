"""A version's folder as Foundry Local has it in its cache: which files, and what is written for it."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline import display
from pipeline.errors import LabError
from pipeline.exports import contract, serving_ids
from pipeline.exports.verifying import json_files
from pipeline.inputs.models import licences
from pipeline.publish import card, inference_model, zip_file
from pipeline.publish.foundry import chat_templates, environment
from pipeline.publish.inference_model import DEVICE, model_id
from pipeline.store.run import Run
from pipeline.system import checksums, files

PUBLISHER = "olive-lab"  # the folder in a cache, as every publisher has one
LARGE = 1 << 20  # bytes from which a file is linked
MOST_TOKENS = 256  # of an answer in the card's example; a session reserves 2,048 where none are named
# Of an export, what only the lab and its own app read.
LEFT_OUT = (*serving_ids.APP, serving_ids.LAB, contract.MERGED)
USE = """Ask it with `pip install {pin}` and, in this folder:

```python
from foundry_local_sdk import *

FoundryLocalManager.initialize(Configuration(app_name="{name}", disable_nonessential_telemetry=True))
catalog = FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)
if "{id}" not in [known.id for known in catalog.list_models()]:
    with ModelInfoBuilder() as about:
        about.set_string_property("task", "chat-completion")
        catalog.register_model(model_path=".", model_id="{id}", metadata=about)
model = catalog.get_model_variant("{id}")
model.load()
with ChatSession(model) as session, Request() as request:
    greedy = SearchOptions(temperature=0.0, max_output_tokens={most})
    session.set_options(RequestOptions(search=greedy))
    with session.process_request(request.add_item(MessageItem.user("Hello!"))) as response:
        print("".join(part.text for item in response for part in item.parts))
```
"""


def place(cache: Path, name: str, version: str) -> Path:
    """Where a version is in a cache."""
    return cache / PUBLISHER / f"{name}-{DEVICE}-{version}"


def numbers(cache: Path, name: str) -> list[int]:
    """Numbers of a name's versions in a cache."""
    pattern = re.compile(re.escape(f"{name}-{DEVICE}-") + r"([0-9]{1,9})")
    with suppress(FileNotFoundError):
        found = [pattern.fullmatch(path.name) for path in (cache / PUBLISHER).iterdir()]
        return [int(match[1]) for match in found if match]
    return []


def clear(cache: Path) -> None:
    """Remove what a killed publish left there; only one publishes at a time."""
    for left in (cache / PUBLISHER).glob(f".*-{DEVICE}-*.part"):
        shutil.rmtree(left, ignore_errors=True)


def needed(source: Path) -> list[Path]:
    """The files of an export that the runtime needs; it loads no adapters."""
    return [
        path
        for path in zip_file.files(source)
        if path.relative_to(source).as_posix() not in LEFT_OUT and path.suffix != contract.SUFFIX
    ]


def fill(part: Path, source: Path, template: str | None, texts: Mapping[str, str]) -> None:
    """Write the folder: an export's files, of which large ones are links where the disk has them, a chat
    template if there is one to be written, and texts by name.

    Raises LabError if the disk has no room, or gets full meanwhile.
    """
    paths = needed(source)
    linked = source.stat().st_dev == part.stat().st_dev
    files.make_room(part, 0 if linked else files.size(*paths))
    try:
        _copy(part, source, paths, template, texts)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LabError(
            f"The disk of {display.line(str(part.parent))} is full; free some space there and publish again."
        ) from None


def _copy(
    part: Path, source: Path, paths: list[Path], template: str | None, texts: Mapping[str, str]
) -> None:
    for path in paths:
        target = part / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.stat().st_size >= LARGE:
            files.link_or_copy(path, target)
        else:
            shutil.copyfile(path, target)
    if template is not None:
        chat_templates.write(source, part, template)
    for name, text in texts.items():
        (part / name).write_text(text, "utf-8")
    checksums.write(part)


def texts(home: Path, run: Run, source: Path, name: str, version: str, description: str) -> dict[str, str]:
    """What is written into the folder besides the export's files, by name."""
    context = json.loads((source / json_files.CONFIG).read_text("utf-8"))["model"]["context_length"]
    pins = environment.REQUIREMENTS.read_text("utf-8").splitlines()
    facts = {"pin": next(line.split()[0] for line in pins if "==" in line), "id": model_id(name, version)}
    use = USE.format(**facts, name=name, most=min(MOST_TOKENS, int(context) // 2))
    return {
        inference_model.NAME: inference_model.text(source, model_id(name, version)),
        card.CARD: card.text(home, run, f"{name}, version {version}", description, use),
        zip_file.RECIPE: card.recipe(run),
        **card.texts(home, run),
    }


def in_catalogue(home: Path, run: Run, name: str) -> dict[str, str]:
    """What the catalogue says of a version."""
    licence = licences.of(str(run.recipe["model"]), home)
    told = {"display_name": name, "publisher": PUBLISHER, **({"license": licence} if licence else {})}
    return {key: display.line(text) for key, text in told.items()}
