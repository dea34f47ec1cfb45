"""/dashboard in a real browser: the page runs under its own security policy and shows the server's numbers."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt: chromium); the page's data are tested without")
def test_the_page_shows_the_servers_numbers(server, tmp_path):
    assert server.post("/v1/completions", {"prompt": "The os module", "max_tokens": 20})[0] == 200
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([*command, f"{server.url}/dashboard"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", done.stdout, flags=re.S)
    assert re.search(r"fastllm-demo\s+running", text), text
    assert f"{server.stats()['num_generated_tokens']} generated" in text, text
    assert "NaN" not in text and "undefined" not in text
