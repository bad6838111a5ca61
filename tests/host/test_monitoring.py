# SPDX-License-Identifier: Apache-2.0
"""docs/monitoring as Prometheus itself reads it: promtool is of Debian's package prometheus."""

from __future__ import annotations

import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_are_ones() -> None:
    told = promtool("check", "rules", "--lint-fatal", "remusdb.rules.yml")
    assert told.returncode == 0, told.stdout + told.stderr


def test_each_alert_is_silent_until_it_is_true_and_then_fires() -> None:
    told = promtool("test", "rules", "remusdb.rules.test.yml")
    assert told.returncode == 0, told.stdout + told.stderr


def test_what_the_readme_says_to_put_into_prometheus_yml_is_one() -> None:
    (config,) = (FOLDER / "README.md").read_text().split("```yaml\n")[1:2]
    file = FOLDER.parents[1] / "build" / "prometheus.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(config.split("```")[0])
    told = promtool("check", "config", "--syntax-only", str(file))
    assert told.returncode == 0, told.stdout + told.stderr
