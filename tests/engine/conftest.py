import logging
import sys
from pathlib import Path

import pytest

# The small random checkpoints of every architecture are made there.
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of the named small checkpoint; each is written once."""
    from checkpoints import CASES, make_model, save

    logging.getLogger("transformers").setLevel(logging.ERROR)
    cases = {case.name: case for case in CASES}
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(make_model(cases[name]), tmp_path_factory.mktemp(name))
        return made[name]

    return folder
