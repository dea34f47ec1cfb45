"""What quantize() writes: the values that were computed, in fastllm and in transformers, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import CASES, make_model, make_vision_model, save
from quick import QUICK

import fastllm
from fastllm.checkpoint import loader
from fastllm.demo import CALIBRATION_TEXT, DEMO_MODEL
from fastllm.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from fastllm.evaluation.scoring import ScoredModel
from fastllm.quantize import pipeline, report
from fastllm.quantize.journal import Journal
from fastllm.quantize.layer import Layer
from fastllm.quantize.source import read_fill

VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "rtn, zero points": {"method": "rtn", "symmetric": False},
    "rtn 8 bits, whole rows": {"method": "rtn", "bits": 8, "group": -1},
    "gptq": {"method": "gptq"},
    "gptq 8 bits": {"method": "gptq", "bits": 8},
    "gptq, act order": {"method": "gptq", "act_order": "group", "symmetric": False},
    "gptq, act order, compressed": {"method": "gptq", "act_order": "group", "format": "compressed-tensors"},
    "awq": {"method": "awq"},
    "awq, symmetric": {"method": "awq", "symmetric": True},
    "smoothquant": {"method": "smoothquant", "group": -1},
    "head": {"method": "gptq", "overrides": ["lm_head=4"]},
    "mixed": {"method": "rtn", "overrides": ["*down_proj=8:64", "*.layers.0.*q_proj=none", "lm_head=8"]},
}  # fmt: skip
IDS = [5 + (i * 37) % 250 for i in range(48)]


def _record_values(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The values of each module as they are computed."""
    values: dict[str, torch.Tensor] = {}
    original = pipeline.tensors_of

    def tensors_of(name: str, codes: Any, settings: Any) -> Any:
        values[name] = codes.values().clone()
        return original(name, codes, settings)

    monkeypatch.setattr(pipeline, "tensors_of", tensors_of)
    return values


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of a checkpoint as fastllm decodes it."""
    return {fill.source: read_fill(fill, tensor) for fill, tensor in loader.load(folder).fills}


def _logits(folder: Path, activation_mode: str = "f32") -> torch.Tensor:
    with ScoredModel(folder, dtype="float32", activation_mode=activation_mode, num_threads=1) as model:
        return torch.from_numpy(np.concatenate([rows.copy() for rows in model.rows(IDS)]))


def _quantize(model: Path, out: Path, **arguments: Any) -> Any:
    return fastllm.quantize(model, out, **{**QUICK, **arguments})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["dense_model", "moe_model"])
def test_what_is_written_is_read_bit_for_bit(
    kind: str, variant: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(kind)
    computed = _record_values(monkeypatch)
    result = _quantize(model, tmp_path / "out", **VARIANTS[variant])
    assert result.path == tmp_path / "out" and result.passed and not (tmp_path / "out.partial").exists()
    stored, original = _read(result.path), _read(model)
    assert len(computed) == len(result.report["modules"]) > 10
    for name, values in computed.items():
        assert torch.equal(stored[f"{name}.weight"], values), name
    folded = VARIANTS[variant]["method"] in ("awq", "smoothquant")
    for name, weight in original.items():
        if name.removesuffix(".weight") not in computed and not folded:
            assert torch.equal(stored[name], weight), name
    # And it is still the same model, roughly: random weights lose much, and tokens may go to another expert.
    before, after = _logits(model), _logits(result.path)
    error = float((after - before).square().mean() / before.square().mean())
    assert error < (0.05 if result.report["settings"]["bits"] == 8 else 0.5), error


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_statistics_in_several_passes_give_what_one_gives(method: str, moe_model: Path, tmp_path: Path) -> None:
    """With little memory the experts are looked at one after the other.

    Moved scales are divided out of the statistics in one pass, and looked at anew in several: the last bit of a float16
    scale may differ then, and nothing more.
    """
    from fastllm.quantize import layer_quantizer

    outs = []
    for name, budget in (("one", None), ("many", 1)):
        with pytest.MonkeyPatch.context() as patch:
            if budget is not None:
                split = layer_quantizer.LayerQuantizer._split
                patch.setattr(
                    layer_quantizer.LayerQuantizer, "_split",
                    lambda self, keys, split=split: (setattr(self, "_budget", 1), split(self, keys))[1],
                )  # fmt: skip
            group = -1 if method == "smoothquant" else 32
            outs.append(_read(_quantize(moe_model, tmp_path / name, method=method, group=group).path))
    for name, one in outs[0].items():
        difference = float((outs[1][name] - one).norm() / one.norm())
        assert difference <= (2e-4 if method == "awq" else 0.0), (name, difference)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_killed_run_goes_on_where_it_was(method: str, dense_model: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    seen: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if stage == "layer 2" and seen.count("layer 2") == 1:
            raise Killed

    whole = _quantize(dense_model, tmp_path / "whole", method=method)
    with pytest.raises(Killed):
        _quantize(dense_model, tmp_path / "out", method=method, progress=progress)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidRequestError, match="other settings"):
        _quantize(dense_model, tmp_path / "out", method=method, bits=8, format="compressed-tensors")
    seen = ["layer 2"]
    resumed = _quantize(dense_model, tmp_path / "out", method=method, progress=progress)
    assert "layer 1" not in seen
    assert resumed.report["files"] == whole.report["files"]  # the same bytes


def test_what_the_journal_names_is_on_the_disk(
    dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure must not leave a journal that counts a layer whose outputs were still in memory."""
    synced: set[tuple[int, int]] = set()  # inode, size
    fsync, finish = os.fsync, Journal.finish

    def recording_fsync(fd: int) -> None:
        fsync(fd)
        synced.add((os.fstat(fd).st_ino, os.fstat(fd).st_size))

    def checking_finish(self: Journal, entry: dict[str, Any]) -> None:
        waiting = [self.folder / entry["file"], *self.folder.glob("work/*.f32")]
        assert len(waiting) >= 2 and all((p.stat().st_ino, p.stat().st_size) in synced for p in waiting), waiting
        finish(self, entry)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Journal, "finish", checking_finish)
    _quantize(dense_model, tmp_path / "out", method="gptq", num_samples=4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("name", ["hidden-1", "model-00002-of-00004"])
def test_a_full_disk_is_an_error(name: str, dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "layer 0":
            folder = tmp_path / "out.partial"
            ((folder / "work" if "hidden" in name else folder) / f"{name}.writing").symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match=rf"{name}.*No space left"):
        _quantize(dense_model, tmp_path / "out", method="gptq", num_samples=4, progress=progress)


def test_the_report_belongs_to_the_files(dense_model: Path, tmp_path: Path) -> None:
    result = _quantize(dense_model, tmp_path / "out", method="gptq")
    written = json.loads((result.path / report.REPORT).read_text())
    assert written["method"] == "gptq" and written["settings"]["bits"] == 4
    assert written["calibration"]["sha256"] == hashlib.sha256(CALIBRATION_TEXT.read_bytes()).hexdigest()
    assert written["calibration"]["is_default"] is True
    for section, folder in (("files", result.path), ("input", dense_model)):
        files = written[section] if section == "files" else written[section]["files"]
        for name, digest in files.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {m["name"] for m in written["modules"]} == {
        name.removesuffix(".weight") for name in _read(dense_model) if "_proj" in name
    }
    summary = written["summary"]
    assert summary["better_than_rtn"] == summary["compared_with_rtn"] == len(written["modules"]) == 21
    # 4 bits, and 16 for a scale per 32 columns.
    assert summary["share_of_bf16"] == pytest.approx((4 + 16 / 32) / 16)


def test_experts_that_saw_too_little_are_reported(moe_model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text(json.dumps(IDS))
    result = _quantize(
        moe_model, tmp_path / "out", method="gptq", data=tmp_path / "short.json", overrides=["*o_proj=none"]
    )
    fallbacks = {f["module"] for f in result.report["summary"]["fallbacks"]}
    methods = {m["name"]: m["method"] for m in result.report["modules"]}
    assert fallbacks == {name for name, method in methods.items() if method == "rtn"}
    assert all(".experts." in name for name in fallbacks) and len(fallbacks) == 2 * 8 * 3
    assert methods["model.layers.0.self_attn.q_proj"] == "gptq"
    assert not any(name.endswith("o_proj") for name in methods)


def test_a_tied_head_gets_weights_of_its_own(tmp_path: Path) -> None:
    """The embedding stays as it is; the head is rounded beside it, and the config says that they are two."""
    out = _quantize(DEMO_MODEL, tmp_path / "out", method="rtn", bits=8, overrides=["lm_head=8"]).path
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    stored, original = _read(out), _read(DEMO_MODEL)
    embedding = original["model.embed_tokens.weight"]
    assert torch.equal(stored["model.embed_tokens.weight"], embedding)
    head = stored["lm_head.weight"]
    assert not torch.equal(head, embedding) and (head - embedding).abs().max() < 0.02 * embedding.abs().max()
    before, after = _logits(DEMO_MODEL), _logits(out)
    assert float((after - before).square().mean() / before.square().mean()) < 1e-3


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_tied_head_of_a_model_with_vision_is_where_its_form_has_it(prefix: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save(make_vision_model(), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file({n.replace("language_model.model.", prefix): t for n, t in tensors.items()}, model / "model.safetensors")
    out = _quantize(model, tmp_path / "out", method="rtn", bits=8, group=-1, overrides=["*lm_head=8"]).path
    head = "language_model.lm_head.weight" if prefix.startswith("language") else "lm_head.weight"
    stored, original = _read(out), _read(model)
    embedding = original[f"{prefix}embed_tokens.weight"]
    assert torch.equal(stored[f"{prefix}embed_tokens.weight"], embedding)
    assert not torch.equal(stored[head], embedding) and torch.allclose(stored[head], embedding, atol=0.05)
    before, after = _logits(model), _logits(out)
    assert float((after - before).square().mean() / before.square().mean()) < 1e-2
    # Nothing of the vision tower is quantized, and the config says so.
    ignored = set(json.loads((out / "config.json").read_text())["quantization_config"]["ignore"])
    tower = {n.removesuffix(".weight") for n, t in tensors.items() if "vision_tower" in n and n.endswith("proj.weight")}
    assert tower and tower <= ignored and head.removesuffix(".weight") not in ignored


def test_the_default_text_comes_with_a_warning_for_other_models(
    dense_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastllm"):
        _quantize(dense_model, tmp_path / "a", num_samples=2)
        assert "small text of the package" in caplog.text
        caplog.clear()
        (tmp_path / "mine.json").write_text(json.dumps(IDS))
        _quantize(dense_model, tmp_path / "b", num_samples=2, data=tmp_path / "mine.json")
        assert "small text" not in caplog.text


def test_stacked_experts_of_gpt_oss_stay_in_float_and_are_listed(tmp_path: Path) -> None:
    model = save(make_model(next(case for case in CASES if case.name == "gpt-oss")), tmp_path / "model")
    result = _quantize(model, tmp_path / "out", method="rtn", group=-1)
    stacked = [f"model.layers.{i}.mlp.experts.{name}" for i in range(2) for name in ("gate_up_proj", "down_proj")]
    assert set(stacked) <= set(result.report["left_in_float"])
    stored, original = _read(result.path), _read(model)
    for name in stacked:
        assert torch.equal(stored[name], original[name])
    assert not torch.equal(
        stored["model.layers.0.self_attn.o_proj.weight"], original["model.layers.0.self_attn.o_proj.weight"]
    )


# Other readers.


@torch.no_grad()
@pytest.mark.parametrize("variant", ["rtn", "rtn 8 bits, whole rows", "mixed"])
def test_transformers_computes_the_same_from_compressed_tensors(
    variant: str, dense_model: Path, tmp_path: Path
) -> None:
    out = _quantize(dense_model, tmp_path / "out", **VARIANTS[variant]).path
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    expected = model(torch.tensor([IDS])).logits[0]
    got = _logits(out)
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["moe_model", "shared_model"])
def test_transformers_holds_the_same_mixture_of_experts(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Weights, not logits: it rounds decoded experts to bfloat16. What its config does not name as float (routers,
    gates of shared experts) it would replace with parts of a quantized layer, filled with nothing."""
    out = _quantize(request.getfixturevalue(kind), tmp_path / "out", method="rtn").path
    model, found = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    expected = _read(out)
    held = dict(model.named_parameters())
    for name in [name for name in expected if name.endswith((".mlp.gate.weight", "norm.weight", "expert_gate.weight"))]:
        assert torch.equal(held[name], expected[name]), name
    for name in [name for name in held if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        projections = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
        for i, expert in enumerate(held[name]):
            parts = [expected[f"{name.rpartition('.')[0]}.{i}.{part}.weight"] for part in projections]
            assert torch.equal(expert, torch.cat(parts).bfloat16().float()), (name, i)


def test_transformers_loads_a_model_with_vision(tmp_path: Path) -> None:
    """Its modules have other names than the files."""
    model = save(make_vision_model(), tmp_path / "model")
    out = _quantize(model, tmp_path / "out", method="rtn", bits=8, group=-1).path
    loaded, found = transformers.AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    expected = loaded(input_ids=torch.tensor([IDS])).logits[0]
    assert (_logits(out) - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("variant", ["rtn", "rtn, zero points", "rtn 8 bits, whole rows"])
def test_compressed_tensors_decodes_what_was_computed(
    variant: str, dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own decompressor, also for zero points: those cannot be loaded by transformers 5.24 with compressed-tensors
    0.20, which expects them unpacked and finds them packed, as compressed-tensors itself writes them."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file

    computed = _record_values(monkeypatch)
    out = _quantize(dense_model, tmp_path / "out", **VARIANTS[variant]).path
    group = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    scheme = QuantizationScheme(**group)
    tensors = {name: t for path in out.glob("*.safetensors") for name, t in load_file(path).items()}
    for module, values in computed.items():
        state = {name.removeprefix(f"{module}."): t for name, t in tensors.items() if name.startswith(f"{module}.")}
        state["weight_scale"] = state["weight_scale"].float()  # else it rounds the product to bfloat16
        decoded = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        assert torch.equal(decoded.float(), values), module


@torch.no_grad()
def test_transformers_computes_the_same_from_w8a8(dense_model: Path, tmp_path: Path) -> None:
    """Both round activations to 8 bits, transformers per token and fastllm per group of columns: not the same numbers,
    but the same model."""
    out = _quantize(dense_model, tmp_path / "out", method="smoothquant", group=-1).path
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    expected = model(torch.tensor([IDS])).logits[0]
    for mode in ("f32", "auto"):
        got = _logits(out, mode)
        error = float((got - expected).square().mean() / expected.square().mean())
        assert error < 5e-3, mode


# What cannot be.


@pytest.mark.parametrize(
    "arguments, finding",
    [
        ({"method": "gptQ"}, "method = 'gptQ' is not known"),
        ({"bits": 3}, "bits = 3 is not known; use one of 4, 8"),
        ({"bits": True}, "bits = True"),
        ({"group": 100}, "group = 100 is not known"),
        ({"group": 0}, "group = 0"),
        ({"group": 128}, "group 128 does not divide its 64 columns"),
        ({"format": "ggml"}, "format = 'ggml' is not known"),
        ({"method": "awq", "bits": 8, "format": "awq"}, "the AWQ format has 4"),
        ({"method": "awq", "act_order": "group"}, "needs method gptq"),
        ({"method": "smoothquant", "bits": 4}, "smoothquant is 8 bits"),
        ({"overrides": ["lm_head"]}, "is not PATTERN=none"),
        ({"overrides": ["*=5"]}, "bits of an override = 5"),
        ({"overrides": ["*q_proj=8"]}, "one number of bits"),
        ({"overrides": ["*=none"]}, "leave no module"),
        ({"damp": 0}, "damp = 0"),
        ({"symmetric": "yes"}, "symmetric = 'yes'"),
        ({"num_samples": 0}, "num_samples = 0"),
        ({"data": "/nowhere.txt"}, "cannot be read"),
        ({"max_ram": "100 KB"}, "has 128 columns, whose statistics need 197632 bytes"),
        ({"max_ram": "lots"}, "memory size 'lots'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_arguments_are_refused_by_name(
    arguments: dict[str, Any], finding: str, dense_model: Path, tmp_path: Path
) -> None:
    with pytest.raises((InvalidRequestError, fastllm.OutOfMemoryError), match=None) as error:
        _quantize(dense_model, tmp_path / "out", **arguments)
    assert finding in str(error.value)
    assert list(tmp_path.iterdir()) == []  # no OUT.partial either, which would be in the way of the next try


@pytest.mark.parametrize(
    "pattern, meant",
    [
        ("*.donw_proj", "model.layers.*.mlp.down_proj"),
        ("down_proj", "model.layers.*.mlp.down_proj"),
        ("model.layers.7.self_attn.q_proj", "model.layers.*.self_attn.q_proj"),  # there are 3 layers
        ("lm_haed", "lm_head"),
    ],
)
def test_an_override_that_matches_nothing_is_refused(
    pattern: str, meant: str, dense_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        _quantize(dense_model, tmp_path / "out", overrides=["*o_proj=none", f"{pattern}=none"])
    # 3 layers of 7, and the head.
    assert f"override {pattern!r} matches none of the 22 modules" in str(error.value)
    assert f"nearest of those are {meant}," in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "a", "[1, 2", '[1, 2, "three", 4]', "[[1, 99999]]", "{}"])
def test_data_that_is_none_is_refused(content: str, dense_model: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InvalidRequestError, match=r"data\.json"):
        _quantize(dense_model, tmp_path / "out", data=tmp_path / "data.json")


def test_weights_that_are_not_finite_are_refused(dense_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for path in dense_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    for value in (float("nan"), float("inf")):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(tensors, model / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
            _quantize(model, tmp_path / f"out{value}", method="rtn")


def test_nothing_is_overwritten_or_quantized_twice(dense_model: Path, tmp_path: Path) -> None:
    out = _quantize(dense_model, tmp_path / "out", method="rtn").path
    with pytest.raises(InvalidRequestError, match="exists already"):
        _quantize(dense_model, out, method="rtn")
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        _quantize(out, tmp_path / "again", method="rtn")
    (tmp_path / "mine.partial").mkdir()
    with pytest.raises(InvalidRequestError, match="remove it"):
        _quantize(dense_model, tmp_path / "mine", method="rtn")
    assert list((tmp_path / "mine.partial").iterdir()) == []


def test_torch_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'fastllm-runtime\[quantize\]'"):
        fastllm.quantize(None, tmp_path / "out")


def test_a_layer_is_freed_before_the_next(dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    alive: list[int] = []
    original = Layer.forward

    def forward(self: Layer, *arguments: Any) -> Any:
        alive.append(sum(isinstance(item, Layer) for item in gc.get_objects()))
        return original(self, *arguments)

    monkeypatch.setattr(Layer, "forward", forward)
    _quantize(dense_model, tmp_path / "out", method="gptq", num_samples=4)
    assert set(alive) == {1}
