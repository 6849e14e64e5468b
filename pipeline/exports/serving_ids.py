"""How prompts must be given to ONNX Runtime GenAI so that it reads the tokens that training read.

`describe` derives that from a tokenizer and a template; it goes into the exported folder's `lab.json`, where
`lab_prompt` finds it. `require_same` compares the result with what training reads.
"""

from __future__ import annotations

import json
import shutil
import string
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import LabError, reason
from pipeline.inputs.prompts import lab_prompt, literal_prompts, model_template, templates
from pipeline.inputs.prompts.training_ids import WAY_OUT, in_common, put_before

LAB = "lab.json"  # how a model's prompts are written and read, in its exported folder
PROMPTS = ("prompt", "prompt_with_system")
HERE = Path(__file__).parent
# In every exported folder: talks to the model on machines without this lab.
APP = {
    "app.py": HERE / "app.py.txt",
    "lab_model.py": HERE / "lab_model.py.txt",
    "lab_prompt.py": Path(lab_prompt.__file__),
}
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# Of the tokenizers that turn spaces into ▁, GenAI does not split this one's text at digits before it merges.
TOKENIZER_FILES = ("genai_config.json", TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json")
PLAIN_CLASS = "GemmaTokenizer"
SPACE = "▁"
MARKS = (SPACE, {"String": " "})
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
EXPORT_AGAIN = "export the model again"
MOST_SPECIAL = 24
HARD = (
    "Hello there",
    "hello",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "\n leading line",
    "trailing line\n",
    "two\n\nlines",
    "a\r\nb",
    "tab\tand\t\ttabs",
    "x  y   z    w",
    "I'm sure it's 2024, isn't it? 12345 678.90",
    "UPPER lower MiXeD",
    "naïve café, Größe, déjà vu",
    "e\u0301 in two code points, \ufb01 and \u00bd",
    "数据 数据库",
    "한국어 العربية हिन्दी ไทย",
    "🙂 👩‍👩‍👧 🇫🇷",
    "\u00a0no-break\u2003em space\u200bzero width",
    "def f(x):\n    return x + 1\n\n\n",
    '{"key": ["value", 1.5e-3]} <b>&amp;</b> \\n %s {x}',
    "https://example.org/a?b=c#d",
    "ᵃ² … — “quotes” «guillemets»",
    "▁ marks and Ġ marks",
    "word " * 40,
    "a long line of words, " * 300,
    ".",
    "1",
    "a  12",
    "\t12",
    "a  !",
    "a  .b",
)


@dataclass(frozen=True)
class Prompts:
    """How the prompts of an exported folder are written and read. `tokenizer` is GenAI's."""

    template: templates.Template
    tokenizer: Any
    reader: lab_prompt.Reader


def load(folder: Path) -> Prompts:
    """Read an exported folder; its graph is not loaded. One that an earlier release exported, which did not
    say how it is to be read, is read as it would be exported today.

    Raises LabError for a tokenizer that GenAI has not, ValueError for a faulty lab.json, and what
    onnxruntime_genai raises for a bad folder.
    """
    lab = json.loads((folder / LAB).read_text("utf-8"))
    check(lab)
    template = templates.parse(lab["template"], model_template.chat_template(folder))
    if "reading" in lab:
        tokenizer = _genai_tokenizer(folder)
    else:
        lab = {**lab, **describe(folder, template, before_of(folder))}
        with tempfile.TemporaryDirectory() as scratch:
            for name in TOKENIZER_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, Path(scratch) / name)
            prepare(Path(scratch), lab["reading"])
            tokenizer = _genai_tokenizer(Path(scratch))
    if isinstance(template, templates.ChatTemplate) and template.chat is not None:
        lab = {**lab, **dict.fromkeys(PROMPTS)}  # the template itself is there, which is exact
    return Prompts(template, tokenizer, lab_prompt.Reader(lab, tokenizer, template.prompt))


def describe(
    folder: Path,
    template: templates.Template,
    before: Sequence[int],
    rows: Iterable[templates.Row] = (),
) -> dict[str, Any]:
    """What lab.json says of a folder's prompts. Raises what `derive` does."""
    tokenizer = json.loads((folder / TOKENIZER).read_text("utf-8"))
    return {
        "fields": list(template.fields[:-1]),
        **literal_prompts.pieces_of(template, HARD, rows),
        "reading": derive(tokenizer, before),
    }


def before_of(folder: Path) -> list[int]:
    """The ids that a folder's tokenizer.json puts before every text, without what it puts behind."""
    tokenizer = trained_by(folder)
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return put_before(plain, whole)


