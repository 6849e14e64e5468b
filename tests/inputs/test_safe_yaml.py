"""Texts that are small and stand for something huge, or for nothing that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs import options, safe_yaml
from pipeline.stages import recipe


def bomb(first: str, inner: str) -> str:
    """Twenty lines, each of which has the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 20):
        lines.append(f"a{level}: &a{level} {inner % ', '.join([f'*a{level - 1}'] * 9)}")
    return "\n".join(lines)


BOMBS = {
    "lists": bomb("[x, x, x]", "[%s]"),
    "merges": bomb("{k: v}", "{<<: [%s]}"),
    "long text": f"a: &a {'x' * 5000}\nb: [{'*a, ' * 100}]",
}
CIRCLES = {"list": "a: &a [*a]", "mapping": "&a {a: *a}"}
DEEP = {
    "lists": "a: " + "[" * 1000 + "]" * 1000,
    "mappings": "{a: " * 1000 + "}" * 1000,
}
TAGGED = ["!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "!!binary x", "!!python/name:os.system"]


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_may_not_stand_for_everything(text: str) -> None:
    assert len(text) < 50_000
    with pytest.raises(ValueError, match=r"^its aliases \(\*\) stand for more than 200,000 characters"):
        safe_yaml.load(text)


@pytest.mark.parametrize("text", CIRCLES.values(), ids=CIRCLES)
def test_an_alias_may_not_hold_itself(text: str) -> None:
    with pytest.raises(ValueError, match="refers to something that contains it"):
        safe_yaml.load(text)


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_it_may_not_be_endlessly_deep(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        safe_yaml.load(text)


@pytest.mark.parametrize(
    "value",
    [*TAGGED, "9" * 5000, "1" + ":1" * 3000 + ".5", "2020-13-45", "[", "\0", "\x1b[2J", "*" + "x" * 5000],
)
def test_every_fault_is_one_short_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        safe_yaml.load(f"data: {value}")
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) <= display.LONGEST_LINE
    assert str(caught.value).isprintable()
    (tmp_path / "recipe.yaml").write_text(f"data: {value}")
    with pytest.raises(InputError, match="is not valid YAML"):
        recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("data: a\nname: b\ndata: c", "the key 'data' occurs twice, on lines 1 and 3; keep one"),
        ("a: {r: 1,\n r: 2}", "the key 'r' occurs twice, on lines 1 and 2; keep one"),
        ("a: {r: 1, 'r': 2}", "the key 'r' occurs twice, on line 1; keep one"),
        ("- {x: [{yes: 1, true: 2}]}", "the key 'true' occurs twice, on line 1; keep one"),
        ("1: a\ntrue: b", "the key 'true' occurs twice, on lines 1 and 2; keep one"),
        ("~: a\nnull: b", "the key 'null' occurs twice, on lines 1 and 2; keep one"),
        ("16: 1\n0x10: 2", "the key '0x10' occurs twice, on lines 1 and 2; keep one"),
        (
            "a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a",
            "the key '<<' occurs twice, on lines 3 and 4; keep one",
        ),
        ('"\\e[2J": 1\n"\\e[2J": 1', r"the key '\u001b[2J' occurs twice, on lines 1 and 2; keep one"),
        ("? {a: 1, a: 2}\n: 1", "the key 'a' occurs twice, on line 1; keep one"),
    ],
)
def test_a_key_stands_once(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(fault)}$"):
        safe_yaml.load(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(fault)):
        recipe.load(tmp_path / "recipe.yaml")


def test_a_text_of_any_length_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than 200,000 characters"):
        safe_yaml.load("a: " + "x" * 200_000)
    with pytest.raises(InputError, match="longer than 200,000 characters"):
        recipe.load(Path("/dev/zero"))


def test_aliases_that_a_person_writes_are_read() -> None:
    text = "base: &base {r: 8, alpha: 16}\nmore: {<<: *base, r: 4}\nsame: *base\nnone:\n"
    base = {"r": 8, "alpha": 16}
    assert safe_yaml.load(text) == {"base": base, "more": {"r": 4, "alpha": 16}, "same": base, "none": None}
    assert safe_yaml.load("") is None
    assert safe_yaml.load("1: a\n'1': b\nfalse: c\n1.5: d") == {1: "a", "1": "b", False: "c", 1.5: "d"}


@pytest.mark.parametrize("text", [*BOMBS.values(), *CIRCLES.values()])
def test_a_recipe_and_set_refuse_them_in_a_few_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: x\n{text}")
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    assert len(str(caught.value)) < 1000
    path.write_text("data: x\n")
    for key in ("quantize", "finetune.r", "seed"):
        with pytest.raises(InputError) as caught:
            recipe.load(path, [f"{key}={text}"])
        assert len(str(caught.value)) < 1000


HEX = "0x" + "f" * 5000
LARGE = [
    "y" * 100_000,
    HEX,
    "[" + "z, " * 900 + "]",
    "{" + ", ".join(f"k{n}: 1" for n in range(900)) + "}",
    ".inf",
]


@pytest.mark.parametrize("value", LARGE, ids=lambda value: value[:5])
@pytest.mark.parametrize("key", ["seed", "max_minutes", "quantize", "quantize.bits", "finetune.max_steps"])
def test_what_is_too_large_is_cut_in_every_message(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: x\n")
    with pytest.raises(InputError) as caught:
        recipe.load(path, [f"{key}={value}"])
    for problem in caught.value.problems:
        assert len(problem) < 500
        assert problem.isprintable()


def test_keys_are_cut_as_well(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    keys = [
        "? " + "k" * 1000 + "\n: 1\n",
        '? "\\e[2J"\n: 1\n',
        f"? {HEX}\n: 1\n",
        *(f"k{n}: 1\n" for n in range(500)),
    ]
    path.write_text(
        "data: x\n" + "".join(keys) + "quantize: {" + ", ".join(f"k{n}: 1" for n in range(500)) + "}"
    )
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    problems = caught.value.problems
    assert len(problems) == 21, "the first twenty, and how many more"
    assert problems[1].startswith("\\u001b[2J: unknown key")
    assert problems[10] == "...: 493 more unknown keys"
    assert problems[-1] == "and 2 more"
    assert all(len(problem) < 1000 and problem.isprintable() for problem in problems)


def test_a_problem_is_never_pages_long() -> None:
    assert len(str(InputError("x" * 10**6))) == 2000


def test_numbers_that_nothing_can_hold_are_refused() -> None:
    found = {option.name: option for option in options.describe(recipe.OPTIONS["finetune"])}
    for value in (2**63, 10**5000):
        with pytest.raises(InputError):
            options.coerce(found["max_steps"], value, "finetune.max_steps")
