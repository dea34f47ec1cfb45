import building
import pytest


@pytest.fixture(scope="session")
def programs():
    return building.build() / "tests" / "native"
