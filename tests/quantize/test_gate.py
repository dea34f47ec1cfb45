"""The gate refuses damage: one fault at a time in the files of a good quantized model, 50 of them, and all are refused,
while the good model is accepted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import MOE, saved
from safetensors.torch import load_file, save_file

import fastllm
from fastllm.demo import DEMO_MODEL
from fastllm.evaluation.divergence import F32, compare
from fastllm.evaluation.gate import judge, parse_gate
from fastllm.evaluation.run import EvalOptions
from fastllm.evaluation.scoring import ScoredModel
from fastllm.text.corpus import read_corpus, windows

HELDOUT = Path(__file__).parents[1] / "data" / "heldout.txt"
Tensors = dict[str, torch.Tensor]
Fault = Callable[[Tensors], None]


class Remembered:
    """The rows of a model, computed once."""

    def __init__(self, model: ScoredModel, pieces: Sequence[Sequence[int]]) -> None:
        self._rows = {tuple(piece[:-1]): [rows.copy() for rows in model.rows(piece[:-1])] for piece in pieces}

    def rows(self, token_ids: Sequence[int], first_row: int = 0) -> Iterator[F32]:
        return iter(self._rows[tuple(token_ids)])


@dataclass
class Bench:
    """A good quantized model, its original's rows, and a gate at about twice what the good one costs."""

    folder: Path
    gate: str
    pieces: list[list[int]]
    original: Remembered

    def verdicts(self, folder: Path) -> list[Any]:
        with ScoredModel(folder, window=128, dtype="float32", activation_mode="f32", num_threads=1) as model:
            figures = compare(model, self.original, self.pieces).summary()
        return judge(parse_gate(self.gate), figures)


