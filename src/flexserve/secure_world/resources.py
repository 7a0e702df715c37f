"""What a secure world stands on: memory, who grants it, an NPU perhaps, and a host that confines it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from flexserve.platforms.linux.attack_vectors import DESCRIBED, assess, describe
from flexserve.platforms.linux.own_memory import OwnMemory
from flexserve.platforms.linux.sandbox import Sandbox
from flexserve.platforms.ports import Npu, SecureMemory

if TYPE_CHECKING:
    from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
    from flexserve.platforms.trustzone.guest_pages import GuestPages


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What is asked of the host's kernel before the sandbox closes."""

    ram: int  # bytes
    own: OwnMemory
    reach: str  # what of root it keeps out, in the label's words

    @classmethod
    def now(cls) -> Host:
        """Ask."""
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(ram, OwnMemory(), describe(assess(vectors=DESCRIBED)))


@dataclasses.dataclass(frozen=True, slots=True)
class Guest:
    """The machine whose kernel grants memory: its pages, not begun yet, and its NPU if it has one.

    `firmware`, `firmware_authority`: SHA-512 of what was verified and started on it, and of who signed that.
    `end` is called when the machine is gone.
    """

    pages: GuestPages
    npu: TrustZoneNpu | None
    end: Callable[[], None]
    firmware: bytes
    firmware_authority: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class PlatformResources:
    """What a platform provides. `guest` None: a program of the normal world grants memory."""

    memory: SecureMemory
    ram: int  # bytes of the machine that the memory is of
    host: Host
    sandbox: Sandbox
    guest: Guest | None = None

    @property
    def npu(self) -> Npu | None:
        """The matrix engine that may be lent."""
        return self.guest.npu if self.guest is not None else None

    @property
    def summary(self) -> str:
        """The label: of the memory, of root where the memory is to be kept from it, of the sandbox."""
        protection = self.memory.protection
        root = [self.host.reach] if protection.protected and self.guest is None else []
        return " ".join([protection.summary, *root, self.sandbox.summary])
