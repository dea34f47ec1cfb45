"""A quantization from beginning to end: into OUT.partial, through the gate, and only then under its name."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from fastllm import _core
from fastllm.checkpoint.files import read_json_object
from fastllm.checkpoint.index import INDEX, PICKLES
from fastllm.checkpoint.resolve import DEMO, resolve
from fastllm.evaluation.run import EvalOptions, check, check_for_model, evaluate
from fastllm.quantize import report as reports
from fastllm.quantize.calibration import Ids, default_data, sequences
from fastllm.quantize.journal import WORK, Journal
from fastllm.quantize.layouts import config_of, scale_dtype
from fastllm.quantize.pipeline import Pipeline, Progress, partial_of, plan_modules
from fastllm.quantize.rounding import Rounder
from fastllm.quantize.settings import Scheme, Settings, check_target
from fastllm.quantize.source import ModelSource, with_own_head
from fastllm.quantize.writer import write_index, write_json
from fastllm.runtime import load_tokenizer

_log = logging.getLogger("fastllm")


def run(
    model: str | Path | None, out: Path, settings: Settings, *, data: Path | None, evaluation: EvalOptions | None,
    max_ram: int, device: str | None, revision: str | None, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The report. The checkpoint is in `out`, or in OUT.rejected if the gate was not passed."""
    begin = time.monotonic()
    check_target(out)
    if evaluation is not None:
        check(evaluation, has_original=True)
    folder = resolve(model, revision)
    source = ModelSource(folder)
    schemes = plan_modules(source, settings, max_ram)
    tokenizer = load_tokenizer(folder, None)
    if evaluation is not None:  # now, and not after hours
        check_for_model(evaluation, tokenizer, source.spec.vocab_size, source.spec.max_position)
    calibration: dict[str, Any] | None = None
    ids = None
    if settings.needs_data:
        is_default = data is None
        data = data or default_data(folder)
        ids = sequences(data, tokenizer, source.spec.vocab_size, settings.num_samples, settings.sample_len)
        calibration = {
            "data": str(data), "sha256": reports.sha256(data), "is_default": is_default, "sequences": len(ids),
            "tokens": int(ids.size),
        }  # fmt: skip
    job = {
        "settings": settings.as_dict(),
        "input": {"model": str(model or DEMO), "files": reports.hashes(reports.weight_files(folder))},
        "calibration": calibration,
        "code": reports.code_version(),
    }
    if source.unnamed:
        _log.warning(
            "%s: %d matrices stay in float: they are saved stacked, and no format names their parts (%s, ...)",
            folder, len(source.unnamed), source.unnamed[0],
        )  # fmt: skip
    how = None if evaluation is None else _how_measured(evaluation)
    partial = partial_of(out)
    found = _finished(partial, job, how)
    if found is None:
        journal = Journal(partial, job)
        pipeline = _make(source, settings, schemes, ids, journal, max_ram, device, progress)
        modules = [module for entry in journal.layers for module in entry["modules"]]
        found = {
            **job, "method": settings.method, "summary": reports.summarize(modules, settings.method),
            "modules": modules, "left_in_float": source.unnamed + _in_float(pipeline, journal),
            "files": reports.hashes(reports.weight_files(partial)), "evaluation": None, "gate": None,
        }  # fmt: skip
        if evaluation is not None and how is not None:
            measured = evaluate(partial, evaluation, against=folder, progress=progress).as_dict()
            found["gate"] = measured.pop("gate")
            found["evaluation"] = {**how, **measured}
        found["seconds"] = round(time.monotonic() - begin, 1)
        write_json(partial / reports.REPORT, found)
    passed = found["gate"] is None or found["gate"]["passed"]
    place = out if passed else out.with_name(out.name + ".rejected")
    if not passed and place.exists():
        shutil.rmtree(place)
    # From here on _finished() knows the folder.
    shutil.rmtree(partial / WORK, ignore_errors=True)
    partial.rename(place)
    return {**found, "path": str(place)}


def _finished(partial: Path, job: dict[str, Any], how: dict[str, Any] | None) -> dict[str, Any] | None:
    """The report of this job if a process was killed when all that was left was to give the folder its name."""
    if (partial / WORK).exists() or not (partial / reports.REPORT).exists():
        return None  # while there is a journal it counts
    found = read_json_object(partial, reports.REPORT)
    measured = found.get("evaluation") or {}
    expected: dict[str, Any] = json.loads(json.dumps({"job": job, "how": how or {}}))
    is_this = {name: found.get(name) for name in expected["job"]} == expected["job"]
    is_measured = {name: measured.get(name) for name in expected["how"]} == expected["how"]
    return found if is_this and is_measured and bool(measured) == bool(how) else None


def _make(
    source: ModelSource, settings: Settings, schemes: dict[str, Scheme | None], ids: Ids | None, journal: Journal,
    max_ram: int, device: str | None, progress: Progress,
) -> Pipeline:  # fmt: skip
    """The checkpoint in the journal's folder."""
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rounder = Rounder(settings, scale_dtype(settings, source.dtype))
    pipeline = Pipeline(source, rounder, schemes, ids, journal, max_ram, target, progress)
    pipeline.run()
    _finish(pipeline, source, settings, journal)
    return pipeline


def _how_measured(evaluation: EvalOptions) -> dict[str, Any]:
    options = dataclasses.asdict(evaluation)
    found: dict[str, Any] = {"options": options, "device": _core.resolve_device(evaluation.device)}
    for name in ("data", "tasks"):
        if options[name] is not None:
            options[name] = str(options[name])
            found[f"{name}_sha256"] = reports.sha256(Path(options[name]))
    return found


def _in_float(pipeline: Pipeline, journal: Journal) -> list[str]:
    """Linear layers that are not quantized; a tied head, which is no tensor of its own, too."""
    kept = {name for entry in journal.layers for name in entry["in_float"]}
    return sorted(kept | {name for name, scheme in pipeline.schemes.items() if scheme is None})


def _finish(pipeline: Pipeline, source: ModelSource, settings: Settings, journal: Journal) -> None:
    """Index, config and the other files of the folder."""
    files = {entry["file"]: entry["tensors"] for entry in journal.layers}
    write_index(journal.folder, files, sum(entry["bytes"] for entry in journal.layers))
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    is_ordered = settings.act_order == "group" and settings.method == "gptq" and settings.group != -1
    kept, other_names = _in_float(pipeline, journal), source.other_names(keeps_head=not pipeline.quantizes_head)
    config["quantization_config"] = config_of(settings, pipeline.schemes, kept, other_names, is_ordered)
    if pipeline.quantizes_head:
        config = with_own_head(config)
    write_json(journal.folder / "config.json", config)
    skipped = {"config.json", INDEX, reports.REPORT}
    for path in source.folder.iterdir():
        if path.is_file() and path.name not in skipped and path.suffix not in (".safetensors", *PICKLES):
            shutil.copyfile(path, journal.folder / path.name)
