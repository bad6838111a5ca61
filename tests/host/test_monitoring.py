# SPDX-License-Identifier: Apache-2.0
"""The alerts, by Prometheus' own tool: they can be read, and each says what it is to say when it is to."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"


@pytest.mark.parametrize(
    "words", [("check", "rules", "remusdb.rules.yml"), ("test", "rules", "remusdb.rules.test.yml")]
)
def test_promtool_takes_them(words: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_each_alert_says_what_to_do() -> None:
    text = (FOLDER / "remusdb.rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    assert len(alerts) == text.count("summary:") == text.count("description:") == text.count("severity:") >= 10
