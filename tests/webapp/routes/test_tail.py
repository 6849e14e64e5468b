from __future__ import annotations

from webapp.routes import tail


def file(tmp_path, data: bytes):
    path = tmp_path / "log.txt"
    path.write_bytes(data)
    return path


def test_no_file_is_an_empty_one(tmp_path):
    assert tail.read(tmp_path / "none", 0) == tail.Piece(0, b"", 0, 0)


def test_pieces_put_together_are_the_file_whatever_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MOST_BYTES", 50)
    data = "".join(f"line {n} äöü €\n" for n in range(200)).encode()
    path, found, offset = file(tmp_path, data), b"", 0
    while (piece := tail.read(path, offset)).data:
        assert len(piece.data) <= 50
        assert piece.data.endswith(b"\n")
        found, offset = found + piece.data, piece.next
    assert found == data


def test_a_line_being_written_waits_until_it_ends_or_its_stage_does(tmp_path):
    path = file(tmp_path, b"one\ntw")
    assert tail.read(path, 0) == tail.Piece(0, b"one\n", 4, 6)
    assert tail.read(path, 4).data == b""
    assert tail.read(path, 4, ended=True) == tail.Piece(4, b"tw", 6, 6)


def test_a_progress_bar_appears_at_its_carriage_returns(tmp_path):
    assert tail.read(file(tmp_path, b"\r 10%\r 20%"), 0).data == b"\r 10%\r"


def test_a_line_longer_than_a_piece_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MOST_BYTES", 8)
    path = file(tmp_path, "€€€€€€".encode())
    assert tail.read(path, 0).data == "€€".encode()


def test_the_end_of_a_long_file_begins_at_a_whole_line(tmp_path):
    path = file(tmp_path, b"".join(b"line %d\n" % n for n in range(1000)))
    piece = tail.read(path, -20)
    assert piece.data == b"line 998\nline 999\n"
    assert piece.start == path.stat().st_size - len(piece.data)


def test_an_offset_behind_the_end_starts_at_the_end(tmp_path):
    assert tail.read(file(tmp_path, b"a\n"), 99) == tail.Piece(2, b"", 2, 2)


def test_earlier_pieces_go_back_to_the_beginning_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MOST_BYTES", 50)
    data = "".join(f"line {n} äöü €\n" for n in range(200)).encode()
    path, found, start = file(tmp_path, data), b"", len(data)
    while start > 0:
        piece = tail.before(path, start)
        assert 0 < len(piece.data) <= 50
        assert piece.data.startswith(b"line")
        assert (piece.next, piece.size) == (start, len(data))
        found, start = piece.data + found, piece.start
    assert found == data
    assert tail.before(path, 10**9).next == len(data)
    assert tail.before(tmp_path / "none", 9) == tail.Piece(0, b"", 0, 0)


def test_earlier_pieces_of_one_long_line_come_to_an_end_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MOST_BYTES", 8)
    path, start, found = file(tmp_path, b"x" * 20 + b"\n"), 21, b""
    while start > 0:
        piece = tail.before(path, start)
        found, start = piece.data + found, piece.start
    assert found == b"x" * 20 + b"\n"
