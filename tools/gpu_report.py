"""Puts together what tools/gpu_check.sh found: report.json, and report.md for docs/performance.md.

python tools/gpu_report.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def collect(folder: Path) -> dict[str, Any]:
    steps = [line.split("\t") for line in (folder / "logs" / "results.tsv").read_text().splitlines()]
    peers = folder / "peers.json"
    return {
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "date": output("date", "-u", "+%Y-%m-%dT%H:%M:%SZ"),
        "gpu": output(
            "nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"
        ),
        "nvcc": (output("nvcc", "--version").splitlines() or [""])[-1],
        "steps": [{"name": name, "status": status, "seconds": float(seconds)} for name, status, seconds in steps],
        "benches": {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("bench_*.json"))},
        "peers": json.loads(peers.read_text())["peers"] if peers.exists() else {},
    }


def share(row: dict[str, Any], mma: float) -> str:
    if "share_of_copy" in row:
        return f"{100 * row['share_of_copy']:.0f} % of copy"
    if "flops_per_s" in row:
        beside = f", {100 * row['flops_per_s'] / mma:.0f} % of mma.sync" if mma else ""
        return f"{row['flops_per_s'] / 1e12:.0f} TFLOP/s{beside}"
    return ""


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['gpu']}; commit {report['commit']}; {report['date']}; {report['nvcc']}", ""]
    lines += ["| step | | s |", "|---|---|---|"]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']:.0f} |" for s in report["steps"]]
    ceilings = report["benches"].get("bench_ceilings", {})
    mma = ceilings.get("mma_bf16_flops_per_s", 0.0)
    if ceilings:
        read, copy = ceilings["read_bytes_per_s"] / 1e9, ceilings["copy_bytes_per_s"] / 1e9
        lines += ["", f"Limits: reads {read:.0f} GB/s, copies {copy:.0f} GB/s, mma.sync bf16 {mma / 1e12:.0f} TFLOP/s"]
    peers = {name: found.get("seconds", {}) for name, found in report["peers"].items()}
    lines += ["", "| case | us | share | floor; goal on an H200 | others, us |", "|---|---|---|---|---|"]
    for bench in report["benches"].values():
        for row in bench.get("rows", []):
            others = [f"{name} {rows[row['name']] * 1e6:.1f}" for name, rows in peers.items() if row["name"] in rows]
            cells = [row["name"], f"{row['seconds'] * 1e6:.1f}", share(row, mma), row["target"], "; ".join(others)]
            lines.append(f"| {' | '.join(cells)} |")
    missing = [f"{name} ({found['missing']})" for name, found in report["peers"].items() if "missing" in found]
    return "\n".join([*lines, *(["", f"Not compared with: {'; '.join(missing)}"] if missing else [])]) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    report = collect(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "report.md").write_text(table(report))
    print(f"{folder / 'report.md'}: {report['gpu']}, commit {report['commit']}")


if __name__ == "__main__":
    main()
