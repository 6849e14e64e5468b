"""A process that shows rows as the ids that training reads, and those that an exported folder would read.

`python -m pipeline.exports.row_tokens FOLDER DATA`, where a model's tokenizer files and datasets are, answers
questions, one a line: {path, template, chat, where, line, most}, as `row_view` asks, by a line with what
`shown` gives, or {"problems"} or {"error"}. A tokenizer, a template and a dataset may be hostile: the process
has limits, and ends when it takes too long, or nobody asks for a while.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError, reason
from pipeline.exports import serving_ids
from pipeline.inputs import confined
from pipeline.inputs.data import lengths, one_row
from pipeline.inputs.models import contents
from pipeline.inputs.prompts import templates, training_ids
from pipeline.system.files import to_json

MOST_TOKENS = 4000  # that are shown of a row
MOST_PIECES = 8  # tokens that one letter may take
SECONDS = 60  # for a row
IDLE_SECONDS = 120
LEARNED, GIVEN, SPECIAL, END, CUT = KINDS = ("learned", "given", "special", "end", "cut")
# As much of a genai_config.json as the runtime wants where it reads a tokenizer only.
NO_MODEL = {"type": "llama", "context_length": 64, "vocab_size": 1, "decoder": {"filename": "model.onnx"}}

# The letters in which byte-level tokenizers write bytes: those that can be seen stand for themselves, the
# others are counted on from 256.
SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in SEEN}
BYTES |= {chr(256 + at): byte for at, byte in enumerate(sorted({*range(256)} - {*SEEN}))}


class Shower:
    """Shows the rows of one model's tokenizer, a `transformers` one, and one template."""

    def __init__(self, tokenizer: Any, folder: Path, text: str, chat: templates.Chat | None) -> None:
        self.tokenizer = tokenizer
        self.template = templates.parse(text, chat)
        self.ends = training_ids.end_tokens(tokenizer, folder, self.template.stop)
        self._folder, self._text, self._chat = folder, text, chat
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def shown(self, row: dict[str, Any], most: int) -> dict[str, Any]:
        """{tokens: [{id, text, kind}], starts, left_out, counts, served: {equal, ids, at, why}}.

        A row may be several samples, which begin at `starts`; `left_out` tokens are not listed. `counts` are
        the tokens by kind. `served` is what the exported folder makes of the prompt before the last answer;
        `at` is where it differs from what training reads, `why` the reason why there are no ids.
        Raises InputError where the template refuses the row.
        """
        text = next(templates.each(self.template, [row]))
        if isinstance(text, str):
            raise InputError(text)
        tokens: list[dict[str, Any]] = []
        starts, counts = [], dict.fromkeys(KINDS, 0)
        for part in training_ids.samples(self.tokenizer, text, self.ends):
            sample = training_ids.sample(self.tokenizer, self.template, row, part, self.ends, most)
            kinds = self._kinds(sample)
            for kind in kinds:
                counts[kind] += 1
            if len(tokens) < MOST_TOKENS:
                starts.append(len(tokens))
            tokens += self._tokens(sample.whole, kinds, MOST_TOKENS - len(tokens))
        trained = training_ids.prompt_ids(self.tokenizer, text.prompt)
        return {
            "tokens": tokens,
            "starts": starts,
            "left_out": sum(counts.values()) - len(tokens),
            "counts": counts,
            "served": self._served(row, trained),
        }

    def _kinds(self, sample: training_ids.Sample) -> list[str]:
        """Of each id of the whole, what it is to the model."""
        kinds = [SPECIAL if number in self._special else GIVEN for number in sample.whole]
        for start, stop in sample.answers:
            kinds[start:stop] = [LEARNED] * (stop - start)
            kinds[stop - 1] = END
        kept = set(sample.kept)
        return [kind if at in kept else CUT for at, kind in enumerate(kinds)]

    def _tokens(self, ids: list[int], kinds: list[str], most: int) -> list[dict[str, Any]]:
        ids = ids[: max(most, 0)]
        return [
            {"id": number, "text": text, "kind": kind}
            for number, text, kind in zip(ids, self._texts(ids), kinds, strict=False)
        ]

    def _texts(self, ids: list[int]) -> list[str]:
        """What each token writes. A letter of several tokens stands at the first, the others are empty."""
        parts = [self._bytes_of(number) for number in ids]
        texts: list[str] = []
        while len(texts) < len(ids):
            at = len(texts)
            joined = (b"".join(parts[at : at + count]) for count in range(1, MOST_PIECES + 1))
            found = [
                (count, text) for count, part in enumerate(joined, 1) if (text := _text(part)) is not None
            ]
            count, text = found[0] if found else (1, parts[at].decode(errors="backslashreplace"))
            texts += [text, *[""] * (count - 1)]
        return texts[: len(ids)]

    def _bytes_of(self, number: int) -> bytes:
        """The bytes that a token stands for."""
        piece = str(self.tokenizer.convert_ids_to_tokens(number) or "")
        if number in self._special:
            return piece.encode()
        if self._byte_level:
            return b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in piece)
        if len(piece) == len("<0x00>") and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(serving_ids.SPACE, " ").encode()

    @cached_property
    def _byte_level(self) -> bool:
        """Whether tokens are written in letters that stand for a byte each."""
        known = json.loads((self._folder / serving_ids.TOKENIZER).read_text("utf-8"))
        return '"ByteLevel"' in json.dumps([known.get("pre_tokenizer"), known.get("decoder")])

    def _served(self, row: dict[str, Any], trained: list[int]) -> dict[str, Any]:
        try:
            ids = self._exported.reader.ids(row)
        except Exception as error:  # whatever GenAI's tokenizer does not know
            return {"equal": False, "count": 0, "ids": [], "at": 0, "why": reason(error)}
        equal = ids == trained
        at = None if equal else training_ids.in_common(ids, trained)
        return {"equal": equal, "count": len(ids), "ids": ids[:MOST_TOKENS], "at": at, "why": ""}

    @cached_property
    def _exported(self) -> serving_ids.Prompts:
        """How an exported folder reads prompts: its tokenizer's files are written as the export writes them.

        Raises LabError where GenAI has no such tokenizer, and what its own raises.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self.tokenizer.save_pretrained(folder)
            if self._chat is not None:
                (folder / "chat_template.jinja").write_text(self._chat.source, "utf-8")
            (folder / "genai_config.json").write_text(json.dumps({"model": NO_MODEL}), "utf-8")
            known = json.loads((folder / serving_ids.TOKENIZER).read_text("utf-8"))
            reading = serving_ids.derive(known, training_ids.before(self.tokenizer))
            fields = list(self.template.fields[:-1])
            lab = {"template": self._text, "fields": fields, **self._pieces(), "reading": reading}
            serving_ids.prepare(folder, reading)
            (folder / serving_ids.LAB).write_text(json.dumps(lab), "utf-8")
            return serving_ids.load(folder)

    def _pieces(self) -> dict[str, Any]:
        """The prompt of lab.json; chat templates are rendered, as chat and Compare do."""
        if isinstance(self.template, templates.TextTemplate):
            return {"prompt": self.template.prompt_pieces(), "optional": []}
        return {"prompt": None, "optional": list(self.template.optional)}


def _text(part: bytes) -> str | None:
    """Bytes as text, None where they end in the middle of a letter."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


