"""Nothing in a model folder runs: no code, no pickle, no process, no connection, whatever the files ask for."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import tiny
from corruptions import TEXT_FILES, write_good

import fastllm

# The hook sees what Python itself does on the way: imports from the folder, pickles, processes, sockets.
PROGRAM = """
import json, sys
folder = sys.argv[1]
events = []
bad = ("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.", "ctypes.",
       "marshal.", "urllib.", "http.", "ftplib.", "code.__new__")
on = False
def hook(event, args):
    inside = event in ("open", "import") and str(args[event == "import"] or "").startswith(folder)
    is_code = event == "import" or str(args[0]).endswith((".py", ".so", ".bin", ".pt", ".pkl"))
    if on and (event.startswith(bad) or (inside and is_code)):
        events.append([event, str(args)[:200]])
import fastllm
def use(path):
    with fastllm.LLM(path, num_threads=1, max_num_seqs=2, kv_cache_tokens=256) as llm:
        llm.chat([{"role": "user", "content": "a"}], fastllm.SamplingParams(max_tokens=2))
        llm.generate([[1, 2]], fastllm.SamplingParams(max_tokens=2))
use(sys.argv[2])  # what is imported on first use is imported now
sys.addaudithook(hook)
on = True
use(folder)
on = False
print(json.dumps({"events": events}))
"""

CODE = "import os; os.mkdir({canary!r})"
ATTACKS = [
    "{{ cycler.__init__.__globals__.os.system('mkdir %s') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self._TemplateReference__context }}",
    "{{ lipsum.__globals__['os'].popen('mkdir %s').read() }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{% set x = namespace.__init__ %}{{ x.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').mkdir('%s') }}",
    "{{ 'a' * 10000000000 }}",
]


class _Evil:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> object:
        return os.mkdir, (self.canary,)


def _run(folder: Path, good: Path) -> dict[str, list[object]]:
    """In the folder as working directory, which is not on the path of a program that lies elsewhere."""
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(fastllm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(good)], env=environment, cwd=folder, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    result: dict[str, list[object]] = json.loads(done.stdout)
    return result


def test_nothing_in_a_folder_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = write_good(tmp_path / "model")
    code = CODE.format(canary=str(canary))
    auto_map = {name: "modeling_evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    (folder / "config.json").write_text(
        json.dumps({**tiny.CONFIG, "auto_map": auto_map, "trust_remote_code": True, "custom_pipelines": auto_map})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**TEXT_FILES["tokenizer_config.json"], "auto_map": auto_map, "tokenizer_class": "Evil"})
    )
    for name in ("modeling_evil.py", "sitecustomize.py", "__init__.py", "tokenizers.py", "numpy.py", "conftest.py"):
        (folder / name).write_text(code)
    (folder / "evil.so").write_bytes(b"\x7fELF" + bytes(100))
    payload = pickle.dumps(_Evil(str(canary)))
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "optimizer.pt", "scheduler.pkl"):
        (folder / name).write_bytes(payload)
    assert _run(folder, write_good(tmp_path / "good"))["events"] == []
    assert not canary.exists()


def test_templates_that_reach_for_python_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = write_good(tmp_path / "model")
    for attack in ATTACKS:
        source = attack % canary if "%s" in attack else attack
        (folder / "chat_template.jinja").write_text(source)
        assert _attempt(folder) is not None, f"{attack}: was rendered"
        assert not canary.exists()


def _attempt(folder: Path) -> str | None:
    """Message of the refusal, or None."""
    try:
        with fastllm.LLM(str(folder), num_threads=1, max_num_seqs=2, kv_cache_tokens=256) as llm:
            llm.chat([{"role": "user", "content": "a"}], fastllm.SamplingParams(max_tokens=1))
    except (fastllm.InvalidRequestError, fastllm.CheckpointError) as e:
        return str(e)
    return None
