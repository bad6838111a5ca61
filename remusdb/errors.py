# SPDX-License-Identifier: Apache-2.0
"""The one error tree.

    RemusError                 1  E-FAILED
    ├── UsageError             2  E-USAGE          bad command line
    │   └── ConfigError        2  E-CONFIG         a config that cannot be loaded; names the key
    ├── NotProtected           3  E-NOT-PROTECTED
    ├── RefusedForSafety       4  E-UNSAFE         what was asked could lose acknowledged data
    ├── PeerUnreachable        5  E-PEER
    │   ├── PeerRefused        5  E-PEER-REFUSED   certificate, version, or its own reason
    │   │   └── NoStandby      5  E-NO-STANDBY     the agent's word that it cannot take the VM over
    │   ├── BadFrame           5  E-FRAME          the stream is not what the protocol allows
    │   └── ArbiterUnreachable 5  E-ARBITER        etcd gave no answer that can be used
    │       └── ArbiterSilent  5  E-ARBITER-SILENT it was told to change a record, and may have
    ├── Fenced                 7  E-FENCED         a newer term exists: this side must stay silent
    ├── CannotProtect          8  E-PREFLIGHT      this VM or host cannot be protected
    ├── VmError                1  E-VM             QEMU or libvirt said no
    │   ├── BadXml             1  E-XML            a document that is not what libvirt writes
    │   ├── LibvirtAway        1  E-LIBVIRT        libvirtd is gone, or does not answer in time
    │   └── DevicesChanged     1  E-DEVICES        the VM has other devices than its standby
    ├── UnreadableState        1  E-STATE          what was saved of a VM cannot be read
    ├── GateError              1  E-GATE
    ├── DiskError              1  E-DISK
    └── NoThread               1  E-THREADS        this process can have no more threads

Each class carries its exit code and a stable id; `hint` says what to do. Errors of libraries are wrapped
at the adapter, with `from`.
"""

from __future__ import annotations


class RemusError(Exception):
    """Something failed; the message names what, the hint says what to do."""

    exit_code = 1
    id = "E-FAILED"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(RemusError):
    """The command line cannot be understood."""

    exit_code = 2
    id = "E-USAGE"


class ConfigError(UsageError):
    """A configuration file cannot be used; the message names file and key."""

    id = "E-CONFIG"


class NotProtected(RemusError):
    """The VM is not protected, so what was asked makes no sense."""

    exit_code = 3
    id = "E-NOT-PROTECTED"


class RefusedForSafety(RemusError):
    """Doing this could lose acknowledged data or make two VMs speak."""

    exit_code = 4
    id = "E-UNSAFE"


class PeerUnreachable(RemusError):
    """The other host, or a daemon, does not answer."""

    exit_code = 5
    id = "E-PEER"


class PeerRefused(PeerUnreachable):
    """The other host answered and refused."""

    id = "E-PEER-REFUSED"


class NoStandby(PeerRefused):
    """The agent gave its word that it has no replica of this session, and so cannot take over."""

    id = "E-NO-STANDBY"


class BadFrame(PeerUnreachable):
    """The stream broke the protocol: the session is dropped, nothing of the open epoch is used."""

    id = "E-FRAME"


class ArbiterUnreachable(PeerUnreachable):
    """The arbiter gave no answer that can be used; what was asked is not done and never will be."""

    id = "E-ARBITER"


class ArbiterSilent(ArbiterUnreachable):
    """The arbiter was sent a change and gave no definite answer: it may have made it, or may still."""

    id = "E-ARBITER-SILENT"


class Fenced(RemusError):
    """A newer term exists: this side must stay silent. `term`: that term, 0 where it is not known."""

    exit_code = 7
    id = "E-FENCED"

    def __init__(self, message: str, *, hint: str = "", term: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.term = term


class CannotProtect(RemusError):
    """This VM, or one of the hosts, does not meet the preconditions."""

    exit_code = 8
    id = "E-PREFLIGHT"


class VmError(RemusError):
    """QEMU or libvirt refused a step."""

    id = "E-VM"


class BadXml(VmError):
    """XML that cannot be read: torn, too large, too deep, or with a document type."""

    id = "E-XML"


class LibvirtAway(VmError):
    """libvirtd is gone or does not answer: nothing is known of the VM by that, QEMU runs on without it."""

    id = "E-LIBVIRT"


class DevicesChanged(VmError):
    """A device was attached, detached or changed: what the backup holds cannot go on with it."""

    id = "E-DEVICES"


class UnreadableState(RemusError):
    """The file with a VM's term and owner is damaged: nothing is done with this VM, others are not concerned."""

    id = "E-STATE"


class GateError(RemusError):
    """The output gate could not be built or lost its process."""

    id = "E-GATE"


class DiskError(RemusError):
    """A disk mirror or a replica image failed."""

    id = "E-DISK"


class NoThread(RemusError):
    """This process can have no more threads: a limit, or memory, is used up."""

    id = "E-THREADS"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or "see TasksMax (systemctl status), `ulimit -u` and free memory")


def error_of(id_: str, message: str, hint: str = "") -> RemusError:
    """The error that a control channel carried, as an exception of its own class again."""
    known: dict[str, type[RemusError]] = {}
    for kind in _tree(RemusError):  # a subclass without an id of its own is told as its base
        known.setdefault(kind.id, kind)
    return known.get(id_, RemusError)(message, hint=hint)


def _tree(cls: type[RemusError]) -> list[type[RemusError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _tree(child)]
