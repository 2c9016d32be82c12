"""What the tests share.

One thread a process, kernels included: tensors here are tiny, and two test processes share two
cores.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mdlib.data import loading
from mdlib.models.encoder import load_encoder

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the kernels and processes that tests start

# Files that start kernels or train for long, the longest first: two processes that take files in
# turn then end at about the same time. All their tests are marked `slow`.
SLOW_FILES = (
    "test_notebooks.py",
    "test_data_runs.py",
    "test_small_data.py",
    "test_rehearsal.py",
    "test_alone.py",
    "test_compare_priors.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if item.path.name in order:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, libraries draw from it


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def workers(monkeypatch):
    """Pictures and batches are prepared by worker processes, as for a GPU."""
    monkeypatch.setitem(loading.WORKERS, "cpu", 2)


@pytest.fixture(scope="session")
def zoo_root() -> Path:
    return Path(__file__).parent.parent / "data" / "zoo"


@pytest.fixture(scope="session")
def random_encoder():
    """The zoo encoder with random weights; tests that change it make a copy first."""
    torch.manual_seed(0)
    return load_encoder("zoo", weights="random", device="cpu")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Two pictures whose sides are no multiple of the patch: (2, 3, 20, 27) uint8."""
    return torch.randint(0, 256, (2, 3, 20, 27), dtype=torch.uint8)