def trained_by(folder: Path) -> Any:
    """The tokenizer of a folder as training uses it: a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / TOKENIZER))


def _genai_tokenizer(folder: Path) -> Any:
    import onnxruntime_genai as og

    return og.Tokenizer(og.Config(str(folder)))


def derive(tokenizer: Mapping[str, Any], before: Sequence[int]) -> dict[str, Any]:
    """The part "reading" of lab.json for a tokenizer.json; `before` are the ids that training puts first.

    Raises LabError where GenAI has no such tokenizer.
    """
    kind = tokenizer.get("model", {}).get("type")
    if kind != "BPE":
        raise LabError(
            f"This model's tokenizer is of the kind {kind}, and ONNX Runtime GenAI reads BPE only; {WAY_OUT}"
        )
    normalize: list[list[str]] = []
    space, marked = "", False
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            space = "each"
        elif step.get("type") == "Replace" and (step.get("content"), step.get("pattern")) == MARKS:
            marked = True
        elif (form := str(step.get("type"))) in FORMS:
            normalize.append(["form", form])
        elif step.get("type") == "Lowercase":
            normalize.append(["lower"])
        elif step.get("type") == "Replace" and "String" in step.get("pattern", {}):
            normalize.append(["replace", step["pattern"]["String"], step["content"]])
        else:
            raise LabError(
                f"This model's tokenizer changes texts by {step.get('type')}, which ONNX Runtime GenAI does"
                f" otherwise; {WAY_OUT}"
            )
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            marked = True
            space = {"always": "marks", "first": "first"}.get(_scheme(step), "")
        elif step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
            space = "words"
    return {
        "before": list(before),
        "normalize": normalize,
        "space": space,
        "tokenizer_class": PLAIN_CLASS if marked else None,
        "special": [_special(token) for token in tokenizer.get("added_tokens", [])],
    }


def prepare(folder: Path, reading: Mapping[str, Any]) -> None:
    """Change a folder's tokenizer files so that GenAI reads them right; for other readers ids stay the same.

    GenAI puts a space first where the decoder takes one away, and splits numbers unless the class is one
    that does not.
    """
    config = json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8"))
    tokenizer = json.loads((folder / TOKENIZER).read_text("utf-8"))
    if reading["space"]:
        config["add_prefix_space"] = False
    if reading["tokenizer_class"]:
        config["tokenizer_class"] = reading["tokenizer_class"]
        decoders = [
            step for step in _steps(tokenizer.get("decoder"), "decoders") if step.get("type") != "Strip"
        ]
        for step in decoders:
            if step.get("type") == "Metaspace":
                step["prepend_scheme"] = "never"
        tokenizer["decoder"] = {"type": "Sequence", "decoders": decoders}
        (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / TOKENIZER_CONFIG).write_text(f"{text}\n", "utf-8")


def hard_rows(reader: lab_prompt.Reader, template: templates.Template) -> list[dict[str, str]]:
    """Rows with a hard text in each field, and with each special token of the reader in a text."""
    special = list(reader.special)[:MOST_SPECIAL]
    texts = [*HARD, *(f"one {token} two{token}three\n{token}\n" for token in special)]
    *needed, response = template.fields
    hard = [(needed, name) for name in needed] + [([*needed, name], name) for name in reader.optional]
    return [
        {response: "ok", **dict.fromkeys(names, "Hello"), name: text}
        for names, name in hard
        for text in texts
    ]


def require_same(
    template: templates.Template,
    rows: Sequence[templates.Row],
    trained: Callable[[str], list[int]],
    served: Callable[[templates.Row], list[int]],
    where: str,
    way_out: str,
) -> None:
    """Compare ids of the rows that the template takes. Raises LabError with an example."""
    found = compared(template, rows, trained, served)
    other = [one for one in found if one.differs]
    if other:
        prompt, right, wrong = other[0]
        raise LabError(
            f"Training and answering read different tokens: in {where} {len(other)} of {len(found)} prompts"
            f" differ, such as …{prompt[-60:]!r} ({_apart(right, wrong)}); {way_out}"
        )


class Compared(NamedTuple):
    """A rendered prompt, its ids in training, and those that are served, or why there are none."""

    prompt: str
    trained: list[int]
    served: list[int] | str

    @property
    def differs(self) -> bool:
        return self.trained != self.served


def compared(
    template: templates.Template,
    rows: Sequence[templates.Row],
    trained: Callable[[str], list[int]],
    served: Callable[[templates.Row], list[int]],
) -> list[Compared]:
    """The ids of each row that the template takes."""
    rendered = list(templates.each(template, rows))
    asked = [(row, one.prompt) for row, one in zip(rows, rendered, strict=True) if not isinstance(one, str)]
    return [Compared(prompt, trained(prompt), _served(served, row)) for row, prompt in asked]


def trained_ids(folder: Path) -> Callable[[str], list[int]]:
    """What training makes of a rendered prompt, for the tokenizer of an exported folder."""
    tokenizer, first = trained_by(folder), before_of(folder)

    def trained(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids if ids[: len(first)] == first else [*first, *ids]

    return trained


def _served(served: Callable[[templates.Row], list[int]], row: templates.Row) -> list[int] | str:
    """The ids, or the error that prevented them."""
    try:
        return served(row)
    except Exception as error:  # anything that a template engine does not support
        return reason(error)


def _apart(trained: list[int], served: list[int] | str) -> str:
    if isinstance(served, str):
        return f"it cannot be written: {served[:100]}"
    at = in_common(trained, served)
    return f"from token {at + 1} on {trained[at : at + 4]} in training, {served[at : at + 4]} in answers"


def former_app(folder: Path) -> Callable[[templates.Row], list[int]]:
    """What the app.py that earlier releases wrote makes of a row: GenAI's own template engine and tokenizer.

    The function raises what onnxruntime_genai raises for a template that it cannot render.
    """
    lab = json.loads((folder / LAB).read_text("utf-8"))
    facts = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
    tokenizer = _genai_tokenizer(folder)

    def ids(row: templates.Row) -> list[int]:
        if lab["prompt"] is None:
            messages = json.dumps([{"role": "user", "content": row["prompt"]}])
            text = tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True)
        else:
            text = _filled(lab["prompt"], row)
        found = [int(token) for token in tokenizer.encode(text)]
        twice = len(found) > 1 and found[0] == found[1] == facts.get("bos_token_id")
        return found[1:] if twice else found

    return ids


def _filled(prompt: str, row: templates.Row) -> str:
    """A row in a prompt with `{field}`s alone: what else Python knows there takes gigabytes, or looks inside.

    Raises ValueError, and KeyError for a field that the row has not.
    """
    for _, name, layout, conversion in string.Formatter().parse(prompt):
        if layout or conversion or not (name is None or name.isidentifier()):
            raise ValueError(f"{LAB}: prompt has more than fields")
    return prompt.format(**row)


def check(lab: Mapping[str, Any]) -> None:
    """Check that lab.json says how to read prompts as `describe` does, or not at all. Raises ValueError."""
    given = lab.get("reading")
    if given is None:
        return
    numbers = isinstance(given, dict) and given.get("before")
    shapes = isinstance(given, dict) and (
        isinstance(numbers, list)
        and all(type(number) is int for number in numbers)
        and isinstance(given.get("space"), str)
        and _is_list(given.get("normalize"), lambda step: _is_list(step, lambda word: isinstance(word, str)))
        and _is_list(given.get("special"), _is_special)
        and _is_list(lab.get("fields"), lambda name: isinstance(name, str))
        and _is_list(lab.get("optional"), lambda name: isinstance(name, str))
        and all(lab.get(name) is None or _is_list(lab[name], _is_piece) for name in PROMPTS)
    )
    if not shapes:
        raise ValueError(f"{LAB} does not say how to read prompts; export the model again")


def _is_list(given: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(given, list) and all(good(one) for one in given)


def _is_special(given: Any) -> bool:
    return isinstance(given, list) and [type(part) for part in given] == [str, int, str]


def _is_piece(given: Any) -> bool:
    pairs = list(given.items()) if isinstance(given, dict) else []
    return isinstance(given, str) or (
        len(pairs) == 1 and isinstance(pairs[0][0], str) and pairs[0][1] in lab_prompt.STRIPS
    )


def _steps(given: Any, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of sequences one by one."""
    if not isinstance(given, dict):
        return []
    if given.get("type") == "Sequence":
        return [step for inner in given.get(inside, []) for step in _steps(inner, inside)]
    return [given]


def _scheme(step: Mapping[str, Any]) -> str:
    """When a Metaspace puts a space first; older files say only whether."""
    return str(step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never"))


def _special(token: Mapping[str, Any]) -> list[Any]:
    """[text, id, flags] of an added token: l and r take the spaces beside it. Raises LabError."""
    if token.get("single_word"):
        raise LabError(
            f"This model's tokenizer has a token that is a word of its own only ({token['content']!r}),"
            f" which ONNX Runtime GenAI finds inside words too; {WAY_OUT}"
        )
    names = {"l": "lstrip", "r": "rstrip"}
    return [token["content"], token["id"], "".join(flag for flag, name in names.items() if token.get(name))]
