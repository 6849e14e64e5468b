"""What tests of the page share: the form's values, what fails however it is called, a click and an upload."""

from __future__ import annotations

import errno

from pipeline import settings
from pipeline.errors import sentence

SAMPLE = str(settings.SAMPLES / "travel.jsonl")
# A text that runs in a page that takes it for HTML, a script or a template.
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>${window.hacked=1}{{7*7}}`'
FULL = sentence(OSError(errno.ENOSPC, "No space left on device"))


def failing(error):
    """What fails with an error however it is called."""

    def fail(*given, **options):
        raise error

    return fail


full_disk = failing(OSError(errno.ENOSPC, "No space left on device"))


def values(inputs, **changes):
    """The form's values, as the page would send them, with changes such as finetune_r=8."""
    found = {
        f"{group}_{name}".strip("_"): c.value
        for (group, name), c in zip(inputs.keys, inputs.inputs, strict=True)
    }
    found |= {"data": SAMPLE, **changes}
    return list(found.values())


def tab(page, name: str) -> None:
    page.click(f"#tab-{name}-button")


def upload(page, name: str, data: bytes) -> None:
    page.set_input_files(
        "#data-upload input[type=file]", {"name": name, "mimeType": "text/plain", "buffer": data}
    )
