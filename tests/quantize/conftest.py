"""Tiny models of these tests, and one thread for torch: they are too small for more."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from checkpoints import Case, make_model, save

DENSE = Case(
    "qwen3", "Qwen3Config", "Qwen3ForCausalLM",
    {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 3, "vocab_size": 264},
)  # fmt: skip
MOE = Case(
    "qwen3-moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
    {"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32,
     "norm_topk_prob": True, "num_hidden_layers": 2, "vocab_size": 264},
)  # fmt: skip
# Of few tokens, so that tests are quick.
QUICK = {"num_samples": 24, "sample_len": 64, "group": 32}


@pytest.fixture(autouse=True, scope="session")
def quiet_and_single() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("fastllm").setLevel(logging.ERROR)


def _saved(case: Case, folder: Path) -> Path:
    return save(make_model(case).to(torch.bfloat16), folder)


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(DENSE, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def moe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(MOE, tmp_path_factory.mktemp("moe"))
