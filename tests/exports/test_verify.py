"""Every fault an export can have is found by the check that looks for it, and a good export has none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
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

OTHER = "other.onnx_adapter"


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def faults(folder: Path) -> dict[str, str]:
    """What the static part finds wrong, by check."""
    return {finding.check: finding.message for finding in failed(verify.static(folder))}


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


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


def test_what_exporters_write_for_other_devices_is_taken(export: Path) -> None:
    def cuda(config: Any) -> None:
        config["model"]["decoder"]["session_options"] |= {
            "log_id": "onnxruntime-genai",
            "provider_options": [{"cuda": {"enable_cuda_graph": "1"}}],
            "ep.cuda.fpa_intb_gemm": "1",
            "optimization.disable_specified_optimizers": "MatMulNBitsFusion",
            "session.use_device_allocator_for_initializers": "1",
        }

    edit(export / "genai_config.json", cuda)
    assert faults(export) == {}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c.pop("model"), "has no model"),
        (lambda c: c["model"]["decoder"].pop("filename"), "has no filename"),
        (lambda c: c["model"]["decoder"].update(filename="other.onnx"), "other.onnx is missing"),
        (
            lambda c: c["model"]["decoder"].update(filename="sub/model.onnx"),
            "not the name of a file beside it",
        ),
        (lambda c: c["model"]["decoder"].update(filename="../model.onnx"), "which lies outside the folder"),
        (lambda c: c["model"].update(context_length=0), "context_length is 0"),
        (lambda c: c["model"].update(context_length="256"), "context_length is '256'"),
        (lambda c: c["model"].pop("eos_token_id"), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"].update(eos_token_id=[]), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"].update(eos_token_id=[2, 259]), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"]["decoder"].update(num_hidden_layers=10**12), "are no language model's"),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="evil.so"),
            "has custom_ops_library, which loads something other than a model",
        ),
        (lambda c: c["search"].update(anything=["/etc/passwd"]), "names '/etc/passwd', which lies outside"),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(provider_options=[{"RyzenAI": {}}]),
            "names the provider RyzenAI, which may load code",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(enable_profiling="data/pulled/.x"),
            "has enable_profiling in session_options, which may write files",
        ),
        (
            lambda c: c["model"]["decoder"].update(run_options={"enable_profiling": "x"}),
            "has run_options, which may write files",
        ),
        (
            lambda c: c["model"].update(vision={"session_options": ["x"]}),
            "has no options in session_options, which may write files",
        ),
    ],
)
def test_a_config_that_is_wrong(export: Path, change: Callable[[Any], None], fault: str) -> None:
    edit(export / "genai_config.json", change)
    found = faults(export)
    assert list(found) == ["config"]
    assert fault in found["config"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"model": []}', "\x00", '{"model": {"a": 1, "a": 2}}']
)
def test_a_config_that_is_none(export: Path, content: str) -> None:
    (export / "genai_config.json").write_text(content)
    assert list(faults(export)) == ["config"]


@pytest.mark.parametrize(
    ("kind", "name", "fault"),
    [
        ("inputs", "past.%d.key", "past.0.key is no input of model.onnx"),
        ("outputs", "present.%d.key", "present.0.key is no output of model.onnx"),
    ],
)
def test_a_config_of_another_graph(export: Path, kind: str, name: str, fault: str) -> None:
    edit(export / "genai_config.json", lambda c: c["model"]["decoder"][kind].update(more=name))
    assert fault in faults(export)["graph"]


def test_an_input_that_nothing_feeds(export: Path) -> None:
    """Without a default under its name, the base could not run."""
    import onnx

    model = onnx.load(export / "model.onnx", load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "b"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, export / "model.onnx")
    assert "cannot run without an adapter: b has no default" in faults(export)["graph"]


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


def test_more_adapters_than_can_be_asked_are_refused(export: Path) -> None:
    for number in range(verify.MOST_ADAPTERS - 1):
        os.link(export / exports.ADAPTER, export / f"{number}.onnx_adapter")
    assert len(verify.adapters_of(export)) == verify.MOST_ADAPTERS
    assert faults(export) == {}
    os.link(export / exports.ADAPTER, export / "more.onnx_adapter")
    with pytest.raises(InputError, match="has more than 64 adapters; move some elsewhere"):
        verify.adapters_of(export)
    with pytest.raises(InputError, match="has more than 64 adapters"):
        verify.usual_adapter(export)
    assert "has more than 64 adapters; move some elsewhere" in faults(export)["adapters"]
    assert len(verify.static(export)) < 10


def test_one_error_has_few_of_many_reasons() -> None:
    bad = [Finding(f"adapter {number}", Status.FAILED, "x" * 150) for number in range(300)]
    with pytest.raises(LabError) as raised:
        verify.require(bad, "Nothing was published")
    assert str(raised.value).endswith("; and 290 more.")
    assert str(raised.value).count("adapter ") == verify.MOST_REASONS


def peak(look: Callable[[], Any]) -> int:
    """Bytes that Python's objects take at the most."""
    look()  # what is imported counts for nobody
    tracemalloc.start()
    try:
        look()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("length", "layers", "fault"),
    [
        (20_000, 1000, "config: genai_config.json has a name of more than 300 characters"),
        (250, 10_000, "graph: genai_config.json is another graph's: "),
    ],
)
def test_a_small_config_takes_little_memory(export: Path, length: int, layers: int, fault: str) -> None:
    def edit_(config: Any) -> None:
        config["model"]["decoder"]["num_hidden_layers"] = layers
        config["model"]["decoder"]["inputs"]["past"] = "n" * length + "%d"

    edit(export / "genai_config.json", edit_)
    ((check, message),) = faults(export).items()
    assert f"{check}: {message}".startswith(fault)
    assert peak(lambda: verify.static(export)) < 6_000_000


