"""The text that `fastllm quantize` calibrates with when it is given none: docstrings of Python's standard library.

    python tools/calibration_text.py > python/fastllm/demo/calibration.txt

Files are taken in the order of a hash of their names until there are SIZE characters, each cut to SHARE of them. Those
that are held out of the demo model's training are held out here too.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path

from demo_data import docstrings, is_held_out

SIZE, SHARE = 100_000, 4_000


def main() -> None:
    texts = [(name, text) for name, text in docstrings(Path(sysconfig.get_paths()["stdlib"])) if not is_held_out(name)]
    texts.sort(key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())
    taken = 0
    for _, text in texts:
        piece = text[:SHARE].strip()
        if len(piece) < 500:
            continue
        sys.stdout.write(piece + "\n\n")
        taken += len(piece)
        if taken > SIZE:
            break


if __name__ == "__main__":
    main()
