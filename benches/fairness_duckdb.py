#!/usr/bin/env python3
"""What `fairness.rs` measures, on DuckDB: a short query beside two heavy ones, on two threads.

    python3 benches/fairness_duckdb.py

Needs `pip install duckdb` (compare.py installs it in `tpch-data/peers`). Prints a row for the same
table. Run it right before or after `cargo bench --bench fairness`: only ratios within one run are
comparable.
"""

import threading
import time

import duckdb

THREADS = 2
PHASE = 8.0
PAUSE = 0.02
SHORT = "SELECT few, sum(id), count(*) FROM small GROUP BY few"
HEAVY = [
    "SELECT count(*) FROM (SELECT random, sum(id) FROM large GROUP BY random)",
    "SELECT sum(a.id) FROM large a JOIN large b ON a.random = b.random WHERE b.few < 50",
]


def connect():
    database = duckdb.connect()
    database.execute(f"SET threads = {THREADS}")
    # The same multiplicative mix as in fairness.rs: unordered, without duplicates.
    mix = "((range::HUGEINT * 11400714819323198485 % 18446744073709551616) // 4)::BIGINT"
    for table, rows in [("small", 100_000), ("large", 1_000_000)]:
        database.execute(
            f"CREATE TABLE {table} AS SELECT range AS id, {mix} AS random, {mix} % 100 AS few "
            f"FROM range({rows})"
        )
    return database


def phase(database, short, heavy):
    """Returns the sorted latencies of the short query, and the heavy queries per second."""
    stop, done, lock = threading.Event(), [0], threading.Lock()

    def loop(sql):
        cursor = database.cursor()
        while not stop.is_set():
            cursor.execute(sql).fetchall()
            with lock:
                done[0] += 1

    threads = [threading.Thread(target=loop, args=[sql]) for sql in HEAVY if heavy]
    for thread in threads:
        thread.start()
    time.sleep(PHASE / 10)
    cursor, latencies = database.cursor(), []
    started, before = time.monotonic(), done[0]
    while time.monotonic() - started < PHASE:
        time.sleep(PAUSE)
        if short:
            asked = time.monotonic()
            cursor.execute(SHORT).fetchall()
            latencies.append(time.monotonic() - asked)
    elapsed, finished = time.monotonic() - started, done[0] - before
    stop.set()
    for thread in threads:
        thread.join()
    return sorted(latencies), finished / elapsed


def main():
    database = connect()
    alone, _ = phase(database, True, False)
    _, heavy = phase(database, False, True)
    both, kept = phase(database, True, True)
    p99 = lambda latencies: 1000 * latencies[(len(latencies) - 1) * 99 // 100]
    median = lambda latencies: 1000 * latencies[len(latencies) // 2]
    print(
        f"| DuckDB {duckdb.__version__} | {median(alone):.2f} ms, {p99(alone):.2f} ms "
        f"| {median(both):.2f} ms, {p99(both):.2f} ms | {p99(both) / p99(alone):.1f} "
        f"| {100 * kept / heavy:.0f} % |"
    )


if __name__ == "__main__":
    main()
