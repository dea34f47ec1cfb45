from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from quick import DENSE, MOE, SHARED, saved


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> None:
    for name in ("transformers", "fastllm"):
        logger = logging.getLogger(name)
        before = logger.level
        logger.setLevel(logging.ERROR)
        request.addfinalizer(lambda logger=logger, before=before: logger.setLevel(before))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(DENSE, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def moe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(MOE, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with a shared expert, and a gate for it."""
    return saved(SHARED, tmp_path_factory.mktemp("shared"))
