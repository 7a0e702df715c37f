"""What Linux says about memory, read from made-up /proc and cgroup trees, and from the real ones."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux.normal_memory import LinuxNormalMemory
from flexserve.units import GIB, KIB, MIB

MEMINFO = (
    "MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:    8388608 kB\nHugePages_Total: 0\n"
)
PRESSURE = (
    "some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"
)


def put(root: Path, files: dict[str, str]) -> LinuxNormalMemory:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return LinuxNormalMemory(root=root)


def test_a_machine_without_limits_or_psi(tmp_path: Path) -> None:
    sample = put(tmp_path, {"proc/meminfo": MEMINFO}).sample()
    assert (sample.total, sample.available, sample.stall) == (16 * GIB, 8 * GIB, None)


def test_the_stall_is_the_some_line_of_the_last_ten_seconds(tmp_path: Path) -> None:
    memory = put(tmp_path, {"proc/meminfo": MEMINFO, "proc/pressure/memory": PRESSURE})
    assert memory.sample().stall == 12.34


@pytest.mark.parametrize(
    "text", ["", "some avg10=nonsense", "full avg10=1.00 avg60", "some avg10=12345.0 avg60"]
)
def test_a_garbled_psi_file_is_no_psi(tmp_path: Path, text: str) -> None:
    assert put(tmp_path, {"proc/meminfo": MEMINFO, "proc/pressure/memory": text}).sample().stall is None


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB", "MemTotal: x kB\nMemAvailable: y kB"])
def test_an_unusable_meminfo_is_a_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(NormalWorldError, match="Mem"):
        put(tmp_path, {"proc/meminfo": text}).sample()


def test_a_missing_proc_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NormalWorldError, match="cannot be read"):
        LinuxNormalMemory(root=tmp_path).sample()


def test_a_limit_of_cgroup_v2_bounds_both_numbers_and_its_cold_cache_counts_as_free(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/a/b"
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/a/b\n",
            f"{folder}/memory.max": f"{4 * GIB}\n",
            f"{folder}/memory.high": "max\n",
            f"{folder}/memory.current": f"{3 * GIB}\n",
            f"{folder}/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    sample = memory.sample()
    assert (sample.total, sample.available) == (4 * GIB, 2 * GIB)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "0\n",
            "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{GIB}\n",
        },
    )
    sample = memory.sample()
    assert (sample.total, sample.available) == (2 * GIB, GIB)


def test_what_files_keep_cached_is_available_but_not_free(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/a"
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/a\n",
            f"{folder}/memory.max": f"{900 * KIB}\n",
            f"{folder}/memory.current": f"{800 * KIB}\n",
            f"{folder}/memory.stat": f"inactive_file {100 * KIB}\nactive_file {200 * KIB}\nunevictable 5\n",
        },
    )
    sample = memory.sample()
    assert (sample.available, sample.free) == (400 * KIB, 100 * KIB)


def test_a_machine_without_limits_has_its_own_free_memory_and_refaults(tmp_path: Path) -> None:
    memory = put(tmp_path, {"proc/meminfo": MEMINFO, "proc/vmstat": "workingset_refault_file 100\n"})
    assert memory.sample().free == 1000 * KIB
    put(tmp_path, {"proc/vmstat": "workingset_refault_anon 9\nworkingset_refault_file 350\n"})
    assert memory.sample().refaulted == 250 * os.sysconf("SC_PAGE_SIZE")


def test_refaults_and_stalls_are_those_of_the_tightest_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/vmstat": "workingset_refault_file 0\n",
        "proc/pressure/memory": PRESSURE,
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/a/b/memory.stat": "workingset_refault_file 7\n",
        "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/a/memory.stat": "workingset_refault_file 50\n",
        "sys/fs/cgroup/a/memory.pressure": "some avg10=2.50 avg60=1.00 avg300=0.00 total=5\n",
    }
    memory = put(tmp_path, files)
    assert memory.sample().stall == 2.5
    put(tmp_path, {"sys/fs/cgroup/a/memory.stat": "workingset_refault_file 60\n"})
    assert memory.sample().refaulted == 10 * os.sysconf("SC_PAGE_SIZE")


def test_refaults_of_version_1_count_the_cgroups_below(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory/job"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/job\n",
        f"{mount}/memory.limit_in_bytes": f"{GIB}\n",
        f"{mount}/memory.stat": "workingset_refault_file 1\ntotal_workingset_refault_file 30\n",
    }
    memory = put(tmp_path, files)
    assert memory.sample().refaulted == 0
    put(tmp_path, {f"{mount}/memory.stat": "total_workingset_refault_file 31\n"})
    assert memory.sample().refaulted == os.sysconf("SC_PAGE_SIZE")


def test_refaults_only_ever_count_up_when_limits_come_and_go(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/a"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/vmstat": "workingset_refault_file 900000\n",
        "proc/self/cgroup": "0::/a\n",
        f"{folder}/memory.max": f"{GIB}\n",
        f"{folder}/memory.stat": "workingset_refault_file 5\n",
    }
    memory, seen = put(tmp_path, files), []
    for limit in (f"{GIB}\n", "max\n", f"{GIB}\n"):
        put(tmp_path, {f"{folder}/memory.max": limit})
        seen.append(memory.sample().refaulted)
    assert seen == [0, 0, 0]


def test_a_process_that_is_moved_is_followed(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/b/memory.max": f"{GIB}\n", "proc/self/cgroup": "0::/\n"}
    memory = put(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert memory.sample().total == 16 * GIB
    put(tmp_path, {"proc/self/cgroup": "0::/b\n"})
    assert memory.sample().total == GIB


def test_version_2_beside_version_1_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "3:cpu:/\n0::/a\n",
            "sys/fs/cgroup/unified/a/memory.max": f"{GIB}\n",
        },
    )
    assert memory.sample().total == GIB


def test_a_limit_of_cgroup_v1_is_found_when_the_path_is_the_hosts(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/deadbeef\n0::/\n",
            f"{mount}/memory.limit_in_bytes": f"{GIB}\n",
            f"{mount}/memory.usage_in_bytes": f"{GIB // 2}\n",
            f"{mount}/memory.stat": f"total_inactive_file {256 * MIB}\n",
        },
    )
    sample = memory.sample()
    assert (sample.total, sample.available) == (GIB, 768 * MIB)


def test_no_limit_as_version_1_writes_it_changes_nothing(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    memory = put(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/\n",
            f"{mount}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{mount}/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    assert memory.sample().available == 8 * GIB


def test_a_cgroup_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup"
    files = {f"{folder}/memory.max": f"{GIB}", f"{folder}/memory.current": f"{2 * GIB}"}
    memory = put(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/../..\n", **files})
    assert memory.sample().available == 0


def test_charged_is_the_resident_field_of_statm(tmp_path: Path) -> None:
    memory = put(tmp_path, {"proc/7/statm": "765 439 411 5 0 123 0\n"})
    assert memory.charged(7) == 439 * os.sysconf("SC_PAGE_SIZE")
    assert memory.charged(8) == 0


def test_charged_sees_this_process_grow_and_shrink() -> None:
    memory = LinuxNormalMemory()
    before = memory.charged(os.getpid())
    block = mmap.mmap(-1, 64 * MIB)
    for offset in range(0, 64 * MIB, 4 * KIB):
        block[offset] = 1
    grown = memory.charged(os.getpid())
    block.close()
    assert grown - before > 60 * MIB
    assert grown - memory.charged(os.getpid()) > 60 * MIB


def test_the_real_machine_has_memory() -> None:
    sample = LinuxNormalMemory().sample()
    assert 0 < sample.available <= sample.total


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=40))
def test_any_bytes_in_any_file_give_a_sample_or_a_clear_error(
    tmp_path: Path, meminfo: bytes, pressure: bytes, cgroup: bytes, limit: bytes
) -> None:
    put(
        tmp_path, {"proc/meminfo": "", "proc/pressure/memory": "", "proc/self/cgroup": "", "proc/1/statm": ""}
    )
    put(tmp_path, {"sys/fs/cgroup/memory.max": ""})
    (tmp_path / "proc/meminfo").write_bytes(MEMINFO.encode() + meminfo)
    (tmp_path / "proc/pressure/memory").write_bytes(pressure)
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/\n" + cgroup)
    (tmp_path / "proc/1/statm").write_bytes(pressure)
    (tmp_path / "sys/fs/cgroup/memory.max").write_bytes(limit)
    memory = LinuxNormalMemory(root=tmp_path)
    try:
        sample = memory.sample()
    except NormalWorldError:
        return
    assert sample.available >= 0
    assert memory.charged(1) >= 0
