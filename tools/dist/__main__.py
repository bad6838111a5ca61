# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.dist`: the wheel and the .deb, in dist/."""

from __future__ import annotations

from tools.dist import deb, wheel
from tools.lab.paths import REPO

if __name__ == "__main__":
    out = REPO / "dist"
    out.mkdir(exist_ok=True)
    made = wheel.build(out)
    for file in (made, deb.build(made, out)):
        print(f"{file.relative_to(REPO)}  {file.stat().st_size:,} bytes")