def test_names_are_counted_before_they_are_made(export: Path) -> None:
    def edit_(config: Any) -> None:
        config["model"]["decoder"]["num_hidden_layers"] = 10_000
        config["model"]["decoder"]["inputs"] |= {f"past{number}": f"{number}.%d" for number in range(50)}

    edit(export / "genai_config.json", edit_)
    assert "names 500,001 inputs or outputs" in faults(export)["config"]
    assert peak(lambda: verify.static(export)) < 2_000_000


def test_of_missing_inputs_few_are_named_and_few_sentences_made() -> None:
    made = 0

    def sentences() -> Iterator[str]:
        nonlocal made
        for _ in range(100_000):
            made += 1
            yield "x is no input"

    assert (
        verify._some(sentences()) == "x is no input, x is no input, x is no input, and more than 1,000 more"
    )
    assert made == verify.NAMED_FAULTS + verify.COUNTED_FAULTS + 1


@pytest.mark.parametrize(
    ("name", "size"), [("genai_config.json", 1), ("lab.json", 1), ("tokenizer_config.json", 4)]
)
def test_small_files_of_json_are_small(export: Path, name: str, size: int) -> None:
    content = (export / name).read_text()[:-1]
    (export / name).write_text(f'{content}, "x": "{"x" * (size << 20)}"}}')
    assert f"{name} is larger than any real one" in " ".join(faults(export).values())


