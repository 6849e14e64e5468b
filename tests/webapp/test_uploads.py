"""The one way in for a file that a browser names."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from webapp import uploads


def take(named, **more):
    with uploads.taken(named, **{"most_bytes": 100, **more}) as path:
        return path, path.read_bytes(), path.parent.stat().st_mode & 0o777


def test_handlers_get_a_copy_in_a_folder_of_this_upload_alone(home, uploaded):
    named = uploaded(b"rows")
    one, other = take(named), take(named)
    assert one[1:] == (b"rows", 0o700)
    assert one[0].name == "mine.jsonl"
    assert one[0].parent != other[0].parent
    assert not one[0].parent.exists()


def test_the_copy_goes_though_the_handler_fails_and_the_upload_stays(home, uploaded):
    named = uploaded(b"rows")
    with pytest.raises(RuntimeError), uploads.taken(named, most_bytes=100) as path:
        raise RuntimeError
    assert not path.parent.exists()
    assert uploads.known(named) == named


def test_a_file_that_is_too_large_or_of_another_kind_is_refused(home, uploaded):
    with pytest.raises(InputError, match="larger than the 3 bytes"):
        take(uploaded(b"rows"), most_bytes=3)
    with pytest.raises(InputError, match=r"not a \.json file"):
        take(uploaded(b"rows"), ending=".json")
    assert take(uploaded(b"{}", "Config.JSON"), ending=".json")[1] == b"{}"
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_the_sentence_is_the_same_whether_or_not_there_is_a_file(home, tmp_path):
    (tmp_path / "there").touch()
    said = set()
    for named in (
        str(tmp_path / "there"),
        str(tmp_path / "none"),
        None,
        f"{home}/.gradio-uploads/{'0' * 64}/x",
    ):
        with pytest.raises(InputError) as refused:
            take(named)
        said.add(str(refused.value))
    assert said == {uploads.NOT_HERE}
