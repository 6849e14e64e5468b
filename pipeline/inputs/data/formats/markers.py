"""Texts that hold a whole conversation between the markers of a template: as the turns that they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline import display
from pipeline.inputs.data.formats.limits import Row

MOST_TURNS = 10_000
MOST_EDGES = 8  # tokens that may stand at one end of a text
_ROLES = {
    "system": "system", "user": "user", "human": "user", "instruction": "user", "inst": "user",
    "input": "input", "assistant": "assistant", "response": "assistant", "model": "assistant",
    "/inst": "assistant", "tool": "tool", "ipython": "tool",
}  # fmt: skip
_PREAMBLE = re.compile(r"Below is an instruction\b")  # of Alpaca; it says nothing
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)  # in the first turn of Llama 2


@dataclass(frozen=True)
class Style:
    """How a template marks turns.

    header  what begins one; its groups hold who says it
    ends    what ends one, or stands around all
    """

    header: re.Pattern[str]
    ends: tuple[str, ...] = ()
    takes_preamble: bool = False

    def roles(self, text: str) -> set[str]:
        """Who speaks in a text."""
        return {_role(found) for found in self.header.finditer(text)}


STYLES = (
    Style(  # ChatML
        re.compile(r"<\|im_start\|>[ \t]*(\w{1,20})[ \t]*\n?"),
        ("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    ),
    Style(  # Llama 3
        re.compile(r"<\|start_header_id\|>[ \t]*(\w{1,20})[ \t]*<\|end_header_id\|>"),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>"),
    ),
    Style(  # Gemma
        re.compile(r"<start_of_turn>(\w{1,20})\n?"),
        ("<end_of_turn>", "<bos>", "<eos>", "<start_of_turn>"),
    ),
    Style(  # Phi-3, Zephyr
        re.compile(r"<\|(system|user|assistant)\|>"),
        ("<|end|>", "</s>", "<s>", "<|endoftext|>", "<|end_of_text|>"),
    ),
    Style(  # Llama 2, Mistral
        re.compile(r"\[(/?INST)\]"),
        ("</s>", "<s>", "<<SYS>>", "<</SYS>>"),
    ),
    Style(  # Alpaca, Guanaco
        re.compile(
            r"(?:^[ \t]*###[ \t]+(Instruction|Input|Response|System)[ \t]*(?::|$)"
            r"|(?<!\#)###[ \t]*(Human|Assistant|User)[ \t]*:)",
            re.MULTILINE,
        ),
        ("</s>", "<s>", "<|endoftext|>"),
        takes_preamble=True,
    ),
)
_SIGNS = ("<|", "###", "[INST]", "<start_of_turn>")
KNOWN = "### Instruction: … ### Response: …, or those of ChatML or Llama"
NONE = (
    "has no markers of a conversation, which other rows have ({}); write them here too, or leave this row out"
)
SOME = (
    "holds the markers of a conversation, such as {}, among rows of plain text; give such rows as a file of"
    " their own, without a choice of columns"
)


def _role(header: re.Match[str]) -> str:
    said = next(name for name in header.groups() if name).casefold()
    return _ROLES.get(said, said)


def style_of(text: str) -> Style | None:
    """How a text marks its turns, None if it does not: somebody asks, and somebody answers."""
    if not any(sign in text for sign in _SIGNS):  # which most texts are, and far faster seen
        return None
    return next((style for style in STYLES if {"user", "assistant"} <= style.roles(text)), None)


def fault_of_plain(text: str) -> str | None:
    """Why a text cannot be trained on as it is."""
    style = style_of(text)
    first = style and style.header.search(text)
    return SOME.format(display.quoted(first[0].strip())) if first else None


def row(text: str) -> Row | str:
    """A text as prompt, response and maybe system, or as messages if it has more turns; or what is wrong."""
    style = style_of(text)
    if style is None:
        return NONE.format(KNOWN)
    if "\0" in text:
        return "has a NUL character, behind which tokenizers read nothing; remove it"
    turns = _turns(text, style)
    if isinstance(turns, str):
        return turns
    while turns and turns[-1][0] != "assistant":
        turns.pop()  # nobody answers it
    empty = next((number for number, (_, said) in enumerate(turns, 1) if not said), None)
    if empty is not None:
        return f"turn {empty:,} between its markers is empty"
    roles = [role for role, _ in turns]
    if roles in (["user", "assistant"], ["system", "user", "assistant"]):
        said = dict(turns)
        system = {"system": said["system"]} if "system" in said else {}
        return {"prompt": said["user"], "response": said["assistant"], **system}
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def _turns(text: str, style: Style) -> list[tuple[str, str]] | str:
    """(role, what it says) of all turns, without the markers."""
    headers = list(style.header.finditer(text))
    if len(headers) > MOST_TURNS:
        return f"has {len(headers):,} turns between markers; allowed: {MOST_TURNS:,}"
    turns: list[tuple[str, str]] = []
    before = _bare(text[: headers[0].start()], style)
    if before and not style.takes_preamble:
        return f"has a text in front of the first marker: {display.quoted(before)}"
    if before and not _PREAMBLE.match(before):
        turns.append(("system", before))
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        role, said = _role(header), text[header.end() : following.start() if following else None]
        if role not in _ROLES.values():
            known = "known are system, user and assistant"
            return f"has a turn of {display.quoted(role)} between its markers; {known}"
        if role == "user" and (system := _SYSTEM.match(said)):
            turns.append(("system", system[1].strip()))
            said = said[system.end() :]
        said = _bare(said, style)
        if left := next((end for end in style.ends if end in said), None):
            return f"has the marker {display.quoted(left)} where none belongs"
        if role == "input" and turns and turns[-1][0] == "user":
            turns[-1] = ("user", "\n\n".join(part for part in (turns[-1][1], said) if part))
        else:
            turns.append(("user" if role == "input" else role, said))
    return turns


def _bare(text: str, style: Style) -> str:
    """A text without spaces and ends of turns around it."""
    for _ in range(MOST_EDGES):
        text = text.strip()
        first = next((end for end in style.ends if text.startswith(end)), "")
        last = next((end for end in style.ends if text.endswith(end)), "")
        if not first and not last:
            break
        text = text.removeprefix(first).removesuffix(last)
    return text.strip()


_BEGINS = re.compile(
    r"\s*(?:Below is an instruction\b|###[ \t]*(?:Instruction|System|Human|User)[ \t]*(?::|$)"
    r"|<\|im_start\|>(?:system|user)|<\|begin_of_text\|>|<\|start_header_id\|>(?:system|user)|<bos>"
    r"|<start_of_turn>user|<\|(?:system|user)\|>|<s>|\[INST\])"
)
_BEGINS_SURELY = re.compile(
    r"\s*(?:Below is an instruction\b|###[ \t]*(?:Instruction|System)[ \t]*(?::|$)|<\|im_start\|>system"
    r"|<\|begin_of_text\|>|<\|start_header_id\|>system|<bos>|<\|system\|>)"
)
_ANSWERS = re.compile(
    r"###[ \t]*(?:Response|Assistant)|<\|im_start\|>assistant|<\|start_header_id\|>assistant"
    r"|<start_of_turn>model|<\|assistant\|>|\[/INST\]"
)


def begins(line: str) -> bool:
    """Whether a line of a text file begins a conversation."""
    return _BEGINS.match(line) is not None


@dataclass
class Lines:
    """The lines of a text file that holds conversations: where one ends and the next begins."""

    _answered: bool = field(default=False)

    def ends_before(self, line: str, blank: bool) -> bool:
        """Whether a line begins another conversation: `blank` if a blank line stands above it."""
        is_whole = _ANSWERS.search(line) is not None  # or begins in any case, if it ends here as well
        begin = _BEGINS if blank or is_whole else _BEGINS_SURELY
        return self._answered and begin.match(line) is not None

    def add(self, line: str) -> None:
        """The next line, which belongs to the conversation that it begins, or to that of the lines above."""
        if _BEGINS.match(line):
            self._answered = False
        self._answered = self._answered or _ANSWERS.search(line) is not None
