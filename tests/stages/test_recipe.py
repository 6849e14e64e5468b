from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import InputError
from pipeline.inputs.options import describe
from pipeline.stages import recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(path: Path, *changes: str) -> str:
    with pytest.raises(InputError) as caught:
        recipe.load(path, list(changes))
    return str(caught.value)


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, "data: rows.jsonl\n")


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "sub", "data: ../rows.jsonl\nmodel: my-model\n")
    loaded = recipe.load(path.relative_to(tmp_path))
    assert loaded.data == str(tmp_path / "rows.jsonl")
    assert loaded.model == str(tmp_path / "sub" / "my-model")


@pytest.mark.parametrize("model", ["starter", "org/name", "azureml://registries/azureml/models/x/versions/1"])
def test_an_id_stays_as_it_is(tmp_path: Path, model: str) -> None:
    (tmp_path / "starter").mkdir()  # a folder that happens to have the name of the catalogue's model
    assert recipe.load(write(tmp_path, f"data: rows.jsonl\nmodel: {model}\n")).model == model


def test_what_is_written_like_a_path_is_one_even_if_it_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "data: rows.jsonl\nmodel: ./missing/model\n")
    assert recipe.load(path).model == str(tmp_path / "missing" / "model")


def test_a_stored_recipe_is_read_back_as_it_was(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe.load(minimal, ["model=org/name", "quantize=null"])
    (minimal.parent / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(minimal.parent)
    assert recipe.from_dict(loaded.to_dict()) == loaded


def test_null_skips_a_stage_and_left_out_means_defaults(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, "data: rows.jsonl\nquantize: null\n"))
    assert list(loaded.stages()) == ["finetune", "optimize", "evaluate"]
    assert loaded.stages()["finetune"] == recipe.OPTIONS["finetune"]()


def test_yaml_of_a_recipe_gives_the_same_recipe(minimal: Path) -> None:
    loaded = recipe.load(minimal, ["name=Wörter: viele", "finetune.learning_rate=0.00001", "evaluate=null"])
    again = recipe.load(write(minimal.parent, loaded.to_yaml()))
    assert again == loaded
    scored = recipe.load(minimal, ["score.rows=3", "group=g"])
    assert recipe.load(write(minimal.parent, scored.to_yaml())) == scored
    assert "score" in scored.stages()


def test_yaml_of_a_recipe_has_a_stage_on_each_line(minimal: Path) -> None:
    lines = recipe.load(minimal).to_yaml().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "name", "model", "data", "template", "eval_fraction", "seed",
        "quantize", "finetune", "optimize", "evaluate",
    ]  # fmt: skip


def test_an_option_by_its_older_name_is_understood(tmp_path: Path) -> None:
    text = "data: r.jsonl\nquantize: {algorithm: gptq, calibration_rows: 7}\n"
    loaded = recipe.load(write(tmp_path, text))
    assert loaded.quantize is not None
    assert loaded.quantize.calibration_blocks == 7


def test_a_recipe_from_before_an_option_exports_as_it_did(tmp_path: Path) -> None:
    old = "optimize: {device: cpu, provider: CPUExecutionProvider, precision: fp32, block_size: 16}\n"
    loaded = recipe.load(write(tmp_path, f"data: r.jsonl\n{old}")).optimize
    assert loaded is not None
    assert (loaded.precision, loaded.block_size, loaded.accuracy_level) == ("fp32", 16, 4)
    assert (loaded.lm_head, loaded.embedding, loaded.adapter) == ("auto", "auto", "detachable")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert recipe.load(write(tmp_path, "\ufeffdata: rows.jsonl\n")).data.endswith("rows.jsonl")