def test_a_tokenizer_of_very_many_empty_lists_is_not_parsed(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST_VALUES", 20_000)
    content = (export / "tokenizer.json").read_text()[:-1]
    (export / "tokenizer.json").write_text(f'{content}, "x": [{"[]," * 9_000}[]]}}')
    assert faults(export) == {}
    (export / "tokenizer.json").write_text(f'{content}, "x": [{"[]," * 100_000}[]]}}')
    assert "tokenizer.json is larger than any real one" in faults(export)["tokenizer"]
    assert peak(lambda: verify.static(export)) < 3_000_000


def test_what_the_runtime_feeds_is_looked_up_and_not_searched(export: Path) -> None:
    class Names(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("each search reads all of it")

    config, _ = verify.declared(export)
    whole = verify.Config(config.graph, Names(config.inputs), Names(config.outputs))
    assert verify._graph(export, whole)[1].startswith("all 1 inputs of the runtime and 2 of adapters")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": {"vocab": {}}}'])
def test_a_tokenizer_that_is_missing_or_broken(export: Path, content: str | None) -> None:
    (export / "tokenizer.json").unlink()
    if content is not None:
        (export / "tokenizer.json").write_text(content)
    assert list(faults(export)) == ["tokenizer"]


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


def test_an_adapter_of_zeros_does_not_differ(export: Path) -> None:
    zeros = {"a": exports.random(16, 4), "b": np.zeros((4, 16), np.float32)}
    exports.write_adapter(export / exports.ADAPTER, zeros)
    exports.write_adapter(export / OTHER, {"a": exports.random(16, 4), "b": exports.random(4, 16)})
    found = {finding.check: finding for finding in verify.live(export)}
    assert found[f"answers with {exports.ADAPTER}"].status == "failed"
    assert "do not differ from the base's" in found[f"answers with {exports.ADAPTER}"].message
    assert found[f"answers with {OTHER}"].status == "ok", "one adapter's fault is not another's"


def test_an_adapter_that_learned_little_is_said_to(export: Path) -> None:
    small = {"a": exports.random(16, 4) * 1e-3, "b": exports.random(4, 16) * 1e-3}
    exports.write_adapter(export / exports.ADAPTER, small)
    found = verify.live(export)[-1]
    assert found.status == "ok"
    assert "none of the answers; it may need more training" in found.message


def test_an_adapter_that_overflows_is_found(export: Path) -> None:
    huge = {"a": exports.random(16, 4) * 1e30, "b": exports.random(4, 16) * 1e30}
    exports.write_adapter(export / exports.ADAPTER, huge)
    found = verify.live(export)[-1]
    assert (found.status, found.message[:24]) == ("failed", "it computes NaN or infin")


def test_answers_that_are_empty_are_found(export: Path) -> None:
    """Where every token ends the answer, there is none."""
    edit(export / "genai_config.json", lambda c: c["model"].update(eos_token_id=list(range(259))))
    found = verify.live(export)
    assert [(f.check, f.status) for f in found] == [
        ("prompts", "ok"), ("answers", "failed"), (f"answers with {exports.ADAPTER}", "failed"),
    ]  # fmt: skip
    assert "answers in a row are empty" in found[1].message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (exports.CHAT.replace("m['role']", "m['role'].upper()"), "it cannot be written: RuntimeError"),
        (exports.CHAT + "{{ strftime_now('%d') }}", "from token"),
    ],
)
def test_an_app_of_an_earlier_release_that_asks_otherwise_is_found(
    export: Path, template: str, reason: str
) -> None:
    """It leaves the template to GenAI's own engine, which knows less of Jinja than training does."""
    (export / "app.py").write_text("of an earlier release")
    (export / "chat_template.jinja").write_text(template)
    found = verify.live(export)
    assert [f.check for f in failed(found)] == ["prompts"]
    assert "in app.py" in found[0].message
    assert reason in found[0].message
    (export / "app.py").unlink()
    assert failed(verify.live(export)) == [], "the lab itself prompts as in training"


@pytest.mark.parametrize(
    "reading",
    [7, {}, {"before": ["<s>"]}, {"before": [], "space": "", "normalize": [["form", 1]], "special": []}],
)
def test_a_folder_that_says_wrongly_how_to_read_prompts(export: Path, reading: Any) -> None:
    edit(export / "lab.json", lambda lab: lab.update(reading=reading, optional=[]))
    assert "does not say how to read prompts" in faults(export)["template"]


def test_a_model_the_runtime_refuses_is_a_finding(export: Path) -> None:
    (export / "tokenizer.json").write_text("{}")
    (found,) = verify.live(export)
    assert (found.check, found.status) == ("answers", "failed")
    assert found.message.startswith("the model does not load: ")
    assert "This failed" not in found.message


def test_a_model_for_a_gpu_is_not_loaded_without_one(
    export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"provider_options": [{"cuda": {}}]}
    edit(export / "genai_config.json", lambda c: c["model"]["decoder"].update(session_options=options))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no nvidia-smi is
    (found,) = verify.live(export)
    assert (found.check, found.status) == ("answers", "skipped")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("kill -9 $$", "ended with code -9"),
        ("echo 'corrupted heap' >&2; exit 3", "ended with code 3; it said: corrupted heap"),
        ("exec sleep 60", "did not answer within 0 seconds"),
    ],
)
def test_a_process_that_crashes_or_hangs_is_a_finding(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, fault: str
) -> None:
    process = tmp_path / "process"
    process.write_text(f"#!/bin/sh\n{script}\n")
    process.chmod(0o700)
    monkeypatch.setattr(settings, "python", lambda: str(process))
    monkeypatch.setattr(verify, "LIVE_SECONDS", 0.2 if "sleep" in script else 60)
    (found,) = verify.live(export)
    assert (found.check, found.status) == ("answers", "failed")
    assert fault in found.message


def test_an_answer_does_not_wait_for_a_thread_that_a_library_has_left(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "LIVE_SECONDS", 60.0)
    assert failed(verify.live(export)) == []


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
