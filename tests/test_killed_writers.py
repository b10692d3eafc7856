"""Processes that are killed while they write, and several that write into one folder at once."""

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lightning_neuroimp.results import files, temporary

WRITER = """
import itertools, os, sys, time
import numpy as np
from lightning_neuroimp.results import files

folder, number, n_files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
content = {{"writer": number, "values": np.random.default_rng(number).random({size})}}
{before}
print("ready", flush=True)
sys.stdin.readline()
for count in range(n_files):
    names = (f"{{folder}}/epoch={{count:03d}}-v{{version}}.npz" for version in itertools.count())
    files.save_new(content, names, "test", 1)
"""
HANGS = "os.fsync = lambda file: print('half', flush=True) or time.sleep(60)"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks")


@contextmanager
def writers(folder, n, n_files, size, before=""):
    """Start processes that are ready to write, and end them."""
    code = WRITER.format(size=size, before=before)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(number), str(n_files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for number in range(n)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def writer_of(path):
    with np.load(path, allow_pickle=False) as file:
        return file["header"].tobytes()


def test_four_writers_in_one_folder_lose_nothing(tmp_path):
    with writers(tmp_path, 4, 40, 10) as started:
        for process in started:
            begin(process)
        assert [process.wait(120) for process in started] == [0] * 4
    found = list(tmp_path.iterdir())
    assert len(found) == 160
    contents = [writer_of(path) for path in found]
    assert sorted(contents.count(content) for content in set(contents)) == [40] * 4


def test_what_killed_writers_leave_is_removed(tmp_path):
    (tmp_path / "old.npz").write_bytes(b"old")
    with writers(
        tmp_path, 3, 1, 1000, "os.fsync = lambda file: print('half', flush=True) or time.sleep(60)"
    ) as started:
        for process in started:
            begin(process)
            assert process.stdout.readline() == "half\n"
        left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
        assert len(left) == 3  # all of them alive: none removes what another one writes
        for process in started[:2]:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        files.save({"values": np.zeros(3)}, tmp_path / "new.npz", "test", 1)
        assert len([path for path in tmp_path.iterdir() if path.suffix == ".tmp"]) == 1
    files.save({"values": np.zeros(3)}, tmp_path / "new.npz", "test", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.npz", "old.npz"]


def test_a_file_that_is_being_written_stays(tmp_path):
    with temporary.temporary_file(tmp_path, b"first") as path:
        files.save({"values": np.zeros(3)}, tmp_path / "other.npz", "test", 1)
        assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["other.npz"]


def test_a_leftover_is_removed_and_foreign_files_are_not(tmp_path):
    for name in (".neuroimp-abc.tmp", ".abc.tmp", "notes.tmp", ".neuroimp-abc.txt"):
        (tmp_path / name).write_bytes(b"half")
    temporary.remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".abc.tmp", ".neuroimp-abc.txt", "notes.tmp"]


def test_without_locks(tmp_path, monkeypatch):
    (tmp_path / ".neuroimp-abc.tmp").write_bytes(b"half")
    monkeypatch.setattr(temporary, "fcntl", None)
    files.save({"values": np.zeros(3)}, tmp_path / "a.npz", "test", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".neuroimp-abc.tmp", "a.npz"]


def test_a_name_that_is_taken_for_abandoned_at_once_is_given_up(tmp_path, monkeypatch):
    """Another process may look between the opening of a file and its lock."""
    real, stolen = temporary.fcntl.flock, []

    def flock(file, how):
        if not stolen:
            stolen.append(Path(file.name))
            stolen[0].unlink()
        return real(file, how)

    monkeypatch.setattr(temporary.fcntl, "flock", flock)
    with temporary.temporary_file(tmp_path, b"content") as path:
        assert path != stolen[0]
        assert path.read_bytes() == b"content"
