from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.models import base_models, contents
from tests.helpers.lab import CONFIG, write_safetensors, write_tokenizer

OUTSIDE = "/etc/hostname"  # any file there is on every machine
# Of libraries that load what the lab itself made: the starter's own file, and a run's adapter.
LOADED_ELSEWHERE = {
    ("inputs/models/starter.py", "AutoTokenizer"),
    ("inputs/models/starter.py", "AutoModelForCausalLM"),
    ("passes/measure/parity.py", "PeftModel"),
    ("passes/optimize/merge.py", "PeftModel"),
    ("passes/optimize/merge.py", "LoraConfig"),
}


@pytest.fixture
def folder(model_folder: Path, bytes_as_tokens: Path) -> Path:
    """A model's folder with a tokenizer that can be loaded."""
    return model_folder


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Paths that Python opens meanwhile."""
    found: list[str] = []
    listening = True

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if listening and event == "open" and isinstance(given[0], str):
            found.append(given[0])

    sys.addaudithook(hook)
    yield found
    listening = False  # nothing takes a hook away


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def fault(folder: Path) -> str:
    """What stands against a folder, the same from whoever would load from it."""
    with pytest.raises(LabError) as caught:
        contents.require(folder)
    for load in (contents.tokenizer_of, contents.config_of):
        with pytest.raises(LabError, match=re.escape(str(caught.value))):
            load(folder)
    model = base_models.Model(str(folder), "folder", "", {}, None)
    for find in (
        lambda: base_models.tokenizer_folder(model, folder),
        lambda: base_models.materialize(model, folder, pytest.fail),
    ):
        with pytest.raises(LabError, match=re.escape(str(caught.value))):
            find()
    return str(caught.value)


def weights_fault(folder: Path) -> str:
    """What stands against a folder with weights; of some models only the small files are here."""
    contents.require(folder)
    model = base_models.Model(str(folder), "folder", "", {}, None)
    with pytest.raises(LabError) as caught:
        base_models.materialize(model, folder, pytest.fail)
    with pytest.raises(InputError):
        base_models.resolve(str(folder))
    return str(caught.value)


class TestFaults:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ({"type": "WordPiece", "vocab": OUTSIDE}, "model.vocab is neither a mapping nor a list"),
            ({"type": "BPE", "vocab": {}, "merges": OUTSIDE}, "model.merges is not a list"),
            (OUTSIDE, "model is not a mapping"),
        ],
    )
    def test_a_tokenizer_with_a_path_in_it(self, folder: Path, model: Any, expected: str) -> None:
        put(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
        put(folder, "tokenizer.json", {"model": model, "added_tokens": []})
        assert f"tokenizer.json: {expected}; " in fault(folder)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "processor_config.json"])
    @pytest.mark.parametrize(
        "entry",
        [
            {"vocab": OUTSIDE},
            {"vocab_file": OUTSIDE},
            {"merges_file": OUTSIDE},
            {"gguf_file": "x.gguf"},
            {"source_spm": OUTSIDE},
            {"init_inputs": [OUTSIDE]},
            {"fast_tokenizer_files": ["tokenizer.4.0.0/../../x.json"]},
            {"configuration_files": ["config.4.0.0/../../x.json"]},
            {"transformers_weights": "adapter_model.bin"},
            {"sp_model_kwargs": {"model_file": OUTSIDE}},
            {"deep": [{"tokenizer_file": OUTSIDE}]},
        ],
    )
    def test_a_setting_that_is_a_path(self, folder: Path, name: str, entry: dict[str, Any]) -> None:
        put(folder, name, {**(CONFIG if name == "config.json" else {}), **entry})
        assert re.search(f"{name}: \\w+ names a file, which is not opened; make it null", fault(folder))
        with pytest.raises(InputError, match="names a file"):
            base_models.resolve(str(folder))

    def test_a_special_token_that_is_none(self, folder: Path) -> None:
        """transformers puts these over the files that it has found."""
        put(folder, "special_tokens_map.json", {"tokenizer_file": OUTSIDE})
        assert "special_tokens_map.json: tokenizer_file is not the name of a token" in fault(folder)

    @pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json"])
    @pytest.mark.parametrize("content", [OUTSIDE, {"a": OUTSIDE}])
    def test_words_that_are_a_path(self, folder: Path, name: str, content: Any) -> None:
        put(folder, name, json.dumps(content))
        assert f"{name}{':' if isinstance(content, dict) else ' is'} " in fault(folder)

    @pytest.mark.parametrize(
        "shard",
        [
            "/etc/x.safetensors", "../x.safetensors", "a/x.safetensors", "a\\x.safetensors", "weights.txt",
            ".x.safetensors", "x.safetensors\n", 1, [], None,
        ],
    )  # fmt: skip
    def test_an_index_that_leads_out_of_the_folder_or_to_a_pickle(self, folder: Path, shard: Any) -> None:
        put(folder, contents.INDEX, {"metadata": {}, "weight_map": {"w": shard}})
        assert "not a .safetensors file of the folder" in fault(folder)
        with pytest.raises(InputError, match="weight_map names"):
            base_models.resolve(str(folder))

    @pytest.mark.parametrize(
        "index", [[], {}, {"weight_map": 1}, {"weight_map": []}, {"weight_map": {"w": "a"}}]
    )
    def test_an_index_of_another_kind(self, folder: Path, index: Any) -> None:
        put(folder, contents.INDEX, index)
        assert contents.INDEX in fault(folder)

    def test_weights_that_transformers_would_not_choose(self, folder: Path) -> None:
        (folder / contents.WEIGHTS).rename(folder / "other.safetensors")
        put(folder, "pytorch_model.bin.index.json", {"weight_map": {"w": OUTSIDE}})
        assert "has neither model.safetensors nor model.safetensors.index.json; " in weights_fault(folder)

    def test_a_folder_by_the_name_of_weights_is_none(self, folder: Path) -> None:
        """The pickle beside it would be loaded."""
        (folder / contents.WEIGHTS).unlink()
        (folder / contents.WEIGHTS).mkdir()
        assert "has neither model.safetensors nor model.safetensors.index.json; " in weights_fault(folder)

    def test_a_part_that_is_not_there(self, folder: Path) -> None:
        (folder / contents.WEIGHTS).rename(folder / "a.safetensors")
        index = {"metadata": {}, "weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}
        put(folder, contents.INDEX, index)
        assert "model.safetensors.index.json: b.safetensors is not there; " in weights_fault(folder)

    @pytest.mark.parametrize("metadata", [{}, {"metadata": None}])
    def test_an_index_that_transformers_cannot_read(self, folder: Path, metadata: dict[str, Any]) -> None:
        (folder / contents.WEIGHTS).rename(folder / "a.safetensors")
        put(folder, contents.INDEX, {**metadata, "weight_map": {"w": "a.safetensors"}})
        assert "model.safetensors.index.json: metadata is not a mapping; " in weights_fault(folder)

    def test_an_adapter(self, folder: Path) -> None:
        put(folder, "adapter_config.json", {"base_model_name_or_path": OUTSIDE})
        assert "so an adapter would be added to its weights; if it is merged into them already" in fault(
            folder
        )
        (folder / contents.WEIGHTS).unlink()
        assert "has adapter_config.json, so it is an adapter" in fault(folder)

    def test_a_folder_of_mlflow(self, folder: Path) -> None:
        """Olive loads data/model of it, which nobody has looked at."""
        (folder / "MLmodel").write_text("flavors: {transformers: {}}\n")
        assert "has MLmodel, so Olive would load another folder in it; give the one" in fault(folder)

    def test_a_template_that_would_be_used_unseen(self, folder: Path) -> None:
        """transformers takes it instead of the chat_template.jinja that the page shows."""
        (folder / contents.TEMPLATES).mkdir()
        (folder / contents.TEMPLATES / "tool_use.jinja").write_text("{{ messages }}")
        contents.require(folder)
        (folder / contents.TEMPLATES / "default.jinja").write_text("{{ messages }}")
        assert "has additional_chat_templates/default.jinja; move it to chat_template.jinja" in fault(folder)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
    @pytest.mark.parametrize(
        "kind",
        [
            "LlamaForCausalLM",
            "AutoTokenizer",
            "RagTokenizer",
            "PilBackend",
            "Tokenizer",
            "",
            3,
            ["T5Tokenizer"],
        ],
    )
    def test_a_class_that_is_no_tokenizer_s(
        self, folder: Path, opened: list[str], name: str, kind: Any
    ) -> None:
        """transformers would have it load weights, and whatever an index of pickles names."""
        put(folder, "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": {"w": OUTSIDE}})
        given = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        put(folder, name, {**given, "tokenizer_class": kind})
        assert "is not the name of a tokenizer; " in fault(folder)
        with pytest.raises(InputError, match="is not the name of a tokenizer"):
            base_models.resolve(str(folder))
        assert OUTSIDE not in opened

    @pytest.mark.parametrize(
        "name", ["chat_template.jinja", "additional_chat_templates/a.jinja", "config.json"]
    )
    def test_a_link_out_of_the_folder(self, folder: Path, name: str, opened: list[str]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(OUTSIDE)
        opened.clear()
        assert f"{Path(name).name} is a link out of its folder; " in fault(folder)
        with pytest.raises(InputError, match="is a link out of its folder"):
            base_models.resolve(str(folder))
        assert not {OUTSIDE, str(folder / name)} & {*opened}

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
    def test_a_kernel_of_the_hub(self, folder: Path, key: str) -> None:
        put(folder, "config.json", {**CONFIG, key: "flash_attention_2"})
        contents.require(folder)
        put(folder, "config.json", {**CONFIG, "text_config": {key: "evil/kernel"}})
        assert f"config.json: {key} names code of the hub; " in fault(folder)

    def test_another_model_for_the_eyes(self, folder: Path) -> None:
        """Its config would be fetched of whatever repository is named, with the login of who runs the lab."""
        put(folder, "config.json", {**CONFIG, "backbone": None})
        contents.require(folder)
        put(folder, "config.json", {**CONFIG, "model_type": "upernet", "backbone": "secret/other"})
        assert "config.json: backbone names another model, which is not fetched; " in fault(folder)

    def test_a_link_to_itself(self, folder: Path) -> None:
        (folder / "notes.txt").symlink_to("notes.txt")
        assert "notes.txt is a link out of its folder" in fault(folder)

    def test_a_link_to_a_folder(self, folder: Path, tmp_path: Path) -> None:
        (folder / "additional_chat_templates").symlink_to(tmp_path)
        assert "additional_chat_templates is a link out of its folder" in fault(folder)

    def test_a_file_of_very_many_values(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "MOST_VALUES", 1000)
        put(folder, "special_tokens_map.json", {"a_tokens": [{}] * 999})
        assert "special_tokens_map.json has more values than any real one" in fault(folder)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", contents.INDEX])
    @pytest.mark.parametrize("depth", [100, 900, 100_000])
    def test_a_file_that_is_nested(self, folder: Path, name: str, depth: int) -> None:
        put(folder, name, '{"a": ' + "[" * depth + "]" * depth + "}")
        assert f"{name} is nested deeper than any real one" in fault(folder)
        if name != "tokenizer.json":
            with pytest.raises(InputError, match="is nested deeper than any real one"):
                base_models.resolve(str(folder))

    @pytest.mark.parametrize("text", ["{", "[]", '"x"', "1"])
    def test_a_file_of_another_kind(self, folder: Path, text: str) -> None:
        put(folder, "special_tokens_map.json", text)
        assert "special_tokens_map.json is not" in fault(folder)

    def test_a_file_that_is_too_large(self, folder: Path) -> None:
        put(folder, "special_tokens_map.json", "{}" + " " * contents.LARGEST_OTHER)
        assert "special_tokens_map.json is larger than any real one" in fault(folder)

    def test_it_is_looked_at_again_once_it_has_changed(self, folder: Path) -> None:
        contents.require(folder)
        put(folder, "special_tokens_map.json", {"vocab": OUTSIDE})
        fault(folder)
        (folder / "special_tokens_map.json").unlink()
        contents.require(folder)


class TestWhatRealModelsHave:
    def test_links_within_it_and_to_the_blobs_of_a_hub_s_cache(self, folder: Path, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.parent.mkdir()
        folder.rename(snapshot)
        for number, file in enumerate([*snapshot.iterdir()]):
            file.rename(blobs / str(number))
            file.symlink_to(Path("../../blobs") / str(number))
        (snapshot / "again.json").symlink_to("config.json")
        contents.require_whole(snapshot)
        base_models.resolve(str(snapshot))
        assert contents.tokenizer_of(snapshot)

    @pytest.mark.chain
    def test_every_name_of_a_tokenizer_is_a_class_that_loads_by_itself(self) -> None:
        """So that a release of transformers that has another one is noticed."""
        import transformers

        ours = transformers.PreTrainedTokenizerBase
        names = [name for name in dir(transformers) if contents.TOKENIZERS.fullmatch(name)]
        found = [getattr(transformers, name) for name in names]
        real = [kind for kind in found if isinstance(kind, type) and issubclass(kind, ours)]
        assert len(real) > 80
        assert {kind.from_pretrained.__func__ for kind in real} == {ours.from_pretrained.__func__}
        others = [kind for kind in found if kind not in real]  # those whose libraries are not here
        assert not [
            kind for kind in others if not hasattr(kind, "_backends") and hasattr(kind, "from_pretrained")
        ]

    def test_parts_of_weights_and_empty_settings(self, folder: Path) -> None:
        (folder / contents.WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
        put(folder, contents.INDEX, index)
        put(folder, "config.json", {**CONFIG, "_name_or_path": "org/tiny"})
        put(folder, "special_tokens_map.json", {"eos_token": "</s>", "additional_special_tokens": []})
        put(folder, "tokenizer_config.json", {"vocab_file": None, "init_inputs": [], "sp_model_kwargs": {}})
        contents.require_whole(folder)

    def test_an_old_index_beside_the_weights(self, folder: Path) -> None:
        """transformers does not open it."""
        put(folder, contents.INDEX, {"weight_map": {"w": "model-00001-of-00009.safetensors"}})
        contents.require_whole(folder)
        base_models.resolve(str(folder))

    def test_a_token_for_each_piece_of_sound(self, folder: Path) -> None:
        """Models that speak add 28,000 to 65,000 tokens, and transformers wrote them line by line."""
        more = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
        added = {str(300 + i): {"content": f"<|s_{i}|>", **more} for i in range(65_536)}
        put(folder, "tokenizer_config.json", json.dumps({"added_tokens_decoder": added}, indent=2))
        assert (folder / "tokenizer_config.json").stat().st_size > 11_000_000
        contents.require_whole(folder)
        base_models.resolve(str(folder))

    @pytest.mark.parametrize(
        "kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "GemmaTokenizer", "OwnTokenizer"]
    )
    def test_files_of_its_own_that_a_tokenizer_names_are_not_opened_by_name(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str], kind: str
    ) -> None:
        """Such a name would be one of the folder in which the process works."""
        named = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
        put(folder, "tokenizer_config.json", {"tokenizer_class": kind, **named})
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        put(elsewhere, "vocab.json", {"leaked": 0})
        put(elsewhere, "merges.txt", "#version: 0.2\n")
        monkeypatch.chdir(elsewhere)
        opened.clear()
        base_models.resolve(str(folder))
        tokenizer = contents.tokenizer_of(folder)
        tokenizer.save_pretrained(tmp_path / "saved")
        assert "leaked" not in tokenizer.get_vocab()
        assert {"tokenizer.json", "tokenizer_config.json"} <= {Path(path).name for path in opened}
        inside = [str(elsewhere), "vocab.json", "merges.txt", "./"]
        assert not [path for path in opened if path.startswith(tuple(inside))]
        (folder / "tokenizer.json").unlink()
        with pytest.raises(LabError, match="vocab_file names a file, which is not opened"):
            contents.tokenizer_of(folder)

    @pytest.mark.parametrize("name", [OUTSIDE, "../vocab.json", "a/vocab.json", ".vocab", "vocab.json\n"])
    def test_a_file_elsewhere_is_refused(self, folder: Path, name: str) -> None:
        put(folder, "tokenizer_config.json", {"vocab_file": name})
        assert "vocab_file names a file" in fault(folder)

    def test_paths_of_the_makers_machine_are_not_opened(self, folder: Path, tmp_path: Path) -> None:
        """transformers puts its own in their place."""
        other = tmp_path / "other"
        other.mkdir()
        words = json.loads(write_tokenizer(other / "tokenizer.json").read_text())
        words["model"]["vocab"]["leaked"] = len(words["model"]["vocab"])
        put(other, "tokenizer.json", words)
        write_safetensors(other / contents.WEIGHTS, [1.0])
        put(other, "special_tokens_map.json", {"eos_token": "leaked"})
        put(other, "added_tokens.json", {"leaked": 999})
        put(other, "config.json", {**CONFIG, "vocab_size": 7})
        named = {
            "name_or_path": str(other),
            "tokenizer_file": str(other / "tokenizer.json"),
            "full_tokenizer_file": str(other / "tokenizer.json"),
            "special_tokens_map_file": str(other / "special_tokens_map.json"),
            "added_tokens_file": str(other / "added_tokens.json"),
        }
        for kind in ("PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "BertTokenizer"):
            put(folder, "tokenizer_config.json", {"tokenizer_class": kind, **named})
            assert "leaked" not in contents.tokenizer_of(folder).get_vocab()
        names = dict.fromkeys(("name_or_path", "_name_or_path", "_model_name_or_path"), str(other))
        put(folder, "config.json", {**CONFIG, **names})
        config = contents.config_of(folder)
        assert (config.vocab_size, config.name_or_path) == (CONFIG["vocab_size"], str(folder))


def test_nothing_else_loads_from_a_models_folder() -> None:
    root = settings.ROOT / "pipeline"
    found = {
        (str(path.relative_to(root)), name)
        for path in root.rglob("*.py")
        for name in re.findall(r"(\w+)\.from_pretrained\b", path.read_text("utf-8"))
    }
    own = {("inputs/models/contents.py", name) for name in ("AutoTokenizer", "AutoConfig")}
    assert found == LOADED_ELSEWHERE | own
