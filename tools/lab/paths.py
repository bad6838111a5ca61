# SPDX-License-Identifier: Apache-2.0
"""Where the lab keeps its things: all under the repository's build/, but for one state folder in /run."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BUILD = REPO / "build"
CACHE = BUILD / "cache"
LABS = BUILD / "lab"
# One folder a lab. It names the owner, so that a lab whose owner died can be found and removed.
STATE = Path("/run/remusdb-lab")
NETNS = Path("/run/netns")
