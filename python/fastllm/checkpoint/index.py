"""The tensors of a model folder, from one safetensors file or from shards named by model.safetensors.index.json."""

from __future__ import annotations

from pathlib import Path

from fastllm.checkpoint import safetensors
from fastllm.checkpoint.files import read_json_object, safe_path
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pickle", ".pkl")
MAX_SHARDS = 4096


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(p.name for p in folder.iterdir())
    pickled = [name for name in names if name.endswith(PICKLES) and name not in ("training_args.bin", "optimizer.pt")]
    if pickled:
        return CheckpointError(
            f"{folder}: only pickled weights are here ({', '.join(pickled[:3])}), which can run code when read; "
            "convert them: transformers' AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) "
            "writes safetensors"
        )
    return CheckpointError(f"{folder}: no {SINGLE} and no {INDEX} here")


def _files(folder: Path) -> dict[str, set[str] | None]:
    """Shard file -> names of its tensors by the index, or None where there is no index."""
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return {SINGLE: None}
        found = sorted(p.name for p in folder.glob("*.safetensors"))
        if len(found) == 1:
            return {found[0]: None}
        if found:
            raise CheckpointError(f"{folder}: {len(found)} safetensors files but no {INDEX} that says what is where")
        raise _no_weights(folder)

    where = f"{folder / INDEX}"
    weight_map = read_json_object(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: weight_map must be an object that maps tensor names to files")
    shards: dict[str, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{where}: weight_map.{tensor}: {str(file)[:200]!r} is not the name of a .safetensors file"
            )
        names = shards.setdefault(file, set())
        assert names is not None
        names.add(tensor)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{where}: weight_map names {len(shards)} files, at most {MAX_SHARDS} are read")
    return shards


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by name; each lies in exactly one file, the one that the index names."""
    tensors: dict[str, Tensor] = {}
    for file, expected in _files(folder).items():
        found = safetensors.read(safe_path(folder, file), str(folder / file))
        if expected is not None and found.keys() != expected:
            missing, extra = expected - found.keys(), found.keys() - expected
            if missing:
                raise CheckpointError(f"{folder / file}: tensor {_some(missing)} is missing, {INDEX} says it is here")
            raise CheckpointError(f"{folder / file}: tensor {_some(set(extra))} is here, but {INDEX} does not say so")
        tensors.update(found)
    return tensors
