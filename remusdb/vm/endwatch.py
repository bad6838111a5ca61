# SPDX-License-Identifier: Apache-2.0
"""Why a VM ends, by QEMU's own word: its SHUTDOWN event comes before QEMU takes anything down.

Without it the first sign of a guest that powers itself off would be a disk mirror that breaks. A signal alone says
little: `virsh destroy` sends one, and so does a host that goes down; libvirt tells which of the two it was.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import libvirt
import libvirt_qemu

from remusdb.errors import VmError
from remusdb.jsontext import parse_object
from remusdb.reasons import Code
from remusdb.vm.domain import Domain

QEMU_END_S = 0.25  # after a failed cut: how long a QEMU that was killed may take to end
SIGNAL = "host-signal"
WORD_S = 0.1  # for a word that is on its way, once QEMU's end was seen otherwise
LIBVIRT_S = 5.0  # for libvirt's word on a VM that a signal ended: seen 3.5 s after QEMU's end, on a busy host
# qapi/run-state.json, ShutdownCause
CAUSES = {
    "guest-shutdown": Code.ENDED_BY_GUEST,
    "guest-reset": Code.ENDED_BY_REBOOT,
    "guest-panic": Code.ENDED_BY_CRASH,
    SIGNAL: Code.ENDED_BY_DESTROY,
    "host-qmp-quit": Code.ENDED_BY_QUIT,
}


class EndWatch:
    """Watches one domain for its end, from the event loop's thread."""

    def __init__(self, connection: libvirt.virConnect, domain: Domain) -> None:
        self._domain = domain
        self._cause = ""
        self._panicked = False
        self._stopped = threading.Event()  # libvirt told how
        self._told = threading.Event()  # one of the two did
        self._destroyed = False
        self.renew(connection)

    @property
    def coming(self) -> bool:
        """Whether QEMU said that the VM ends: somebody wanted it off, a QEMU that crashes or is killed says nothing."""
        return bool(self._cause)

    @property
    def by_signal(self) -> bool:
        """Whether QEMU was ended by a signal while its guest ran: from libvirt, or from anybody."""
        return self._cause == SIGNAL

    def await_word(self, timeout_s: float) -> None:
        """Wait for QEMU's word or libvirt's, which comes from libvirt in either case: `virsh destroy` may swallow the
        first. Not long where libvirt is away: what was lost on the way never comes."""
        self._told.wait(timeout_s if self._connection.isAlive() else WORD_S)

    def was_destroyed(self, timeout_s: float = LIBVIRT_S) -> bool:
        """Whether somebody asked libvirt to end it (`virsh destroy`). False where libvirt is away, or says nothing."""
        self._stopped.wait(timeout_s if self._connection.isAlive() else 0)
        return self._destroyed

    @property
    def why(self) -> Code:
        """Why it ended, for a VM that somebody wanted off."""
        cause = self._cause or (SIGNAL if self._destroyed else "")
        return CAUSES.get("guest-panic" if self._panicked else cause, Code.ENDED)

    def renew(self, connection: libvirt.virConnect) -> None:
        """Watch over this connection from now on: a registration ends with its connection."""
        self._connection = connection
        try:
            self._ids = [
                libvirt_qemu.qemuMonitorEventRegister(connection, self._domain.handle, name, self._on_event, None, 0)
                for name in ("SHUTDOWN", "GUEST_PANICKED", "RESET")
            ]
            self._lifecycle = connection.domainEventRegisterAny(
                self._domain.handle, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
            )
        except libvirt.libvirtError as exc:
            raise VmError(f"QEMU's events cannot be watched: {exc}") from exc

    def close(self) -> None:
        """Watch no longer. Quiet where the connection is gone, and the registration with it."""
        for number in self._ids:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt_qemu.qemuMonitorEventDeregister(self._connection, number)
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.domainEventDeregisterAny(self._lifecycle)

    def _on_lifecycle(self, _connection: Any, _domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._destroyed = detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED
            self._stopped.set()
            self._told.set()

    def _on_event(self, _c: Any, _d: Any, event: str, _s: int, _us: int, details: str | None, _o: Any) -> None:
        if event == "RESET":  # it did not end: `virsh reboot` lets the guest shut down, then resets it
            self._cause, self._panicked = "", False
        elif event == "GUEST_PANICKED":
            self._panicked = True
        elif not self._cause:  # after a guest's own shutdown libvirt ends QEMU by a signal, which is told as well
            self._cause = reason_in(details)
            self._told.set()


def reason_in(details: str | None) -> str:
    """The reason in such an event of QEMU's; `?` where it gives none."""
    with contextlib.suppress(ValueError):
        reason = parse_object(details or "{}").get("reason")
        return reason if isinstance(reason, str) and reason else "?"
    return "?"
