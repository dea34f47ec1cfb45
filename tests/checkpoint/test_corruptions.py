"""Every entry of the table of damaged folders: a clean refusal that names file and field, soon, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LIMIT_S = 1.0
LIMIT_BYTES = 64 << 20


def test_every_corruption_is_refused_and_the_process_stays_usable() -> None:
    program = Path(__file__).with_name("corruptions.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    seen = json.loads(done.stdout)
    print(f"{seen['count']} corruptions, slowest {seen['slowest'][0]:.3f} s ({seen['slowest'][1]}), "
          f"peak memory + {seen['growth'] / 1e6:.1f} MB")  # fmt: skip
    assert not seen["failures"], "\n".join(seen["failures"])
    assert seen["count"] >= 500
    assert seen["slowest"][0] <= LIMIT_S, seen["slowest"]
    assert seen["growth"] <= LIMIT_BYTES
    assert seen["usable"]
