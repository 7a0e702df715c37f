"""What the normal world's kernel is told about the machine: a device tree, as source text.

It lists what the monitor lets the normal world reach, and nothing else: no SMMU (the monitor owns
it), no fw_cfg and no virtio-mmio (they reach memory past it), no second UART. Addresses are those of
QEMU's `virt` machine with `highmem=off`.
"""

from __future__ import annotations

import dataclasses

from flexserve.platforms.trustzone.abi import (
    DOORBELL_INTID,
    HIDDEN_BYTES,
    NPU_WINDOW_BYTES,
    NPU_WINDOW_OFFSET,
)
from flexserve.units import KIB, MIB

RAM_BASE = 0x4000_0000
INITRD = 0x4800_0000  # where the machine loads it
# The ring of messages with the secure world lies below the kernel. 512 KiB in all are some long prompts each
# way; the secure OS takes twice as much at most.
RING, RING_BYTES = RAM_BASE, 512 * KIB
# What the guest's disk reads and writes for a program goes through a buffer beside it.
BUFFER, BUFFER_BYTES = RING + RING_BYTES, 512 * KIB
# The kernel's own tests of its cryptography take a seventh of a boot.
_BOOT = "console=ttyAMA0 loglevel=4 panic=-1 cryptomgr.notests"
_FIRST_SHARED = 32  # interrupt numbers below are of one CPU each
_PINS, _SLOTS, _FIRST_SPI = 4, 4, 3  # of the PCI host: interrupt 3 + (slot + pin - 1) mod 4


@dataclasses.dataclass(frozen=True, slots=True)
class Board:
    """A machine as the kernel sees it. With `npu` it has one, whose registers lie in the monitor's memory.

    `contiguous` bytes (whole 4 MiB) are set aside as a CMA area, at the end of what the OS may use:
    what the baselines that need contiguous memory allocate from.
    """

    ram_bytes: int
    cpus: int
    initrd_bytes: int
    contiguous: int = 0
    bootargs: str = ""
    npu: bool = False

    def source(self) -> str:
        """Return the device tree's source."""
        carve = RAM_BASE + self.ram_bytes - HIDDEN_BYTES
        areas = ("ring", "buffer", *(["contiguous"] if self.contiguous else []))
        return _TREE.format(
            bootargs=f"{_BOOT} {self.bootargs}".strip(),
            initrd=_cell(INITRD),
            initrd_end=_cell(INITRD + self.initrd_bytes),
            cpus="".join(_CPU.format(number=number) for number in range(self.cpus)),
            ram=f"{_cell(RAM_BASE)} {_cell(self.ram_bytes)}",
            carve_at=f"{carve:x}",
            carve=f"{_cell(carve)} {_cell(HIDDEN_BYTES)}",
            contiguous=self._area(carve),
            ring_at=f"{RING:x}",
            ring=f"{_cell(RING)} {_cell(RING_BYTES)}",
            buffer_at=f"{BUFFER:x}",
            buffer=f"{_cell(BUFFER)} {_cell(BUFFER_BYTES)}",
            areas=", ".join(f"<&{name}>" for name in areas),
            area_names=", ".join(f'"{name}"' for name in areas),
            doorbell=DOORBELL_INTID - _FIRST_SHARED,
            interrupt_map="\n\t\t\t".join(_interrupts()),
            npu=self._npu(carve + NPU_WINDOW_OFFSET),
        )

    def _area(self, end: int) -> str:
        if not self.contiguous:
            return ""
        start = (end - self.contiguous) & -(4 * MIB)
        return _AREA.format(at=f"{start:x}", reg=f"{_cell(start)} {_cell(self.contiguous)}")

    def _npu(self, window: int) -> str:
        if not self.npu:
            return ""
        return _NPU.format(at=f"{window:x}", reg=f"{_cell(window)} {_cell(NPU_WINDOW_BYTES)}")


def _cell(value: int) -> str:
    return f"{value:#x}"


