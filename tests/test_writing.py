"""Files are written whole or not at all, under names that no other process or machine chooses."""

from __future__ import annotations

import os
import time

import pytest

from vitsee.io import writing


def test_a_file_appears_whole_at_the_end_of_the_block(tmp_path):
    with writing.whole(tmp_path / "a") as partial:
        partial.write_bytes(b"whole")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a"]


def test_what_fails_leaves_the_previous_file_and_nothing_else(tmp_path):
    def interrupted() -> None:
        with writing.whole(tmp_path / "a") as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_no_two_choose_the_same_name_though_their_process_number_is_the_same(tmp_path):
    names = {writing.unfinished(tmp_path / "a") for _ in range(100)}
    assert len(names) == 100


def test_what_was_left_an_hour_ago_is_removed_and_what_is_being_written_is_not(tmp_path):
    old = time.time() - writing.LEFT - 1
    for name in ("file", "folder", "unpacked now"):
        path = tmp_path / f".{name}.01234567.partial"
        if name == "file":
            path.write_bytes(b"half")
        else:
            (path / "inner").mkdir(parents=True)
            os.utime(path / "inner", (old, old))
        os.utime(path, (old, old))
    new = tmp_path / ".unpacked now.01234567.partial/inner/new.png"
    new.write_bytes(b"x")
    (tmp_path / "mine.partial").write_bytes(b"not hidden: not ours")
    os.utime(tmp_path / "mine.partial", (old, old))
    writing.clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".unpacked now.01234567.partial", "mine.partial"]
