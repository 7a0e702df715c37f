"""Files that decide who may do what: they count only when nobody else could have read or written them.

Of root all users' files are safe from all but root, so root's files are as good as one's own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flexserve.errors import CallerError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_folder(folder: Path, what: str, *, code: str) -> None:
    """Raise CallerError when someone else could put a file of their own into `folder`, or replace one.

    `what` stands there, for people. A folder that does not exist is safe.
    """
    try:
        info = os.stat(folder)
    except FileNotFoundError:
        return
    refuse_shared(folder, what, code=code)
    if info.st_uid not in (0, os.geteuid()):
        raise unsafe(
            what, "its folder belongs to another user", "Keep it in a folder of your own.", code=code
        )


def refuse_shared(folder: Path, what: str, *, code: str) -> None:
    """Raise CallerError when the mode of `folder` lets others than its owner replace files in it."""
    mode = os.stat(folder).st_mode
    # The sticky bit keeps others from replacing files that are not theirs.
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise unsafe(what, "others may replace files in its folder", f"Run `chmod go-w {folder}`.", code=code)


def check_file(path: Path, info: os.stat_result, what: str, *, secret: bool, code: str) -> None:
    """Raise CallerError when someone else could have written the file `path`, or read a `secret` one.

    `info` is of the opened file. Pipes are let through: who handed one over has it to himself.
    """
    if stat.S_ISFIFO(info.st_mode):
        return
    if not stat.S_ISREG(info.st_mode):
        raise unsafe(what, "it is not a regular file", "Name another.", code=code)
    if info.st_uid not in (0, os.geteuid()):
        raise unsafe(what, "it belongs to another user", "Use a file of your own.", code=code)
    if secret and info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise unsafe(what, "others may access it", f"Run `chmod 600 {path}`.", code=code)
    if info.st_mode & _OTHERS_WRITE:
        raise unsafe(what, "others may write to it", f"Run `chmod go-w {path}`.", code=code)
    check_folder(path.resolve().parent, what, code=code)


def is_private(folder: Path) -> bool:
    """Return whether `folder` is one, this user's, and closed to everybody else."""
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    closed = not info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and closed


def make_private(folder: Path, what: str) -> None:
    """Make `folder`, mode 0700, if it is not there. Raises CallerError when it is not this user's alone."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CallerError(
            f"{what} cannot be made: {error.strerror}.", hint="Give another place with --unix-socket PATH."
        ) from None
    if not is_private(folder):
        hint = f"Remove it, run `chmod 700 {folder}`, or give --unix-socket PATH."
        raise unsafe(what, "it is not this user's alone", hint, code="folder_unsafe")


def unsafe(what: str, why: str, remedy: str, *, code: str) -> CallerError:
    """Return the error of something that others could have got at."""
    return CallerError(f"{what} is not safe: {why}.", hint=remedy, code=code)
