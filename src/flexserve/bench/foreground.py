"""The foreground program of the application benchmark: SQLite, reading and updating rows at random.

    python -m flexserve.bench.foreground fill DATABASE --rows N
    python -m flexserve.bench.foreground run DATABASE --few N --rows N --warm S --grown S --access WHICH

`run` uses the first `few` rows for `warm` seconds; then, at a moment that it tells, all `rows`, for
`grown` seconds. It prints one JSON object: that moment (CLOCK_MONOTONIC, seconds), and for each BUCKET
since then the operations done and the bytes that the disk was asked for.

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
from typing import Literal, get_args

PAGE = 16384  # bytes; a row takes one, as a document or a thumbnail would
BUCKET = 0.25  # seconds
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


def run(path: str, *, few: int, rows: int, warm: float, grown: float, access: Access) -> dict[str, object]:
    """Work as said above; return what is to be printed."""
    choose = _zipf if access == "zipf" else _uniform
    connection = _connect(path, fresh=False)
    connection.execute("SELECT sum(length(body)) FROM documents WHERE id < ?", (few,)).fetchall()
    chance = random.Random(1)
    _work(connection, chance, choose, few, warm)
    began = time.monotonic()
    operations, read = _work(connection, chance, choose, rows, grown)
    connection.close()
    return {"grown_at": began, "operations": operations, "read": read}


def _zipf(chance: random.Random, rows: int) -> int:
    return int(rows ** chance.random()) * _APART % rows


def _uniform(chance: random.Random, rows: int) -> int:
    return int(rows * chance.random())


def _work(
    connection: sqlite3.Connection,
    chance: random.Random,
    choose: Callable[[random.Random, int], int],
    rows: int,
    seconds: float,
) -> tuple[list[int], list[int]]:
    """Use rows below `rows` for `seconds`; return operations and bytes read in each bucket."""
    began, last, before = time.monotonic(), 0, _bytes_read()
    buckets = [0] * int(seconds / BUCKET)
    read = [0] * len(buckets)
    body = chance.randbytes(_BLOB)
    while (at := int((time.monotonic() - began) / BUCKET)) < len(buckets):
        if at != last:
            now = _bytes_read()
            read[last], last, before = now - before, at, now
        for _ in range(_LOOK_AT_CLOCK):
            number = choose(chance, rows)
            if chance.random() < _UPDATES:
                with connection:
                    connection.execute("UPDATE documents SET body = ? WHERE id = ?", (body, number))
            else:
                connection.execute("SELECT body FROM documents WHERE id = ?", (number,)).fetchone()
        buckets[at] += _LOOK_AT_CLOCK
    read[last] = _bytes_read() - before
    return buckets, read


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
    parser.add_argument("--grown", type=float, default=0.0)
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
