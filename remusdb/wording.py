# SPDX-License-Identifier: Apache-2.0
"""Reasons in plain English: what is so, and what to do about it. No other place composes such a sentence.

A part in brackets is left out where one of its parameters is empty; `[name?...]` is one that a parameter turns on.
"""

from __future__ import annotations

import re
from shlex import quote
from typing import Final

from remusdb.reasons import Code, Reason

_AGENT = "on {peer}: systemctl status remusdb-agent"
_DEAD = f"{_AGENT}; only if that host is off: remusdb unprotect {{vm}} --peer-is-dead (docs/runbooks/output-held.md)"
_ETCD = "bring etcd back; `remusdb check {vm}` says what is wrong with it"
_STILL = "[still?, and is paused as it was there]"
_STAYS = "[stays?; it stays so after a takeover]"

# code -> (what is so, what to do)
WORDS: Final[dict[Code, tuple[str, str]]] = {
    Code.OTHER: ("{why}", ""),
    Code.ERROR: ("{why}", "[{hint}]"),
    Code.ERROR_HELD: ("{why}; output is held", "[{hint}; ]to release it: remusdb unprotect {vm}"),
    Code.UNPROTECT_ASKED: ("unprotect was asked for", ""),
    Code.NOT_RUNNING: ("not running", ""),
    Code.NO_BACKUP: ("it runs without a backup", "remusdb protect {vm} --to HOST"),
    Code.NO_BACKUP_OFF: ("it has no backup", "remusdb protect {vm} --to HOST"),
    Code.EXPOSED: ("the newest state that {peer} holds is {seconds} s old", "why: journalctl -u remusdb-host"),
    Code.NOT_PROTECTED: ("it is {state}", ""),
    Code.HOST_SILENT: (
        "the host daemon does not answer: how the VMs that run here are is not known",
        "systemctl status remusdb-host",
    ),
    Code.NO_DAEMON: ("no daemon of this host answers: nothing is known", ""),
    Code.STARTING: ("protection begins: disks and memory are copied", ""),
    Code.REJOINING: ("protection resumes; output is held", ""),
    Code.PROTECTED_AGAIN: ("it is protected to {peer} again", ""),
    Code.FOLLOWING: ("epoch by epoch to {peer}", ""),
    Code.RECONNECTED: ("epoch by epoch to {peer}; reconnected", ""),
    Code.COPY_RECONNECTED: ("the initial sync to {peer} goes on; reconnected", ""),
    Code.ADOPTED: ("the host daemon was restarted; its worker goes on", ""),
    Code.WORKER_UNHEARD: (
        "the host daemon was restarted; its worker has not reported yet",
        "a worker of another version is not understood; protection goes on",
    ),
    Code.CUT_WAITS: ("{who} has not answered for {seconds} s; output waits", ""),
    Code.CLOCK_SLOW: ("the guest's clock is not corrected at each cut: {why}", ""),
    Code.PROVEN: ("the standby is proven: QEMU on the backup accepts this VM's state", ""),
    Code.UNPROVEN_REFUSED: (
        "QEMU on {peer} refuses to resume this VM, a takeover would boot its disks: {why}",
        "[{hint}]",
    ),
    Code.UNPROVEN_SILENT: ("the standby is not proven: agent {peer} did not report within {seconds} s", _AGENT),
    Code.UNPROVEN_UNABLE: ("the standby is not proven, this is retried: {why}", "[{hint}]"),
    Code.SUSPENDED: (f"it is suspended{_STAYS}", "to let it run: virsh resume {vm}"),
    Code.GUEST_SLEEPS: ("its guest sleeps", "to wake it: virsh dompmwakeup {vm}"),
    Code.GUEST_SHUT_DOWN: (f"its guest has shut down, its QEMU is preserved{_STAYS}", ""),
    Code.GUEST_CRASHED: (
        f"its guest has crashed, its QEMU is preserved{_STAYS}",
        "to start it again: virsh reset {vm}",
    ),
    Code.WATCHDOG: (
        f"its watchdog has stopped it{_STAYS}",
        "to let it run: virsh resume {vm}",
    ),
    Code.DUMPED: ("it is paused while libvirt writes a dump of it", ""),
    Code.DISK_FULL: (
        "QEMU has paused it: no space left on this host for disk {disks}",
        "make room, then: virsh resume {vm} (docs/runbooks/disk-full.md)",
    ),
    Code.DISK_ERROR: (
        "QEMU has paused it: I/O error of a disk of this host[ ({disks})]",
        "repair it, then: virsh resume {vm}",
    ),
    Code.STOPPED: (
        f"QEMU does not run it ({{status}}){_STAYS}",
        "see /var/log/libvirt/qemu/{vm}.log",
    ),
    Code.RUNS_AGAIN: ("the VM runs again", ""),
    Code.OUTPUT_DROPPED: (
        "{frames} network frames of the VM were dropped: more output came than the gate can take or hold ({mib} MiB)",
        "TCP sends them again, UDP is lost; the limit is protection.held_max_bytes",
    ),
    Code.OUTPUT_FITS: ("the gate has room again; nothing more was dropped", ""),
    Code.ARBITER_UNFIT: ("{why}; if a host were lost now, the other could not go on automatically", "[{hint}]"),
    Code.ARBITER_FIT: ("the arbiter accepts changes again", ""),
    Code.PEER_LOST: ("{why}; output is held until {peer} answers", _DEAD),
    Code.COPY_WAITS: ("{why}; the initial sync goes on when {peer} is back", _AGENT),
    Code.PEER_UNREACHABLE: (
        "{why}; the VM runs without a backup; retrying",
        f"{_AGENT}; to stop trying: remusdb unprotect {{vm}}",
    ),
    Code.PEER_UNREACHABLE_HELD: ("{why}; output is held until {peer} answers", _DEAD),
    Code.PEER_DECIDING: ("{peer} is deciding whether it takes the VM over", ""),
    Code.PEER_RENOUNCED: ("agent {peer} gave its replica up: {why}", ""),
    Code.PEER_UNHEARD_AT_END: ("{why}; and {peer} does not answer: output is held", _DEAD),
    Code.ALONE: ("the arbiter allows it to go on alone: {why}", ""),
    Code.GIVEN_BACK: ("{peer} could not run it", ""),
    Code.ALONE_FAILED: ("{why}; going on alone failed: {error}; output is held; retrying", ""),
    Code.ARBITER_REFUSES: (
        "{why}; the arbiter says that[ {owner} owns the VM in term {term}, and] it may not go on alone: output is held",
        _AGENT,
    ),
    Code.ARBITER_SILENT: ("{why}; the arbiter does not answer either: output is held", f"{_ETCD}; {_DEAD}"),
    Code.ARBITER_IN_DOUBT: ("the arbiter's answer was lost: output is held until it answers", _ETCD),
    Code.OWNED_ELSEWHERE: (
        "host {owner} has owned the VM since term {term}",
        "to have it back here, on {owner}: remusdb reprotect {vm} --to THIS-HOST",
    ),
    Code.QUARANTINED: (
        "host {owner} has owned the VM since term {term}; {note}",
        "to have it back here, on {owner}: remusdb reprotect {vm} --to THIS-HOST",
    ),
    Code.OWNER_UNCONFIRMED: (
        "{peer} says that host {owner} owns the VM, and {owner} did not confirm it",
        "is {owner} in this host's host.toml, and this host in its agent.toml?",
    ),
    Code.OWNER_DISPUTED: (
        "{peer} says that it owns the VM in term {term}, and had no right to take it over",
        "where it is not needed, on {peer}: remusdb forget {vm}",
    ),
    Code.TAKEN_OVER_HERE: (
        "taken over in term {term}[ ({why})]; it has no backup",
        "protect it: remusdb reprotect {vm} --to HOST",
    ),
    Code.OFF_UNDECIDED: ("the VM is off here; {peer} has not reported a takeover", _AGENT),
    Code.OFF: ("the VM is off; {peer} does not run it", "start it: virsh start {vm}"),
    Code.CANNOT_PROTECT: ("[{since}; ]{why}", "[{hint}]"),
    Code.WORKER_ENDED: ("the worker {how}[ (last: {last})]", "why: journalctl -u remusdb-host"),
    Code.WORKER_LOST: ("the worker {how}[ (last: {last})]; output stays held", "why: journalctl -u remusdb-host"),
    Code.NO_WORKER: ("no worker runs; output stays held[: {last}]", "another one is started automatically"),
    Code.ABANDONED_HELD: ("{why}; output is held until protect or unprotect succeeds", ""),
    Code.QEMU_DIED: ("QEMU died; {peer} takes over when its silence limit is reached", ""),
    Code.HOST_STOPS: ("the VM was shut down with its host", ""),
    Code.DEVICES_CHANGED: ("{why}", "[{hint}]"),
    Code.ENDED: ("the VM was shut down", ""),
    Code.ENDED_BY_GUEST: ("the guest shut itself down", ""),
    Code.ENDED_BY_REBOOT: ("the guest rebooted, and its definition has the VM end then (on_reboot)", ""),
    Code.ENDED_BY_CRASH: ("the guest crashed, and its definition has the VM end then (on_crash)", ""),
    Code.ENDED_BY_DESTROY: ("the VM was shut down from outside its guest: virsh destroy", ""),
    Code.ENDED_BY_QUIT: ("the VM was shut down from outside its guest: QEMU was told to quit", ""),
    Code.NO_SESSION: ("no session yet", ""),
    Code.COPY_ARRIVES: ("the initial sync runs", ""),
    Code.PROTECTED_TO_HERE: ("host {peer} protects it to this host", ""),
    Code.FOLLOWS: ("follows {peer} epoch by epoch", ""),
    Code.SESSION_LOST: ("session lost: {why}", "on {peer}: remusdb status {vm}"),
    Code.SESSION_BROKE: ("the session broke off: {why}", ""),
    Code.PRIMARY_ENDED_IT: ("the primary ended protection: {why}", ""),
    Code.PRIMARY_SILENT_IN_COPY: ("{peer} was silent for {silence_ms} ms in the initial sync", ""),
    Code.REPLICA_BROKE: ("{why}", ""),
    Code.NOT_STARTED: ("{why}", "[{hint}]"),
    Code.AGENT_STOPPED: ("the agent was stopped", ""),
    Code.AGENT_RESTARTED: ("the agent was restarted: there is no replica", ""),
    Code.FORGOTTEN: ("an operator ran `remusdb forget`", ""),
    Code.OVERRULED: ("the arbiter says that {by} owns the VM[, not {peer} in term {term}]", ""),
    Code.FAILOVER_ASKED: ("asked for with `remusdb failover`", ""),
    Code.SWITCHOVER_ASKED: ("switchover: {why}", ""),
    Code.PRIMARY_SILENT: ("{peer} was silent for {silence_ms} ms", ""),
    Code.PRIMARY_HEARD: ("{peer} is heard again", ""),
    Code.ARBITER_AWAITED: (
        "{peer} is silent; the arbiter is asked again whether this host may take over: {why}",
        (
            "bring etcd back; or, only if {peer} is off: remusdb failover {vm} --primary-is-dead "
            "(docs/runbooks/primary-host-died.md)"
        ),
    ),
    Code.ARBITER_ANSWERED: ("the arbiter has answered", ""),
    Code.TAKEOVER_REFUSED: ("{peer} is silent, but this host does not take over: {why}", "[{hint}]"),
    Code.TAKEOVER_TRIED: ("takeover failed: {why}", "[{hint}]"),
    Code.TAKEOVER_FAILED: ("takeover failed, the VM was not started: {why}", "[{hint}]"),
    Code.MAY_HAVE_RUN: (
        "[{since}; ]the agent died just then, and the VM is off: it may have run here, so no other host may run it",
        "its disks are here, complete: virsh start {vm} (where libvirt has no such VM, define it first)",
    ),
    Code.RESUMED_WARM: (
        f"[{{why}}; ]resumed where it was{_STILL}[; sessions reset inside a transaction: {{resets}}]",
        "[still?to let it run: virsh resume {vm}]",
    ),
    Code.RESUMED_COLD: (
        f"[{{why}}; ]booted from its disks, the standby could not be resumed: {{error}}{_STILL}",
        "[still?to let it run: virsh resume {vm}]",
    ),
}
_PART: Final = re.compile(r"\[(?:(\w+)\?)?([^\[\]]*)\]")
_NAME: Final = re.compile(r"\{(\w+)\}")