class Answers:
    """Answers questions about one tokenizer. The shower of the last template is kept."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self._tokenizer, self._folder = tokenizer, folder
        self._known: tuple[Any, Shower] | None = None

    def _shower(self, text: str, chat: dict[str, Any] | None) -> Shower:
        if self._known is None or self._known[0] != (text, chat):
            made = Shower(self._tokenizer, self._folder, text, templates.Chat(**chat) if chat else None)
            self._known = (text, chat), made
        return self._known[1]

    def found(self, question: dict[str, Any]) -> dict[str, Any]:
        """A row with its line. Raises InputError, LabError, OSError."""
        shower = self._shower(question["template"], question["chat"])
        path = Path(question["path"])
        line, row = one_row.find(path, shower.template, question["where"], question["line"])
        try:
            return {"line": line, **shower.shown(row, question["most"])}
        except InputError as error:
            name = display.plain(str(path))
            raise InputError([f"{name}:{line}: {problem}" for problem in error.problems]) from None


def answer(answers: Answers, question: dict[str, Any]) -> dict[str, Any]:
    """What there is to say to a question: what was found, or what is wrong."""
    try:
        return answers.found(question)
    except InputError as error:
        return {"problems": error.problems}
    except LabError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"problems": [f"{display.plain(question['path'])}: cannot be read ({error.strerror})"]}


def main(folder: Path, data: Path) -> None:
    """Answer questions on datasets in the folder `data` until the other side ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    settings.quiet_this_process()
    out = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not get between the answers
    sys.modules["torch"] = None  # type: ignore[assignment]  # half of the time and memory, and not needed
    from transformers import AutoTokenizer  # noqa: F401  # the limits are for what is read

    lengths.limit()
    confined.to([folder, data, Path(tempfile.gettempdir())])
    answers = Answers(contents.tokenizer_of(folder), folder)
    while True:
        signal.alarm(IDLE_SECONDS)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        signal.alarm(SECONDS)
        print(to_json(answer(answers, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
