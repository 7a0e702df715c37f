"""The foreground program of the application benchmark: SQLite, reading and updating rows at random.

    python -m flexserve.bench.foreground fill DATABASE --rows N
    python -m flexserve.bench.foreground run DATABASE --few N --rows N --warm S --grown N --access WHICH

`run` uses the first `few` rows for `warm` seconds; then, at a moment that it tells, all `rows`, for
`grown` portions of PORTION operations, which are the same in every run: what is compared is how long the
same work takes, since a program that does more in the same time has filled more of its cache, too. It
prints one JSON object: that moment (CLOCK_MONOTONIC, seconds), and for each portion when it was done
(seconds since then) and the bytes that the disk was asked for.

SQLite's own cache is small, so that the OS's counts. Rows are chosen by Zipf's law (the row of rank r
with a probability of 1 / r), as the popularity of records is usually modelled (YCSB does so), and rows
of neighbouring ranks lie apart; or uniformly, when every page that the cache lacks costs the same.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

PAGE = 16384  # bytes; a row takes one, as a document or a thumbnail would
PORTION = 4096  # operations
_BLOB = PAGE - 200
_CACHE = 8192  # KiB of SQLite's own
_BATCH = 2048  # rows of one transaction while filling
_UPDATES = 0.05  # of all operations; the rest read
_LOOK_AT_CLOCK = 16  # operations
_APART = 40503  # prime: a multiple of it, modulo the number of rows, takes every rank elsewhere

Access = Literal["zipf", "uniform"]


def fill(path: str, rows: int) -> None:
    """Write a database of `rows` rows."""
    connection = _connect(path, fresh=True)
    connection.execute("CREATE TABLE IF NOT EXISTS documents (id INTEGER PRIMARY KEY, body BLOB)")
    filler = random.Random(0)
    for first in range(0, rows, _BATCH):
        batch = ((number, filler.randbytes(_BLOB)) for number in range(first, min(rows, first + _BATCH)))
        with connection:
            connection.executemany("INSERT INTO documents VALUES (?, ?)", batch)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def run(path: str, *, few: int, rows: int, warm: float, grown: int, access: Access) -> dict[str, Any]:
    """Work as said above; return what is to be printed."""
    choose = _zipf if access == "zipf" else _uniform
    connection = _connect(path, fresh=False)
    connection.execute("SELECT sum(length(body)) FROM documents WHERE id < ?", (few,)).fetchall()
    program = _Program(connection, choose, random.Random(1))
    end = time.monotonic() + warm
    while time.monotonic() < end:
        program.operate(few, _LOOK_AT_CLOCK)
    program = _Program(connection, choose, random.Random(2))
    began, before = time.monotonic(), _bytes_read()
    done, read = [], []
    for _ in range(grown):
        program.operate(rows, PORTION)
        now = _bytes_read()
        done.append(time.monotonic() - began)
        read.append(now - before)
        before = now
    connection.close()
    return {"grown_at": began, "done": done, "read": read}


class _Program:
    """Reads and updates rows; `chance` says which, and is all that it depends on."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        choose: Callable[[random.Random, int], int],
        chance: random.Random,
    ) -> None:
        self._connection, self._choose, self._chance = connection, choose, chance
        self._body = chance.randbytes(_BLOB)

    def operate(self, rows: int, count: int) -> None:
        """Do `count` operations on rows below `rows`."""
        for _ in range(count):
            number = self._choose(self._chance, rows)
            if self._chance.random() < _UPDATES:
                with self._connection:
                    self._connection.execute(
                        "UPDATE documents SET body = ? WHERE id = ?", (self._body, number)
                    )
            else:
                self._connection.execute("SELECT body FROM documents WHERE id = ?", (number,)).fetchone()


def _zipf(chance: random.Random, rows: int) -> int:
    return int(rows ** chance.random()) * _APART % rows


def _uniform(chance: random.Random, rows: int) -> int:
    return int(rows * chance.random())


def _bytes_read() -> int:
    """Return the bytes that this process had the disk read."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _connect(path: str, *, fresh: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    if fresh:
        connection.execute(f"PRAGMA page_size = {PAGE}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")  # memory is measured, not how fast the disk flushes
    connection.execute(f"PRAGMA cache_size = -{_CACHE}")
    connection.execute("PRAGMA mmap_size = 0")
    return connection


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fill", "run"])
    parser.add_argument("database")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--few", type=int, default=0)
    parser.add_argument("--warm", type=float, default=0.0)
    parser.add_argument("--grown", type=int, default=0)
    parser.add_argument("--access", choices=get_args(Access), default="zipf")
    given = parser.parse_args()
    if given.what == "fill":
        fill(given.database, given.rows)
    else:
        named = vars(given)
        result = run(
            given.database, **{name: named[name] for name in ("few", "rows", "warm", "grown", "access")}
        )
        json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
