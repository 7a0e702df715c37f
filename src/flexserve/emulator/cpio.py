"""Archives in the form that Linux unpacks at boot ("newc", Documentation/driver-api/early-userspace).

Reproducible: the same entries give the same bytes. No owner but root, no times, inode numbers by order.
"""

from __future__ import annotations

import stat

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"


class Archive:
    """An archive that grows; parents come before children, as the kernel wants them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inodes = 0

    def folder(self, path: str) -> None:
        """Add a folder."""
        self._add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file."""
        self._add(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node."""
        self._add(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def closed(self) -> bytes:
        """Return the archive as it is now, with its end."""
        return b"".join([*self._parts, self._entry(_TRAILER, 0, b"", (0, 0), inode=0)])

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inodes += 1
        self._parts.append(self._entry(path.strip("/"), mode, content, device, inode=self._inodes))

    @staticmethod
    def _entry(path: str, mode: int, content: bytes, device: tuple[int, int], *, inode: int) -> bytes:
        name = path.encode() + b"\0"
        links, owner, group, time, checksum = 1, 0, 0, 0, 0
        fields = (inode, mode, owner, group, links, time, len(content), 0, 0, *device, len(name), checksum)
        head = _MAGIC.encode() + b"".join(b"%08X" % field for field in fields) + name
        return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
