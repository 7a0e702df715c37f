"""Which system calls a process may still make: filters for seccomp(2), as literal tables.

A call that is in no table answers EPERM, which every library lives with. A call that only somebody
who runs foreign code here would make ends the process. Whoever needs one call more adds its name to
a table, and its two numbers to CALLS.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import struct

# ---- the tables -----------------------------------------------------------------------------------

# Number on x86-64 and on aarch64 (None: it does not exist there, and its newer form is used).
# fmt: off
CALLS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202), "accept4": (288, 242), "access": (21, None), "add_key": (248, 217),
    "alarm": (37, None), "bind": (49, 200), "bpf": (321, 280), "brk": (12, 214), "chroot": (161, 51),
    "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "close_range": (436, 436),
    "connect": (42, 203), "copy_file_range": (326, 285), "delete_module": (176, 106), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22), "epoll_wait": (232, None), "eventfd2": (290, 19), "execve": (59, 221),
    "execveat": (322, 281), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fadvise64": (221, 223), "fallocate": (285, 47), "fcntl": (72, 25),
    "fdatasync": (75, 83), "finit_module": (313, 273), "flock": (73, 32), "fork": (57, None),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fstat": (5, 80),
    "fstatfs": (138, 44), "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98), "getcpu": (309, 168),
    "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177), "geteuid": (107, 175),
    "getgid": (104, 176), "getpid": (39, 172), "getppid": (110, 173), "getpriority": (140, 141),
    "getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165), "getsockname": (51, 204),
    "getsockopt": (55, 209), "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioctl": (16, 29), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129), "link": (86, None),
    "linkat": (265, 37), "listen": (50, 201), "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233),
    "membarrier": (324, 283), "memfd_create": (319, 279), "memfd_secret": (447, 447), "mincore": (27, 232),
    "mkdir": (83, None), "mkdirat": (258, 34), "mmap": (9, 222), "mount": (165, 40), "move_mount": (429, 429),
    "mprotect": (10, 226), "mremap": (25, 216), "msync": (26, 227), "munmap": (11, 215),
    "name_to_handle_at": (303, 264), "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, None),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "openat": (257, 56),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pipe2": (293, 59),
    "pivot_root": (155, 41), "pkey_mprotect": (329, 288), "poll": (7, None), "ppoll": (271, 73),
    "prctl": (157, 167), "pread64": (17, 67), "preadv": (295, 69), "preadv2": (327, 286),
    "prlimit64": (302, 261), "process_madvise": (440, 440), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pselect6": (270, 72), "ptrace": (101, 117), "pwrite64": (18, 68),
    "pwritev": (296, 70), "pwritev2": (328, 287), "read": (0, 63), "readlink": (89, None),
    "readlinkat": (267, 78), "readv": (19, 65), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "request_key": (249, 218),
    "restart_syscall": (219, 128), "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigtimedwait": (128, 137),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "sched_setaffinity": (203, 122), "sched_yield": (24, 124), "select": (23, None), "sendmsg": (46, 211),
    "sendto": (44, 206), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setitimer": (38, 103),
    "setns": (308, 268), "setpgid": (109, 154), "setpriority": (141, 140), "setrlimit": (160, 164),
    "setsockopt": (54, 208),
    "shutdown": (48, 210), "sigaltstack": (131, 132), "socket": (41, 198), "socketpair": (53, 199),
    "stat": (4, None), "statfs": (137, 43), "statx": (332, 291), "sync_file_range": (277, 84),
    "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, None), "times": (100, 153),
    "umount2": (166, 39), "uname": (63, 160), "unlink": (87, None), "unlinkat": (263, 35),
    "unshare": (272, 97), "userfaultfd": (323, 282), "wait4": (61, 260), "waitid": (247, 95),
    "write": (1, 64), "writev": (20, 66),
}
# fmt: on

_MEMORY = "brk madvise membarrier mincore msync munmap"
_THREADS = (
    "exit exit_group futex getpriority rseq sched_get_priority_max sched_get_priority_min sched_getaffinity "
    "sched_getparam sched_getscheduler sched_yield set_robust_list set_tid_address restart_syscall "
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack"
)
_QUESTIONS = (
    "clock_getres clock_gettime getcpu getegid geteuid getgid getpid getppid getrandom getrlimit getrusage "
    "gettid gettimeofday getuid sysinfo time times uname"
)
_WAITING = (
    "clock_nanosleep epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 nanosleep pipe2 poll ppoll "
    "pselect6 select wait4 waitid"
)
# On descriptors that are open.
_STREAMS = (
    "close close_range dup dup2 dup3 fstat getsockname getsockopt lseek pread64 preadv preadv2 pwrite64 "
    "pwritev pwritev2 read readv recvfrom recvmsg sendmsg sendto setsockopt shutdown write writev"
)
_FILES = (
    "access copy_file_range faccessat faccessat2 fadvise64 fallocate fdatasync flock fstatfs fsync ftruncate "
    "getcwd getdents64 link linkat lstat memfd_create mkdir mkdirat newfstatat open openat readlink "
    "readlinkat rename renameat renameat2 stat statfs statx sync_file_range unlink unlinkat"
)
_COMMON = f"{_MEMORY} {_THREADS} {_QUESTIONS} {_WAITING} {_STREAMS}"
_SERVING = f"{_COMMON} {_FILES} memfd_secret"
_RENDERING = f"{_COMMON} alarm kill memfd_create setitimer setpgid setrlimit socketpair"

# What nobody but an intruder asks for here.
_DEADLY = (
    "accept accept4 add_key bind bpf chroot connect delete_module execve execveat finit_module fork fsconfig "
    "fsmount fsopen init_module io_uring_enter io_uring_register io_uring_setup kcmp kexec_file_load "
    "kexec_load keyctl listen mount move_mount name_to_handle_at open_by_handle_at open_tree "
    "perf_event_open pidfd_getfd pidfd_open pivot_root process_madvise process_vm_readv process_vm_writev "
    "ptrace request_key setns socket umount2 unshare userfaultfd"
)

_CLONE_THREAD = 0x10000
_CLONE_NAMESPACES = 0x7E020080  # every CLONE_NEW*
_PROT_EXEC = 4
_PRCTLS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory
_PDEATHSIG = 1
_GROW, _MOVE = 1, 7  # flags of mremap: realloc(3) grows a block; secure memory moves and leaves no hole
_IOCTLS = (0x5421, 0x5451)  # FIONBIO, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)  # descriptors, flags and locks; not owners and signals

# ---- filters --------------------------------------------------------------------------------------

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_REFUSE = _ERRNO | errno.EPERM
_ABSENT = _ERRNO | errno.ENOSYS
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000

SECCOMP = {"x86_64": 317, "aarch64": 277}  # the number of the call itself, by machine
_SET_FILTER, _TSYNC, _GET_ACTION = 1, 1, 2

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A call that is allowed by what the low half of one argument is."""

    argument: int
    values: tuple[int, ...] = ()  # one of these; or …
    mask: int = 0  # … of these bits, any …
    wanted: bool = True  # … (False: none) is set
    otherwise: int = _REFUSE
    also: Rule | None = None  # what has to be so besides; only with `values`

    def steps(self) -> list[Step]:
        """Return what decides, once the call is known."""
        load = (_LOAD, 0, 0, _ARGUMENTS + 8 * self.argument)
        if self.mask:
            yes, no = (_ALLOW, self.otherwise) if self.wanted else (self.otherwise, _ALLOW)
            return [load, (_ANY_BIT, 0, 1, self.mask), (_RETURN, 0, 0, yes), (_RETURN, 0, 0, no)]
        found = [(_EQUAL, len(self.values) - place, 0, value) for place, value in enumerate(self.values)]
        rest = self.also.steps() if self.also is not None else [(_RETURN, 0, 0, _ALLOW)]
        return [load, *found, (_RETURN, 0, 0, self.otherwise), *rest]