def _interrupts() -> list[str]:
    """Return the rows of the PCI host's interrupt map, for the slots that repeat."""
    return [
        f"<{slot << 11:#x} 0 0 {pin} &gic 0 {_FIRST_SPI + (slot + pin - 1) % _PINS} 4>"
        + (";" if (slot, pin) == (_SLOTS - 1, _PINS) else ",")
        for slot in range(_SLOTS)
        for pin in range(1, _PINS + 1)
    ]


_CPU = """
		cpu@{number} {{
			device_type = "cpu";
			compatible = "arm,cortex-a76";
			reg = <{number}>;
			enable-method = "psci";
		}};"""

_AREA = """
		contiguous: contiguous@{at} {{
			compatible = "shared-dma-pool";
			reusable;
			linux,cma-default;
			reg = <{reg}>;
		}};"""

_NPU = """
	/* It has no interrupt line: its driver looks. What it reaches is up to the monitor. */
	npu@{at} {{
		compatible = "flexserve,flexnpu";
		dma-coherent;
		reg = <{reg}>;
	}};
"""

_TREE = """/dts-v1/;

/ {{
	compatible = "linux,dummy-virt";
	model = "FlexServe virt";
	#address-cells = <1>;
	#size-cells = <1>;
	interrupt-parent = <&gic>;

	chosen {{
		bootargs = "{bootargs}";
		stdout-path = "/uart@9000000";
		linux,initrd-start = <{initrd}>;
		linux,initrd-end = <{initrd_end}>;
	}};

	psci {{
		compatible = "arm,psci-1.0", "arm,psci-0.2";
		method = "smc";
	}};

	cpus {{
		#address-cells = <1>;
		#size-cells = <0>;
{cpus}
	}};

	memory@40000000 {{
		device_type = "memory";
		reg = <{ram}>;
	}};

	reserved-memory {{
		#address-cells = <1>;
		#size-cells = <1>;
		ranges;

		/* The monitor's own. */
		monitor@{carve_at} {{
			no-map;
			reg = <{carve}>;
		}};

		/* Messages with the secure world. */
		ring: ring@{ring_at} {{
			reg = <{ring}>;
		}};

		/* What the disk reads and writes for a program. */
		buffer: buffer@{buffer_at} {{
			reg = <{buffer}>;
		}};
{contiguous}
	}};

	timer {{
		compatible = "arm,armv8-timer";
		always-on;
		interrupts = <1 13 4>, <1 14 4>, <1 11 4>, <1 10 4>;
	}};

	gic: interrupt-controller@8000000 {{
		compatible = "arm,gic-v3";
		#interrupt-cells = <3>;
		#address-cells = <0>;
		interrupt-controller;
		reg = <0x08000000 0x10000>, <0x080a0000 0xf60000>;
	}};

	clock: clock {{
		compatible = "fixed-clock";
		#clock-cells = <0>;
		clock-frequency = <24000000>;
	}};

	uart@9000000 {{
		compatible = "arm,pl011", "arm,primecell";
		reg = <0x09000000 0x1000>;
		interrupts = <0 1 4>;
		clocks = <&clock>, <&clock>;
		clock-names = "uartclk", "apb_pclk";
	}};

	/* Bus 0 only: the monitor's table of devices has no row for others. */
	pcie@10000000 {{
		compatible = "pci-host-ecam-generic";
		device_type = "pci";
		#address-cells = <3>;
		#size-cells = <2>;
		#interrupt-cells = <1>;
		bus-range = <0 0>;
		linux,pci-domain = <0>;
		dma-coherent;
		reg = <0x3f000000 0x1000000>;
		ranges = <0x01000000 0 0 0x3eff0000 0 0x10000>,
			<0x02000000 0 0x10000000 0x10000000 0 0x2eff0000>;
		interrupt-map-mask = <0x1800 0 0 7>;
		interrupt-map =
			{interrupt_map}
	}};

	/* The doorbell of the secure world: an edge. */
	flexmem {{
		compatible = "flexserve,flexmem";
		interrupts = <0 {doorbell} 1>;
		memory-region = {areas};
		memory-region-names = {area_names};
	}};
{npu}}};
"""