def test_the_sample_recipe_is_good() -> None:
    loaded = recipe.load(settings.SAMPLES / "travel.yaml")
    assert list(loaded.stages()) == ["quantize", "finetune", "optimize", "evaluate"]
    assert Path(loaded.data).is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: r.jsonl\nmodle: x\n", "modle: unknown key; allowed: name, model, data, template"),
        ("data: r.jsonl\nquantize: {bit: 4}\n", "quantize.bit: unknown key; allowed: algorithm, bits"),
        ("data: r.jsonl\nquantize: {bits: 5}\n", "quantize.bits: 5 is not allowed; allowed: 4 or 8"),
        ("data: r.jsonl\nquantize: true\n", "quantize: True is not allowed; allowed: a mapping of options"),
        ("data: r.jsonl\nname: 5\n", "name: 5 is not allowed; allowed: a text"),
        ("data: r.jsonl\nname: ''\n", "name: '' is not allowed; allowed: 1 to 100 characters"),
        ('data: r.jsonl\nname: "a\\e[31mb"\n', "name: 'a\\x1b[31mb' is not allowed"),
        ("data: r.jsonl\nseed: -1\n", "seed: -1 is not allowed; allowed: a whole number from 0"),
        (
            "data: r.jsonl\neval_fraction: 0.9\n",
            "eval_fraction: 0.9 is not allowed; allowed: a number from 0.01",
        ),
        ("name: x\n", "data: is missing"),
        ("data: r.jsonl\noptimize: null\n", "evaluate: needs optimize"),
        (
            "data: r.jsonl\nquantize: null\nfinetune: null\noptimize: null\nevaluate: null\n",
            "all stages are null",
        ),
        ("data: ~nobody-of-that-name/x\n", "data or model: cannot be a path"),
        ("- data\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("data: [unclosed\n", "is not valid YAML"),
        ("data: r.jsonl\nname: 2020-13-45\n", "is not valid YAML"),
        ("data: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_faulty_recipe_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem(write(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["finetune.method=dora"], "'rslora' or 'lora', or set optimize and evaluate to null"),
        (["finetune.method=dora", "evaluate=null"], "set optimize and evaluate to null"),
        (
            ["finetune.method=qlora"],
            "finetune.method: 'qlora' puts the float model into nf4 itself; set quantize",
        ),
    ],
)
def test_a_method_that_does_not_go_with_a_stage_is_refused(
    minimal: Path, changes: list[str], expected: str
) -> None:
    assert expected in problem(minimal, *changes)


def test_methods_go_with_the_stages_they_are_for(minimal: Path) -> None:
    recipe.load(minimal, ["finetune.method=dora", "optimize=null", "evaluate=null"])
    recipe.load(minimal, ["finetune.method=qlora", "quantize=null"])
    recipe.load(minimal, ["finetune.method=rslora"])


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    message = problem(write(tmp_path, "nam: x\nseed: -1\nquantize: {bits: 5, sym: 1}\n"))
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "nam", "seed", "quantize.sym", "quantize.bits", "data",
    ]  # fmt: skip


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "no such recipe file" in problem(tmp_path / "missing.yaml")
    assert "cannot be read as text" in problem(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in problem(tmp_path / "binary.yaml")


def test_a_name_too_long_for_a_path_is_refused(minimal: Path) -> None:
    assert "cannot be a path: File name too long" in problem(minimal, "model=" + "x" * 3900)


class TestSet:
    def test_it_changes_an_option(self, minimal: Path) -> None:
        loaded = recipe.load(minimal, ["finetune.max_steps=10", "seed=3", "evaluate=null"])
        assert (loaded.finetune.max_steps, loaded.seed, loaded.evaluate) == (10, 3, None)

    def test_it_switches_a_stage_on_again(self, tmp_path: Path) -> None:
        path = write(tmp_path, "data: rows.jsonl\nquantize: null\n")
        assert recipe.load(path, ["quantize.bits=8"]).quantize.bits == 8

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ("finetune.max_steps", "write it as key=value"),
            ("finetune.max_stepz=1", "finetune.max_stepz: unknown key"),
            ("fintune.max_steps=1", "fintune: unknown key"),
            (
                "finetune.max_steps=ten",
                "finetune.max_steps: 'ten' is not allowed; allowed: 'auto' or a whole",
            ),
            ("seed.x=1", "--set seed.x=1: seed has no options"),
        ],
    )
    def test_a_faulty_change_is_refused_by_name(self, minimal: Path, change: str, expected: str) -> None:
        assert expected in problem(minimal, "seed=1", change)

    @pytest.mark.parametrize(
        "text", ["{prompt} {response}", "Q: {prompt} A: {response}", "007", "[x]", "2020-13-45"]
    )
    def test_a_text_is_taken_as_it_is_whatever_it_would_be_in_yaml(self, minimal: Path, text: str) -> None:
        assert recipe.load(minimal, [f"template={text}", f"name={text}"]).template == text


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "-1", "-0.5", "1e400"])
def test_every_number_has_bounds(tmp_path: Path, value: str) -> None:
    """YAML has infinity and NaN; JSON, in which runs are kept, has not."""
    kinds = {"": recipe.Basics, **recipe.OPTIONS}
    numbers = [
        f"{stage}.{one.name}" if stage else one.name
        for stage, cls in kinds.items()
        for one in describe(cls)
        if {int, float} & set(one.types)
    ]
    assert "max_minutes" in numbers
    for key in numbers:
        given = {"data": "rows.jsonl", "model": "starter"}
        with pytest.raises(InputError, match=rf"^{key}: .* is not allowed; allowed: .*number"):
            recipe.build(given, tmp_path, [f"{key}={value}"])


def test_checks_of_answers_are_a_list_or_lines() -> None:
    given = {"data": "/d/rows.jsonl", "evaluate": {"checks": [{"contains": "Paris"}, {"number": {"low": 1}}]}}
    read = recipe.from_dict(given)
    assert read.evaluate is not None
    assert read.evaluate.checks == "contains: Paris\nnumber: 1 to "
    assert recipe.from_dict(read.to_dict()) == read
    with pytest.raises(InputError, match=r"evaluate\.checks: check 1: \{'contain': 'x'\} is not allowed"):
        recipe.from_dict({**given, "evaluate": {"checks": [{"contain": "x"}]}})
    with pytest.raises(InputError, match=r"evaluate\.checks: 3 is not allowed; allowed: a text"):
        recipe.from_dict({**given, "evaluate": {"checks": 3}})
