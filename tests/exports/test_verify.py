"""Every fault an export can have is found by the check that looks for it, and a good export has none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import Finding, Status, failed
from pipeline.system import checksums
from tests.helpers import exports
from tests.helpers.verified import OTHER, edit, faults, statuses


def test_a_good_export_has_no_fault_and_answers_on_both_sides(export: Path) -> None:
    found = verify.whole(export)
    assert statuses(found) == dict.fromkeys(
        [
            "files", "config", "graph", "weights", f"adapter {exports.ADAPTER}", "tokenizer", "template",
            "checksums", "prompts", "answers", f"answers with {exports.ADAPTER}",
        ],
        "ok",
    )  # fmt: skip
    assert found[4].message == "fits: 2 of the graph's 2 adapter inputs"
    assert found[-1].message.startswith("answers differently from the base: ")
    verify.require(found, "never")


def test_an_export_without_adapter_or_checksums_is_good_too(export: Path) -> None:
    (export / exports.ADAPTER).unlink()
    (export / checksums.NAME).unlink()
    found = statuses(verify.whole(export))
    assert (found["adapters"], found["checksums"], found["answers"]) == ("skipped", "skipped", "ok")
    assert "failed" not in found.values()


def test_no_such_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify.static(tmp_path / "nowhere")


def test_what_failed_becomes_one_error(export: Path) -> None:
    (export / "tokenizer.json").unlink()
    (export / "lab.json").unlink()
    with pytest.raises(LabError) as raised:
        verify.require(verify.static(export), "Nothing was published")
    assert str(raised.value) == (
        "Nothing was published: tokenizer: tokenizer.json is missing; export the model again;"
        " template: lab.json is missing; export the model again."
    )


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"q.A": (16, 4)}, "q.A is not an input of the graph"),
        ({"a": (8, 4), "b": (4, 16)}, "a has shape [8, 4] where the graph takes [16, rank]"),
        ({"a": (16, 4), "b": (3, 16)}, "b has 3 for rank where a has 4"),
    ],
)
def test_an_adapter_of_another_graph_is_named(
    export: Path, tensors: dict[str, tuple[int, ...]], fault: str
) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    exports.write_adapter(export / OTHER, arrays)
    assert faults(export) == {
        f"adapter {OTHER}": f"{OTHER} belongs to another graph: {fault}; use the adapter exported with this"
        " model"
    }


def test_an_adapter_of_another_type_is_named(export: Path) -> None:
    halves = {"a": np.zeros((16, 4), np.float16), "b": np.zeros((4, 16), np.float16)}
    exports.write_adapter(export / OTHER, halves)
    assert "a is float16 where the graph takes float32" in faults(export)[f"adapter {OTHER}"]


def test_many_faults_are_counted_and_escapes_stay_out_of_the_terminal(export: Path) -> None:
    names = ["\x1b[31mred", *(f"x{i}" for i in range(40))]
    exports.write_adapter(export / OTHER, {name: np.zeros(1, np.float32) for name in names})
    message = faults(export)[f"adapter {OTHER}"]
    assert ", and 38 more;" in message
    assert "\x1b" not in message


def test_an_adapter_that_was_cut_short(export: Path) -> None:
    file = export / exports.ADAPTER
    file.write_bytes(file.read_bytes()[:300])
    assert "only part of one" in faults(export)[f"adapter {exports.ADAPTER}"]


def test_weights_that_were_cut_short(export: Path) -> None:
    os.truncate(export / "model.onnx.data", 20_000)
    assert list(faults(export)) == ["weights"]
    assert "was cut short" in faults(export)["weights"]


def test_a_graph_that_was_cut_short(export: Path) -> None:
    file = export / "model.onnx"
    file.write_bytes(file.read_bytes()[:400])
    found = statuses(verify.static(export))
    assert found["graph"] == "failed"
    assert found[f"adapter {exports.ADAPTER}"] == "skipped"


def test_a_second_config_of_the_tokenizer_is_not_opened(export: Path) -> None:
    """The runtime reads it, and says of a file that it names whether it is there."""
    (export / "tokenizer_module.json").write_text(json.dumps({"tiktoken_file": "../../etc/hostname"}))
    assert faults(export) == {
        "tokenizer": "it has tokenizer_module.json, which no exporter writes; remove it"
    }


def test_the_runtime_knows_no_files_that_nobody_looks_at() -> None:
    """A new release may read more: look at those files, or refuse them, as `tokenizer_module.json`."""
    package = find_spec("onnxruntime_genai")
    assert package is not None
    assert package.submodule_search_locations
    library = Path(package.submodule_search_locations[0]) / "libonnxruntime-genai.so"
    names = {
        name.decode()
        for name in re.findall(rb"\0([\w.]+\.(?:json|jinja|model|txt|tiktoken))\0", library.read_bytes())
    }
    others = {"audio_processor_config.json"}  # of models with other parts, which are refused
    templates = {"chat_template.json", "chat_template.jinja"}  # texts
    assert names - others - templates == {"tokenizer.json", "tokenizer_config.json", "tokenizer_module.json"}


def test_links_and_pipes_are_refused(export: Path) -> None:
    (export / "notes").symlink_to("/etc/passwd")
    assert faults(export) == {
        "files": "'notes' is a link that leads out of the folder; put the file itself there"
    }
    (export / "notes").unlink()
    os.mkfifo(export / "notes")
    assert faults(export) == {"files": "notes is not a regular file; remove it"}


def test_a_folder_with_very_many_files_is_refused(export: Path) -> None:
    (export / "more").mkdir()
    for number in range(verify.MOST_FILES):
        (export / "more" / str(number)).touch()
    assert "more than 1,000 files; take out" in faults(export)["files"]


def test_nothing_else_is_looked_at_where_the_files_are_no_exports(export: Path) -> None:
    for number in range(verify.MOST_FILES):
        os.link(export / exports.ADAPTER, export / f"{number}{'n' * 200}.onnx_adapter")
    found = verify.static(export)
    assert [finding.check for finding in found] == ["files"]
    with pytest.raises(LabError) as raised:
        verify.require(found, "Nothing was published")
    assert len(str(raised.value)) < 500


def test_folders_are_counted_as_well(export: Path) -> None:
    for number in range(verify.MOST_FILES + 1):
        (export / f"more{number}").mkdir()
    assert "more than 1,000 folders; take out" in faults(export)["files"]


def test_one_error_has_few_of_many_reasons() -> None:
    bad = [Finding(f"adapter {number}", Status.FAILED, "x" * 150) for number in range(300)]
    with pytest.raises(LabError) as raised:
        verify.require(bad, "Nothing was published")
    assert str(raised.value).endswith("; and 290 more.")
    assert str(raised.value).count("adapter ") == verify.MOST_REASONS


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": {"vocab": {}}}'])
def test_a_tokenizer_that_is_missing_or_broken(export: Path, content: str | None) -> None:
    (export / "tokenizer.json").unlink()
    if content is not None:
        (export / "tokenizer.json").write_text(content)
    assert list(faults(export)) == ["tokenizer"]


@pytest.mark.parametrize(
    "more",
    [
        {"tiktoken_file": "../../../etc/hostname"}, {"vocab_file": "/etc/hostname"},
        {"added": {"spm_file": "a"}}, {"tokenizer_class": "AutoTokenizer"}, {"tiktoken_file": "inside"},
    ],
    ids=str,
)  # fmt: skip
def test_a_tokenizer_that_names_other_files_is_not_opened(export: Path, more: dict[str, Any]) -> None:
    """The runtime says of them whether they are there."""
    file = export / "tokenizer_config.json"
    given = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**given, **more}))
    found = faults(export)
    assert list(found) == ["tokenizer"]
    assert found["tokenizer"].startswith("tokenizer_config.json: ")
    assert "hostname" not in found["tokenizer"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", None),
        ("chat_template.jinja", "{% for %}"),
        ("chat_template.jinja", "{{ raise_exception('no') }}"),
        ("chat_template.jinja", "{{ ''.__class__.__mro__ }}"),
        ("lab.json", None),
        ("lab.json", "{}"),
        ("lab.json", '{"template": "no placeholder"}'),
    ],
)
def test_a_template_that_is_missing_or_broken(export: Path, name: str, content: str | None) -> None:
    (export / name).unlink()
    if content is not None:
        (export / name).write_text(content)
    assert list(faults(export)) == ["template"]


def test_a_template_of_several_fields_is_rendered_and_asked(export: Path) -> None:
    lab = {"template": "{question} in {place}?{answer}", "stop": ""}
    (export / "lab.json").write_text(json.dumps(lab))
    checksums.write(export)
    found = {finding.check: finding for finding in verify.whole(export)}
    assert found["template"].message == "renders a prompt of question, place"
    assert found["answers"].status == "ok"


def changed(export: Path) -> list[Finding]:
    return failed(verify.whole(export))


def test_a_changed_byte_is_found_before_the_model_is_loaded(export: Path) -> None:
    data = export / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    assert faults(export) == {}, "only the checksums can see it"
    found = verify.whole(export)
    assert [f.check for f in failed(found)] == ["checksums"]
    assert "model.onnx.data is not what was written" in found[-2].message
    assert statuses(found)["answers"] == "skipped"


def test_a_list_of_checksums_that_is_wrong_itself(export: Path) -> None:
    (export / "app.py").write_text("new files are nobody's fault")
    assert changed(export) == []
    listed = (export / checksums.NAME).read_text()
    (export.parent / "secret").write_bytes(b"secret")
    (digest,) = checksums.of(export.parent, ["secret"]).values()
    for line in (f"{'0' * 64}  gone.txt\n", f"{digest}  ../secret\n", "nonsense\n"):
        (export / checksums.NAME).write_text(listed + line)
        assert [finding.check for finding in changed(export)] == ["checksums"]


@pytest.mark.parametrize(
    "reading",
    [7, {}, {"before": ["<s>"]}, {"before": [], "space": "", "normalize": [["form", 1]], "special": []}],
)
def test_a_folder_that_says_wrongly_how_to_read_prompts(export: Path, reading: Any) -> None:
    edit(export / "lab.json", lambda lab: lab.update(reading=reading, optional=[]))
    assert "does not say how to read prompts" in faults(export)["template"]


def test_nothing_but_the_files_is_read(export: Path, tmp_path: Path) -> None:
    """A folder that looks like a package is not imported, and its app.py not run."""
    for name in ("app.py", "json.py", "onnx.py", "__init__.py"):
        (export / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (export / "tokenizer.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert changed(export) == []
    assert not (tmp_path / "ran").exists()


def test_the_runtime_stays_out_of_the_asking_process(export: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.exports import verify;"
        f"verify.whole(Path({str(export)!r}));"
        "heavy = ('torch', 'olive', 'transformers', 'onnxruntime_genai');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=settings.ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_copies_are_as_good_as_the_original(export: Path, tmp_path: Path) -> None:
    assert faults(shutil.copytree(export, tmp_path / "a copy")) == {}
