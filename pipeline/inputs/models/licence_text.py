"""The text of a base model's licence: its own files, else the text of a licence that names itself exactly."""

from __future__ import annotations

from pathlib import Path

from pipeline.inputs.models import contents, licences
from pipeline.inputs.prompts.model_template import tops
from pipeline.system import files

TEXTS = Path(__file__).with_name("licence_texts")
KINDS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")  # a licence may ask for its notice too
LARGEST = 1 << 18  # bytes of all of them; one that is cut would be another licence
MOST = 8  # files
PREFACE = """The base model is under the licence {licence}, as its publisher names it. Its own licence
file was not at hand; this is the text of that licence.

"""


def of(model: str, home: Path) -> str | None:
    """The text for a recipe's `model`, or None where it is not at hand. Works offline."""
    if (own := _own(licences.folder_of(model, home))) is not None:
        return own
    named = licences.of(model, home) or ""
    file = TEXTS / f"{licences.on_hub(named).get('license', 'other')}.txt"
    return f"{PREFACE.format(licence=named)}{file.read_text('utf-8')}" if file.is_file() else None


def _own(folder: Path) -> str | None:
    """What a model's own files say; each below its name where there are several."""
    found = {path for kind in KINDS for path in folder.glob(kind) if _is_its_own(path, folder)}
    texts = {path.name: text for path in sorted(found)[:MOST] if (text := _text(path))}
    if not any(not name.startswith("NOTICE") for name in texts):
        return None
    if len(texts) == 1:
        return next(iter(texts.values()))
    whole = "\n".join(f"==> {name} <==\n\n{text}" for name, text in texts.items())
    return whole if len(whole.encode()) <= LARGEST else None


def _is_its_own(path: Path, folder: Path) -> bool:
    """Whether it is a file in the folder; a cache of the hub has it as a link to its `blobs`."""
    return path.is_file() and contents.is_inside(path, folder)


def _text(path: Path) -> str:
    """A text file's content with its end, "" where it is none or too large."""
    try:
        content = files.read_inside(path, tops(path.parent), LARGEST + 1)
        text = content.decode("utf-8").replace("\r\n", "\n").strip("\n")
    except (OSError, ValueError):
        return ""
    return f"{text}\n" if text.strip() and len(content) <= LARGEST and "\0" not in text else ""
