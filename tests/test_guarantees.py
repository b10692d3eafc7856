"""README's table of guarantees is the one that the tests hold."""

import ast

from tests.support.guarantees import README, rows, written
from tests.support.training_variants import FIT


def test_the_table_is_up_to_date():
    text = README.read_text()
    assert written(text) == text, "run python -m tests.support.guarantees"


def test_every_row_has_its_test():
    folder = README.parent
    functions = {}
    for _, _, test in rows():
        path, _, name = test.partition("::")
        if path not in functions:
            tree = ast.parse((folder / path).read_text())
            functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in functions[path]
    assert sum("test_training_is_identical" in test for _, _, test in rows()) == len(FIT)