def _bench(model: Path, out: Path, gate: str, pieces: list[list[int]] | None, **arguments: Any) -> Bench:
    quantized = fastllm.quantize(model, out, **arguments).path
    with ScoredModel(model, window=128, dtype="float32", num_threads=1) as original:
        if pieces is None:
            pieces = windows(read_corpus(HELDOUT, original.tokenizer, original.vocab_size), 128, 512)
        return Bench(quantized, gate, pieces, Remembered(original, pieces))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """GPTQ with zero points and g_idx."""
    return _bench(
        DEMO_MODEL, tmp_path_factory.mktemp("gate") / "demo", "kl<=0.003,top1>=0.96,ppl<=+1%", None, method="gptq",
        group=32, symmetric=False, act_order="group", num_samples=24,
    )  # fmt: skip


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A mixture of experts, 8 bits, on text that it wrote itself: like a trained one it predicts its text well."""
    folder = tmp_path_factory.mktemp("gate")
    saved(MOE, folder / "original")
    with fastllm.LLM(folder / "original", num_threads=1, max_num_seqs=8) as llm:
        params = [fastllm.SamplingParams(seed=i, max_tokens=64, ignore_eos=True) for i in range(8)]
        pieces = [
            [9 + i, *out.outputs[0].token_ids]
            for i, out in enumerate(llm.generate([[9 + i] for i in range(8)], params))
        ]
    return _bench(
        folder / "original", folder / "moe", "kl<=0.02,top1>=0.93,ppl<=+1%", pieces, method="rtn", bits=8, group=32
    )


# Faults. Modules are named by layer and projection.


def _name(layer: int, projection: str) -> str:
    block = "self_attn" if projection[0] in "qkvo" else "mlp"
    return f"model.layers.{layer}.{block}.{projection}_proj"


def scaled(layer: int, projection: str, factor: float = 1.5) -> Fault:
    def fault(t: Tensors) -> None:
        t[f"{_name(layer, projection)}.scales"] *= factor

    return fault


def rolled(layer: int, projection: str, part: str, by: int, dim: int) -> Fault:
    """What belongs to one group, row or column is given to another."""

    def fault(t: Tensors) -> None:
        name = f"{_name(layer, projection)}.{part}"
        t[name] = t[name].roll(by, dim).contiguous()

    return fault


def groups_swapped(layer: int, projection: str, a: int, b: int) -> Fault:
    """The codes of two groups of 32 columns (8 columns a word) change places."""

    def fault(t: Tensors) -> None:
        words = t[f"{_name(layer, projection)}.qweight"]
        first = words[4 * a : 4 * a + 4].clone()
        words[4 * a : 4 * a + 4] = words[4 * b : 4 * b + 4]
        words[4 * b : 4 * b + 4] = first

    return fault


def plain_index(layer: int, projection: str) -> Fault:
    """g_idx of a checkpoint without act-order."""

    def fault(t: Tensors) -> None:
        index = t[f"{_name(layer, projection)}.g_idx"]
        t[f"{_name(layer, projection)}.g_idx"] = (torch.arange(len(index)) // 32).to(torch.int32)

    return fault


def set_to(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def fault(t: Tensors) -> None:
        t[name] = change(t[name]).contiguous()

    return fault


DEMO_FAULTS: dict[str, Fault] = {
    **{f"scales of {p} in layer {i} x 1.5": scaled(i, p) for i, p in
       ((0, "v"), (1, "v"), (2, "o"), (3, "o"), (0, "gate"), (1, "up"), (2, "down"), (3, "down"))},
    "scales of v in layer 3 x 0.5": scaled(3, "v", 0.5),
    "scales of gate in layer 3 x 0.5": scaled(3, "gate", 0.5),
    **{f"zero points of {p} in layer {i} moved by a group": rolled(i, p, "qzeros", 1, 0)
       for i, p in ((0, "v"), (1, "down"), (2, "gate"), (3, "up"), (3, "o"))},
    **{f"zero points of {p} in layer {i} moved by 8 rows": rolled(i, p, "qzeros", 1, 1)
       for i, p in ((0, "o"), (2, "up"))},
    **{f"scales of {p} in layer {i} moved by a group": rolled(i, p, "scales", 1, 0)
       for i, p in ((1, "v"), (2, "down"))},
    **{f"groups of {p} in layer {i} swapped": groups_swapped(i, p, 0, 3)
       for i, p in ((0, "v"), (0, "up"), (1, "gate"), (2, "o"), (3, "down"))},
    **{f"plain g_idx of {p} in layer {i}": plain_index(i, p) for i, p in ((0, "gate"), (1, "o"), (2, "v"), (3, "up"))},
    "g_idx of down in layer 1 reversed": set_to(f"{_name(1, 'down')}.g_idx", lambda t: t.flip(0)),
    "rows of o in layer 1 moved by one": rolled(1, "o", "qweight", 1, 1),
    "columns of gate in layer 3 moved by 8": rolled(3, "gate", "qweight", 1, 0),
    "highest bit of each eighth code of down in layer 0 flipped":
        set_to(f"{_name(0, 'down')}.qweight", lambda t: t ^ -(2**31)),
    "all codes of v in layer 2 zero": set_to(f"{_name(2, 'v')}.qweight", torch.zeros_like),
    "norm of layer 2 x 1.3": set_to("model.layers.2.input_layernorm.weight", lambda t: t * 1.3),
}  # fmt: skip


def expert(layer: int, index: int, projection: str, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    return set_to(f"model.layers.{layer}.mlp.experts.{index}.{projection}_proj.{part}", change)


def experts_swapped(layer: int, a: int, b: int) -> Fault:
    def fault(t: Tensors) -> None:
        prefix = f"model.layers.{layer}.mlp.experts."
        for name in [name for name in t if name.startswith(f"{prefix}{a}.")]:
            other = name.replace(f"{prefix}{a}.", f"{prefix}{b}.")
            t[name], t[other] = t[other], t[name]

    return fault


MOE_FAULTS: dict[str, Fault] = {
    **{f"expert {e} of layer {i} zero": expert(i, e, "down", "weight_scale", torch.zeros_like)
       for i, e in ((0, 0), (0, 3), (0, 7), (1, 1), (1, 4), (1, 6))},
    **{f"scales of expert {e} in layer {i} x 1.5": expert(i, e, p, "weight_scale", lambda t: t * 1.5)
       for i, e, p in ((0, 2, "down"), (1, 5, "up"), (1, 2, "gate"))},
    **{f"experts {a} and {b} of layer {i} swapped": experts_swapped(i, a, b) for i, a, b in ((0, 1, 2), (1, 0, 7))},
    "scales of expert 4 in layer 0 moved by a group": expert(0, 4, "up", "weight_scale", lambda t: t.roll(1, 1)),
    "codes of expert 5 in layer 0 moved by a row": expert(0, 5, "down", "weight_packed", lambda t: t.roll(1, 0)),
    "codes of expert 3 in layer 1 moved by 4 columns": expert(1, 3, "gate", "weight_packed", lambda t: t.roll(1, 1)),
    "router of layer 0 moved by an expert": set_to("model.layers.0.mlp.gate.weight", lambda t: t.roll(1, 0)),
    "router of layer 1 zero for an expert":
        set_to("model.layers.1.mlp.gate.weight", lambda t: torch.cat([t[:1] * 0, t[1:]])),
    "scales of o in layer 1 x 1.5": set_to("model.layers.1.self_attn.o_proj.weight_scale", lambda t: t * 1.5),
}  # fmt: skip


def test_there_are_fifty_faults() -> None:
    assert len(DEMO_FAULTS) + len(MOE_FAULTS) >= 50


def _damaged(good: Path, fault: Fault, folder: Path) -> Path:
    folder.mkdir()
    for path in good.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, folder / path.name)
    tensors = {name: tensor for path in good.glob("*.safetensors") for name, tensor in load_file(path).items()}
    before = dict(tensors)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    fault(tensors)
    assert any(not torch.equal(tensors[name], before[name]) for name in before), "the fault changes nothing"
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["demo", "moe"])
def test_the_good_model_is_accepted(kind: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(kind)
    assert all(verdict.passed for verdict in bench.verdicts(bench.folder)), bench.verdicts(bench.folder)


@pytest.mark.parametrize("name", DEMO_FAULTS)
def test_a_damaged_demo_model_is_refused(name: str, demo: Bench, tmp_path: Path) -> None:
    verdicts = demo.verdicts(_damaged(demo.folder, DEMO_FAULTS[name], tmp_path / "damaged"))
    assert not all(verdict.passed for verdict in verdicts), verdicts


@pytest.mark.parametrize("name", MOE_FAULTS)
def test_a_damaged_mixture_of_experts_is_refused(name: str, moe: Bench, tmp_path: Path) -> None:
    verdicts = moe.verdicts(_damaged(moe.folder, MOE_FAULTS[name], tmp_path / "damaged"))
    assert not all(verdict.passed for verdict in verdicts), verdicts


# The way out.


def test_what_fails_the_gate_does_not_get_its_name(dense_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}')
    (tmp_path / "data.json").write_text(json.dumps([5 + i * 37 % 250 for i in range(200)]))

    def quantized(gate: str) -> Any:
        data, tasks = tmp_path / "data.json", tmp_path / "tasks.jsonl"
        options = EvalOptions(data=data, tasks=tasks, window=64, greedy=0, gate=gate)
        return fastllm.quantize(dense_model, tmp_path / "out", method="rtn", group=32, evaluation=options)

    result = quantized("kl<=0.00001,top1>=0.1")
    assert not result.passed and result.path == tmp_path / "out.rejected"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    written = json.loads((result.path / "quantization_report.json").read_text())
    kl, top1 = written["gate"]["terms"]
    assert (kl["passed"], top1["passed"], top1["excess"]) == (False, True, 0.0)
    assert kl["excess"] == pytest.approx(kl["value"] - 0.00001) and kl["excess"] > 0
    assert written["evaluation"]["figures"]["kl"] == kl["value"]
    # How it was measured: with this the figures can be had again.
    how = written["evaluation"]
    data, tasks = tmp_path / "data.json", tmp_path / "tasks.jsonl"
    expected = EvalOptions(data=str(data), tasks=str(tasks), window=64, greedy=0, gate="kl<=0.00001,top1>=0.1")
    assert EvalOptions(**how["options"]) == expected and how["device"]
    for name, path in (("data", data), ("tasks", tasks)):
        assert how[f"{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    accepted = quantized("kl<=100")
    assert accepted.passed and accepted.path == tmp_path / "out"


@pytest.mark.parametrize(
    "options, finding",
    [
        ({"tasks": "tasks"}, "gate term 'kl<=1' needs evaluation data"),
        ({"data": "none"}, "none.json: cannot be read"),
        ({"data": "wrong"}, "expected an id"),
        ({"data": "data", "tasks": "none"}, "none.json: cannot be read"),
        ({"data": "data", "window": 1 << 20}, "exceeds the longest context"),
        ({"data": "data", "gate": "kl<=1,acc>=-1%"}, "needs evaluation tasks"),
        ({"data": "data", "max_tokens": 0}, "max_tokens = 0"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_before_the_work(
    options: dict[str, Any], finding: str, dense_model: Path, tmp_path: Path
) -> None:
    for name, text in (
        ("data", "[5, 6, 7, 8, 9]"),
        ("wrong", "[5, 9999]"),
        ("tasks", '{"prompt": "a", "answer": "b"}'),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    options = {k: tmp_path / f"{v}.json" if k in ("data", "tasks") else v for k, v in options.items()}
    evaluation = EvalOptions(**{"gate": "kl<=1", **options})
    stages: list[str] = []
    with pytest.raises(fastllm.InvalidRequestError, match=finding):
        fastllm.quantize(
            dense_model, tmp_path / "out", method="rtn", group=32, evaluation=evaluation,
            progress=lambda stage, done, total: stages.append(stage),
        )  # fmt: skip
    assert not stages and not (tmp_path / "out.partial").exists()


def test_only_a_report_of_these_files_counts(dense_model: Path, tmp_path: Path) -> None:
    from fastllm.quantize.report import REPORT, verify

    (tmp_path / "data.json").write_text(json.dumps([5 + i * 37 % 250 for i in range(100)]))
    ungated = fastllm.quantize(dense_model, tmp_path / "ungated", method="rtn", group=32).path
    options = EvalOptions(data=tmp_path / "data.json", window=64, greedy=0, gate="kl<=100")
    good = fastllm.quantize(dense_model, tmp_path / "good", method="rtn", group=32, evaluation=options).path
    assert verify(good)["gate"]["passed"] is True
    for folder, finding in ((dense_model, "has no quantization_report"), (ungated, "the gate is missing")):
        with pytest.raises(fastllm.CheckpointError, match=finding):
            verify(folder)
    shutil.copyfile(good / REPORT, ungated / REPORT)
    assert verify(ungated)["gate"]["passed"] is True  # the same bytes
    written = json.loads((good / REPORT).read_text())
    del written["evaluation"]["options"]
    (ungated / REPORT).write_text(json.dumps(written))
    with pytest.raises(fastllm.CheckpointError, match="how its gate was measured"):
        verify(ungated)
    shutil.copyfile(good / REPORT, ungated / REPORT)
    shard = sorted(ungated.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(fastllm.CheckpointError, match=shard.name):
        verify(ungated)
