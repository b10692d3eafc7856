"""Results files that are damaged or made to harm: refused in words, in little memory, or as good as any other one."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from lightning_neuroimp import Results
from lightning_neuroimp.errors import FileFormatError
from tests.support.mutants import crafted, mutants, read, use

CONTENT = (Path(__file__).parents[1] / "data" / "results_v6.npz").read_bytes()
MOST = 50 * 2**20  # bytes above what a file declares

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.filterwarnings("ignore")]


def load(path, content):
    """Return what a file holds, or None where it is refused; nothing else may happen."""
    path.write_bytes(content)
    try:
        results = Results.load(path)
    except FileFormatError as error:
        words = str(error)
    else:
        assert type(results) is Results
        return results
    assert str(path) in words
    assert len(words) < 330 + len(str(path))
    return None


def declared(content):
    """Return how many bytes of arrays a file declares that may be right about them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            size = sum(member.file_size for member in file.infolist())
    except zipfile.BadZipFile:
        return 0
    return size if size < 1040 * len(content) else 0


def test_damaged_files(tmp_path):
    refused = 0
    for content in mutants(CONTENT, 150):
        results = load(tmp_path / "results.npz", content)
        refused += results is None
        if results is not None:
            use(results)
        plt.close("all")
    assert 80 < refused < 150  # most damage is seen; a number that is another one is not


def test_files_that_are_made_to_harm(tmp_path):
    found, loaded = 0, []
    for name, content in crafted(CONTENT):
        tracemalloc.start()
        try:
            if load(tmp_path / "results.npz", content) is not None:
                loaded.append(name)
            assert tracemalloc.get_traced_memory()[1] < MOST + declared(content), name
        finally:
            tracemalloc.stop()
        found += 1
    assert found > 88
    assert loaded == ["whole", "format (2, 0)"]


def test_the_file_itself_is_fine(tmp_path):
    header, arrays = read(CONTENT)
    assert header["version"] == 6
    assert len(arrays) > 50
    use(load(tmp_path / "results.npz", CONTENT))
    plt.close("all")
