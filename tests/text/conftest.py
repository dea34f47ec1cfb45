"""Each tokenizer of the zoo is trained once a run; ours and the oracle read the same folder."""

from pathlib import Path

import pytest
import zoo

from fastllm.demo import DEMO_MODEL


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """name -> the folder of that tokenizer."""
    made: dict[str, Path] = {"demo": Path(DEMO_MODEL)}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = zoo.build(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
