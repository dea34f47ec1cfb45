import logging

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
