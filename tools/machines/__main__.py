# SPDX-License-Identifier: Apache-2.0
"""`make machines`: two machines of their own kind, a protected VM, a power failure, and the way back.

    python -m tools.machines [--until STEP]

Progress is on stderr. The last line on stdout is one JSON object, which build/machines/report.json holds as well.
Consoles of both machines, and at the end their journals, are kept in build/machines/. Exit 1 if anything was amiss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil

from rich.markup import escape

from tools.lab import accel
from tools.lab.paths import BUILD
from tools.machines import image
from tools.machines.guest_agent import AgentError
from tools.machines.site import Site
from tools.machines.story import Story
from tools.show import TROUBLE, run_to_exit, say, step

_FOLDER = BUILD / "machines"
_STEPS = ("boot", "install", "protect", "kill", "rejoin", "reboot")


def _keep_journals(site: Site) -> None:
    for machine in site.machines.values():
        with contextlib.suppress(AgentError):
            text = machine.run("journalctl --no-pager -o short-precise | tail -n 20000", 120.0)
            (_FOLDER / f"{machine.name}-journal.log").write_text(text)


def main() -> int:
    """As `make machines` calls it; the exit code."""
    parser = argparse.ArgumentParser(prog="make machines")
    parser.add_argument("--until", choices=_STEPS, default=_STEPS[-1], help="the last step to do")
    args = parser.parse_args()
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    with step("the machines' image (some minutes if it is not there yet)"):
        built = image.ensure(_FOLDER / "image.log")
    kind = accel.qemu_word(built)
    with Site(built, _FOLDER, kind) as site:
        story = Story(site, site.folder / "payload", image.key(built))
        story.figures["accel"] = kind
        try:
            for name in _STEPS[: _STEPS.index(args.until) + 1]:
                getattr(story, name)()
            story.look_back()
        except TROUBLE as error:
            story.complaints.append(str(error))
        _keep_journals(site)
    for complaint in story.complaints:
        say(f"  [bold red]{escape(complaint)}[/bold red]")
    report = json.dumps({**story.figures, "until": args.until, "complaints": story.complaints})
    (_FOLDER / "report.json").write_text(report + "\n")
    print(report)
    return 1 if story.complaints else 0


if __name__ == "__main__":
    run_to_exit(main, "the two machines")