def words(reason: Reason | None) -> str:
    """What is so, in a sentence; empty where there is no reason."""
    return "" if reason is None else _filled(WORDS[reason.code][0], _flat(reason))


def hint(reason: Reason | None, vm: str) -> str:
    """What to do about it; empty: nothing, or nothing that is known."""
    return "" if reason is None else _filled(WORDS[reason.code][1], {**_flat(reason), "vm": quote(vm)})


def _flat(reason: Reason) -> dict[str, str]:
    return {name: words(of) if isinstance(of, Reason) else of for name, of in reason.params.items()}


def parameters(code: Code) -> tuple[set[str], set[str]]:
    """Those that a reason of this code must have, and those that it may have besides."""
    both = "".join(WORDS[code])
    needed = set(_NAME.findall(_PART.sub("", both))) - {"vm"}
    flags = {name for name, _ in _PART.findall(both) if name}
    return needed, (set(_NAME.findall(both)) | flags) - needed - {"vm"}


def _filled(template: str, params: dict[str, str]) -> str:
    def part(found: re.Match[str]) -> str:
        wanted = [*filter(None, [found[1]]), *_NAME.findall(found[2])]
        return found[2] if all(params.get(name) for name in wanted) else ""

    return _NAME.sub(lambda found: params.get(found[1], ""), _PART.sub(part, template))
