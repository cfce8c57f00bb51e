"""Each file of examples/ runs by itself, quickly, and prints the figure that matters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_tells(path, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BIGMODEL_CACHE": "off"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(character.isdigit() for character in done.stdout), "it printed no figure"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_it_shows(path):
    text = path.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < 40
