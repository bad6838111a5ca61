# SPDX-License-Identifier: Apache-2.0
"""Files of ours in a folder that another user may write, above all QEMU's.

Such a user can put a link, at any moment, where a file of ours was. So a name is looked up once: what is done to a file
after that is done to its descriptor. And a folder is reached step by step: a link on the way is followed only where
nobody but root could have made it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from remusdb.errors import ConfigError, VmError

PASS_THROUGH = 0o711  # of a folder in which QEMU's user has files: it comes to them by name, and sees no others
MOST_LINKS = 40  # the kernel's own limit: MAXSYMLINKS, include/linux/namei.h
UCRED = struct.Struct("3i")  # struct ucred of <sys/socket.h>: pid, uid, gid


def open_folder(path: Path) -> int:
    """A descriptor of this folder, to be named as `dir_fd`; the caller closes it. OSError: see `_walk`."""
    fd = _walk(path)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return fd


def open_file(path: Path, flags: int) -> int:
    """Open what is there already; the caller closes it, and looks what it is. OSError: see `_walk`."""
    fd = _walk(path)
    try:
        return reopen(fd, flags)
    finally:
        os.close(fd)


def _walk(path: Path) -> int:
    """A descriptor (O_PATH) of what the path leads to.

    OSError: also (ELOOP) for a link, on the way or at its end, that others than root may have made.
    """
    todo, links = list(reversed(path.absolute().parts)), 0
    at = _step(None, "/")
    try:
        while todo:
            below = _step(at, todo.pop())
            if stat.S_ISLNK(os.fstat(below).st_mode):
                links += 1
                target = Path(os.readlink("", dir_fd=below))
                os.close(below)
                if links > MOST_LINKS or not only_ours(os.fstat(at)):
                    raise OSError(errno.ELOOP, "a link on the way, which others may have made", str(path))
                todo += reversed(target.parts)
            else:
                os.close(at)
                at = below
    except BaseException:
        os.close(at)
        raise
    return at


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[int]:
    """`open_folder` for a while; VmError where that fails."""
    try:
        folder = open_folder(path)
    except OSError as exc:
        raise VmError(f"folder {path}: {exc.strerror}") from exc
    try:
        yield folder
    finally:
        os.close(folder)


def _step(at: int | None, name: str) -> int:
    """What stands there, be it a link; an absolute name starts again."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)


def only_ours(found: os.stat_result) -> bool:
    """Whether nobody but root (and whoever we are) may write this."""
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def make_fifo(folder: int, name: str, uid: int, gid: int) -> int:
    """A new FIFO that this user may write, in place of what had its name; its descriptor (O_PATH), see `reopen`.

    VmError when something else stands there when it is looked at: then nothing was given away.
    """
    remove(folder, name)
    os.mkfifo(name, 0o600, dir_fd=folder)
    fd = _step(folder, name)
    try:
        found = os.fstat(fd)
        if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise VmError(
                f"{name} is not what was made under this name a moment ago: somebody else puts files there",
                hint="only QEMU's own user can: look at what its processes are doing, the VM's above all",
            )
        os.chown(f"/proc/self/fd/{fd}", uid, gid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove(folder: int, name: str) -> None:
    """Take a name out of a folder, whatever it stands for; quiet when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def reopen(fd: int, flags: int) -> int:
    """Open the very file that a descriptor of O_PATH stands for, whatever has its name by now."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def connect(sock: socket.socket, folder: int, name: str, pid: int) -> None:
    """Connect to the unix socket of that name, on which process `pid` listens. OSError; VmError for another process."""
    fd = _step(folder, name)
    try:
        sock.connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    require_peer(sock, pid)


def require_peer(sock: socket.socket, pid: int) -> None:
    """VmError unless it is this process that listens at the other end of a unix socket."""
    found = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[0]
    if found != pid:
        raise VmError(
            f"process {found} listens on the socket of QEMU's process {pid}",
            hint=f"see what took the place of QEMU's own: ps -fp {found}",
        )


def make_folder(path: Path, mode: int = PASS_THROUGH) -> None:
    """The folder with exactly this mode whatever the umask is, and those above it; one that is there stays as it is.

    OSError: also where users other than root may write in it, for then no name in it is ours to trust.
    """
    for folder in (*reversed(path.parents), path):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            continue
        os.chmod(folder, mode)
    if not only_ours(path.stat()):
        raise PermissionError(errno.EPERM, "users other than root may write in this folder", str(path))


def require_only_ours(path: Path, what: str) -> None:
    """ConfigError where others than root may put files or links into a folder in which root works by name."""
    if path.exists() and not only_ours(path.stat()):
        raise ConfigError(
            f"{what} {path}: users other than root may write there",
            hint=f"chown root: {path}; chmod go-w {path} (QEMU's user needs to pass through, not to write)",
        )
