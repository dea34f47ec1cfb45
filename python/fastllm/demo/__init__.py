"""The small model in the package, for first tries and tests. See docs/demo-model.md; its text is LICENSE-DATA.txt's."""

from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "main"
DEMO_DRAFT_MODEL = Path(__file__).parent / "draft"
CALIBRATION_TEXT = Path(__file__).parent / "calibration.txt"
