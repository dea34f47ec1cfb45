"""What ptxas said of every kernel: fails on spills, stack frames, or more registers than the kernel's budget.

    python tools/cuda_gate.py BUILD_LOG [--json FILE]

BUILD_LOG is the output of a complete build with -Xptxas=-v (`make cuda` makes one). The budget stands above each
kernel in its source, with the reason where it is not obvious:

    // registers: 128
    template <int D>
    __global__ void __launch_bounds__(256) attention_kernel(...)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\s*\(")
BUDGET = re.compile(r"// registers: (\d+)")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


@dataclass
class Instance:
    symbol: str
    arch: str
    registers: int = 0
    stack: int = 0
    spills: int = 0


def declared_budgets() -> tuple[dict[str, int], list[str]]:
    """Kernel -> registers, and the complaints about kernels that declare none."""
    budgets: dict[str, int] = {}
    problems = []
    for path in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
        text = path.read_text()
        end_of_last = 0
        for kernel in KERNEL.finditer(text):
            found = BUDGET.findall(text[end_of_last : kernel.start()])
            end_of_last = kernel.end()
            name = kernel[1]
            if name in budgets:
                problems.append(f"{path.name}: two kernels are called {name}")
            elif not found:
                problems.append(f"{path.name}: {name} has no `// registers: N` above it")
            else:
                budgets[name] = int(found[-1])
    return budgets, problems


def compiled_instances(log: str) -> list[Instance]:
    instances: list[Instance] = []
    for line in log.splitlines():
        if match := ENTRY.search(line):
            instances.append(Instance(match[1], match[2]))
        elif instances and (match := STACK.search(line)):
            instances[-1].stack = max(instances[-1].stack, int(match[1]))  # of functions that it calls, too
            instances[-1].spills += int(match[2]) + int(match[3])
        elif instances and (match := USED.search(line)):
            instances[-1].registers = int(match[1])
    return instances


def kernel_of(symbol: str, names: dict[str, int]) -> str | None:
    return next((name for name in names if f"{len(name)}{name}" in symbol), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    budgets, problems = declared_budgets()
    by_kernel: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for instance in compiled_instances(args.log.read_text()):
        name = kernel_of(instance.symbol, budgets)
        if name is None:
            problems.append(f"{instance.symbol}: no kernel of csrc/cuda has this name")
            continue
        by_kernel[name][instance.arch].append(instance)
        for what, amount in (("stack frame", instance.stack), ("spills", instance.spills)):
            if amount > 0:
                problems.append(f"{name} ({instance.arch}): {amount} bytes of {what}: {instance.symbol}")
        if instance.registers > budgets[name]:
            problems.append(
                f"{name} ({instance.arch}): {instance.registers} registers, budget {budgets[name]}: {instance.symbol}"
            )
    archs = sorted({arch for of_kernel in by_kernel.values() for arch in of_kernel})
    problems += [f"{name}: not in the log; was the build complete?" for name in budgets if name not in by_kernel]
    print("Most registers of any instance:")
    print(f"{'kernel':<36}{'instances':>10}{'budget':>8}" + "".join(f"{arch:>9}" for arch in archs))
    for name in sorted(by_kernel):
        most = [max((i.registers for i in by_kernel[name][arch]), default=0) for arch in archs]
        count = max(len(of_arch) for of_arch in by_kernel[name].values())
        print(f"{name:<36}{count:>10}{budgets[name]:>8}" + "".join(f"{n:>9}" for n in most))
    if args.json is not None:
        table = {n: {a: [vars(i) for i in of] for a, of in by_kernel[n].items()} for n in by_kernel}
        args.json.write_text(json.dumps(table, indent=1))
    for problem in problems:
        print(f"FAIL {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
