"""Tiny models of these tests, and settings that are quick."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import Case, make_model, save

DENSE = Case(
    "qwen3", "Qwen3Config", "Qwen3ForCausalLM",
    {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 3, "vocab_size": 264},
)  # fmt: skip
MOE = Case(
    "qwen3-moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
    {"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "head_dim": 32,
     "norm_topk_prob": True, "num_hidden_layers": 2, "vocab_size": 264},
)  # fmt: skip
SHARED = Case(
    "qwen2-moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM",
    {"hidden_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "vocab_size": 264,
     "shared_expert_intermediate_size": 64, "num_hidden_layers": 2},
)  # fmt: skip
QUICK = {"num_samples": 24, "sample_len": 64, "group": 32}


def saved(case: Case, folder: Path) -> Path:
    return save(make_model(case).to(torch.bfloat16), folder)