def serving(machine: str = "") -> bytes:
    """Return the filter of a process that computes and keeps files: no new program, process or socket.

    `machine`: which one it is for, of SECCOMP; "": this one.
    """
    rules = _rules_of_all(_PRCTLS) | {"clone": Rule(0, mask=_CLONE_THREAD, otherwise=_KILL)}
    rules |= {"mremap": Rule(3, (_GROW, _MOVE))}
    return _program(_SERVING.split(), rules, machine)


def holding(machine: str = "") -> bytes:
    """Return the filter of a process that computes and answers: as `serving`, and no file at all."""
    rules = _rules_of_all(_PRCTLS) | {"clone": Rule(0, mask=_CLONE_THREAD, otherwise=_KILL)}
    return _program(_COMMON.split(), rules, machine)


def rendering(machine: str = "") -> bytes:
    """Return the filter of a helper that forks for each of its jobs and opens no file at all."""
    rules = _rules_of_all((*_PRCTLS, _PDEATHSIG))
    rules |= {"clone": Rule(0, mask=_CLONE_NAMESPACES, wanted=False, otherwise=_KILL)}
    return _program(_RENDERING.split(), rules, machine)


def available() -> bool:
    """Return whether this kernel and this machine can have these filters."""
    if platform.machine() not in SECCOMP:
        return False
    action = ctypes.c_uint32(_KILL)
    return _call(_GET_ACTION, 0, ctypes.addressof(action)) == 0


def install(program: bytes) -> None:
    """Have `program` filter all calls of this process from now on, for good. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)), 16
    )
    if _call(_SET_FILTER, _TSYNC, ctypes.addressof(head)) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _rules_of_all(prctls: tuple[int, ...]) -> dict[str, Rule]:
    return {
        "fcntl": Rule(1, _FCNTLS),
        "ioctl": Rule(1, _IOCTLS),
        "mmap": Rule(2, mask=_PROT_EXEC, wanted=False),
        "mprotect": Rule(2, mask=_PROT_EXEC, wanted=False),
        "mremap": Rule(3, (_GROW,)),
        "prctl": Rule(0, prctls),
        "prlimit64": Rule(0, (0,)),  # of itself
        "sched_setaffinity": Rule(0, (0,)),
        "setpriority": Rule(0, (os.PRIO_PROCESS,), also=Rule(1, (0,))),  # of the thread that asks
        "tgkill": Rule(0, (os.getpid(),)),  # what abort(3) does
    }


def _program(allowed: list[str], rules: dict[str, Rule], machine: str) -> bytes:
    """Return the instructions of a filter."""
    column = list(SECCOMP).index(machine or platform.machine())
    architecture = (0xC000003E, 0xC00000B7)[column]
    steps: list[Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    answers = dict.fromkeys(allowed, _ALLOW) | dict.fromkeys(_DEADLY.split(), _KILL) | {"clone3": _ABSENT}
    for name, answer in answers.items():
        number = CALLS[name][column]
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    for name, rule in rules.items():
        number, body = CALLS[name][column], rule.steps()
        assert number is not None
        steps += [(_EQUAL, 0, len(body), number), *body]
    steps.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(operation: int, flags: int, address: int) -> int:
    number = ctypes.c_long(SECCOMP[platform.machine()])
    return int(
        _libc.syscall(number, ctypes.c_uint(operation), ctypes.c_uint(flags), ctypes.c_void_p(address))
    )
