# SPDX-License-Identifier: Apache-2.0
"""For all tests: an example that takes long on a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("remusdb", deadline=None)
settings.load_profile("remusdb")
