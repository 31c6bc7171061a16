#!/usr/bin/env python3
"""Suites of queries on gatework, DataFusion, DuckDB and Polars, on the same files and threads.

    python3 benches/compare.py [--suite tpch] [--size 1] [--writer parquet-rs] [--threads 2]
                               [--rounds 3] [--in-memory] [--queries 1,3]

Needs Python 3.10, cargo and, for the first run, the network. A suite is a folder of `suites/` with
the SQL of its queries and of its data, which DuckDB generates; `tpch` and `mixed` use the tables
that the command line generates, and `tpcds` tables and queries of DuckDB's extension. `--size` is
the scale factor of TPC's tables, or millions of rows.
`--writer` chooses which library writes the files: parquet-rs, pyarrow, duckdb or polars.

gatework and DataFusion run in one binary (`engine.rs`), DuckDB and Polars are the wheels of
`peers.txt`, in a virtual environment under `tpch-data/`. Each round runs each query twice on each
engine, one engine after the other, and counts the second run. A figure is the median of the rounds;
processor time is that of all threads of the engine's process. Results are compared with
DataFusion's. Writes `docs/<suite>.md` and `.svg`.

A query that an engine rejects has no figure, and does not count in the ratio to that engine. With
`--in-memory`, gatework and DataFusion query Arrow batches, DuckDB its own tables and Polars frames.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ROOT / "benches" / "suites"
TPCH = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
ENGINES = ["gatework", "datafusion", "duckdb", "polars"]
WRITERS = ["parquet-rs", "pyarrow", "duckdb", "polars"]
# Sizes at which a suite takes about ten minutes on two cores.
SIZES = {"tpch": 1, "tpcds": 1, "mixed": 1, "weblog": 4, "groupjoin": 10, "star": 10}
# DuckDB's generator of TPC-DS is an extension of an earlier version than that of `peers.txt`.
GENERATOR = ["duckdb==1.5.5", "duckdb-extension-tpcds==1.5.5"]
# Functions of the generated data: a large number, one from 0 to 1, and one below `n` of which few
# are frequent. `c` stands for the column.
MACROS = """
CREATE MACRO hash_at(i, c) AS (hash(hash(i, c)) >> 2)::BIGINT;
CREATE MACRO random_at(i, c) AS hash_at(i, c) / 4611686018427387904.0;
CREATE MACRO skewed(i, c, n) AS least(n - 1, floor(n * pow(random_at(i, c), 4)))::BIGINT;
CREATE MACRO site(n) AS 'site' || n || ['.com', '.org', '.net', '.de'][1 + n % 4];
"""


def queries(suite, folder):
    """Returns the queries of a suite, whose tables are in `folder`, as lists of statements."""
    if suite == "tpcds":
        texts = json.loads((folder / "queries.json").read_text())
    elif suite == "tpch":
        texts = [(ROOT / "cli" / "queries" / f"q{n}.sql").read_text() for n in range(1, 23)]
    else:
        texts = (SUITES / suite / "queries.sql").read_text().splitlines()
    lines = [[line for line in text.splitlines() if not line.startswith("--")] for text in texts]
    split = [[s for s in "\n".join(text).split(";") if s.strip()] for text in lines]
    return dict(enumerate(split, start=1))


class DuckDb:
    def __init__(self, tables, threads, in_memory):
        import duckdb

        self.connection = duckdb.connect()
        self.connection.execute(f"SET threads = {threads}")
        kind = "TABLE" if in_memory else "VIEW"
        for name, path in tables:
            source = f"read_parquet('{path}')"
            self.connection.execute(f"CREATE {kind} {name} AS SELECT * FROM {source}")

    def run(self, sql):
        rows = self.connection.execute(sql).fetchall()
        return lambda: rows


class Polars:
    def __init__(self, tables, threads, in_memory):
        import polars

        self.context = polars.SQLContext()
        for name, path in tables:
            frame = polars.scan_parquet(path)
            self.context.register(name, frame.collect().lazy() if in_memory else frame)

    def run(self, sql):
        frame = self.context.execute(sql).collect(engine="streaming")
        return lambda: frame.rows()


def worker(arguments):
    """Reads lists of statements from stdin, runs them and prints their time and rows as JSON."""
    kind = {"duckdb": DuckDb, "polars": Polars}[arguments.worker]
    tables = [table.split("=") for table in arguments.tables]
    engine = kind(tables, arguments.threads, arguments.in_memory)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            start = time.perf_counter()
            results = [engine.run(sql) for sql in json.loads(line)]
            answer = {"seconds": time.perf_counter() - start}
            rows = max((rows() for rows in results), key=len)
            many = len(rows) > 10_000
            as_text = lambda value: None if value is None else str(value)
            answer |= {"count": len(rows)} if many else {
                "rows": [[as_text(value) for value in row] for row in rows]
            }
        except Exception as error:  # An engine may raise any exception.
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


class Engine:
    """A process that runs queries on one engine."""

    def __init__(self, name, binary, tables, arguments):
        if name in ("gatework", "datafusion"):
            place = "memory" if arguments.in_memory else "files"
            command = [binary, name, str(arguments.threads), place]
        else:
            command = [sys.executable, __file__, "--worker", name]
            command += ["--threads", str(arguments.threads)]
            command += ["--in-memory"] if arguments.in_memory else []
            command += ["--tables"]
        command += [f"{name}={path}" for name, path in tables.items()]
        # Polars has no other setting for its threads; gatework and DataFusion have the allocator
        # of the command line.
        variables = {
            **os.environ,
            "POLARS_MAX_THREADS": str(arguments.threads),
            "MIMALLOC_PURGE_DELAY": "10000",
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self.thread_nanoseconds = {}
        assert self.process.stdout.readline() == "ready\n", f"{name} does not start"

    def processor_seconds(self):
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                nanoseconds = int((thread / "schedstat").read_text().split()[0])
            except OSError:  # The thread has ended.
                continue
            self.thread_nanoseconds[thread.name] = nanoseconds
        # With those of threads that have ended since, as they were last seen.
        return sum(self.thread_nanoseconds.values()) / 1e9

    def run(self, statements):
        """Runs a query twice; the answer is that of the second run."""
        for _ in range(2):
            before = self.processor_seconds()
            self.process.stdin.write(json.dumps(statements) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            answer["processor"] = self.processor_seconds() - before
        return answer

    def end(self):
        """Ends the process and returns its peak memory in bytes."""
        # The rusage of a child counts the pages of this process before the child's exec.
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM"))
        self.process.stdin.close()
        self.process.wait()
        return int(peak.split()[1]) * 1024


def close(ours, theirs):
    """Returns whether two values are equal up to rounding and format."""
    if ours is None or theirs is None:
        # Polars sums no rows to zero.
        return (ours or theirs) in (None, "", "0", "0.0")
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=2e-3, abs_tol=1e-2)
    except ValueError:
        return ours.strip().replace("T", " ")[:19] == theirs.strip().replace("T", " ")[:19]


def order(row):
    """Returns a key by which engines that format numbers differently sort alike."""
    def key(value):
        try:
            return f"{float(value):.3g}"
        except (TypeError, ValueError):
            return str(value)[:10]

    return [key(value) for value in row]


def same(ours, theirs):
    if "rows" not in ours or "rows" not in theirs:
        return ours.get("count") == theirs.get("count")
    ours, theirs = sorted(ours["rows"], key=order), sorted(theirs["rows"], key=order)
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(close, a, b)) for a, b in zip(ours, theirs)
    )


def cargo(*command):
    """Runs cargo and returns the executable that it has built."""
    variables = {**os.environ, "CARGO_TERM_COLOR": "never"}
    command = ["cargo", *command, "--message-format=json-render-diagnostics"]
    lines = subprocess.check_output(command, cwd=ROOT, env=variables, text=True).splitlines()
    artifacts = [json.loads(line) for line in lines]
    built = [artifact["executable"] for artifact in artifacts if artifact.get("executable")]
    return built[-1]


def generate(arguments, folder):
    """Makes the tables of the suite in `folder`, unless they are there; returns their names."""
    if arguments.suite == "tpcds":
        if not (folder / "queries.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            python = environment("tpcds-generator", GENERATOR)
            subprocess.run([python, __file__, "--tpcds", folder, str(arguments.size)], check=True)
        return sorted(path.stem for path in folder.glob("*.parquet"))
    if arguments.suite in ("tpch", "mixed"):
        tables = TPCH
        if not all((folder / f"{table}.parquet").exists() for table in tables):
            binary = cargo("build", "--release", "--bin", "gatework")
            make = [binary, "tpch", "--data", str(folder), "--queries", "6", "--no-verify"]
            subprocess.run([*make, "--scale-factor", str(arguments.size)], check=True)
        return tables
    import duckdb

    text = (SUITES / arguments.suite / "data.sql").read_text()
    tables = [line.split()[2] for line in text.splitlines() if line.startswith("CREATE TABLE")]
    if not all((folder / f"{table}.parquet").exists() for table in tables):
        folder.mkdir(parents=True, exist_ok=True)
        connection = duckdb.connect()
        connection.execute("SET preserve_insertion_order = true")
        rows = str(int(arguments.size * 1_000_000))
        connection.execute(MACROS + text.replace("{rows}", rows))
        for table in tables:
            connection.execute(f"COPY {table} TO '{folder / table}.parquet' (FORMAT parquet)")
    return tables


def generate_tpcds(folder, size):
    """Writes the tables of TPC-DS to `folder`, and then the texts of the queries."""
    import duckdb
    import duckdb_extension_tpcds

    package = Path(duckdb_extension_tpcds.__file__).parent
    connection = duckdb.connect()
    connection.execute(f"LOAD '{next(package.rglob('*.duckdb_extension'))}'")
    connection.execute(f"CALL dsdgen(sf = {size})")
    for (table,) in connection.execute("SHOW TABLES").fetchall():
        connection.execute(f"COPY {table} TO '{folder}/{table}.parquet' (FORMAT parquet)")
    texts = connection.execute("SELECT query FROM tpcds_queries() ORDER BY query_nr").fetchall()
    (Path(folder) / "queries.json").write_text(json.dumps([text for (text,) in texts]))


def environment(name, wheels):
    """Returns the Python of a virtual environment with these wheels."""
    home = ROOT / "tpch-data" / name
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wheels], check=True)
    return python


def rewrite(source, target, writer):
    """Writes the file `source` to `target` with another library."""
    if writer == "pyarrow":
        from pyarrow import parquet

        parquet.write_table(parquet.read_table(source), target)
    elif writer == "polars":
        import polars

        polars.read_parquet(source).write_parquet(target)
    elif writer == "duckdb":
        import duckdb

        query = f"COPY (SELECT * FROM read_parquet('{source}')) TO '{target}' (FORMAT parquet)"
        duckdb.connect().execute(query)
    else:
        import datafusion

        config = datafusion.SessionConfig().with_target_partitions(1)
        session = datafusion.SessionContext(config)
        session.read_parquet(str(source)).write_parquet(str(target))


def prepare(arguments):
    """Returns the folder of the suite, and each table as written by the library asked for."""
    home = ROOT / "tpch-data"
    if arguments.suite in ("tpch", "mixed"):
        original, made_by = home / f"sf{arguments.size:g}", "parquet-rs"
    else:
        original, made_by = home / f"{arguments.suite}-{arguments.size:g}", "duckdb"
    tables = generate(arguments, original)
    if arguments.writer == made_by:
        return original, {table: original / f"{table}.parquet" for table in tables}
    folder = original / arguments.writer
    folder.mkdir(exist_ok=True)
    paths = {table: folder / f"{table}.parquet" for table in tables}
    for table, path in paths.items():
        if not path.exists():
            unfinished = path.with_suffix(".part.parquet")
            rewrite(original / f"{table}.parquet", unfinished, arguments.writer)
            unfinished.rename(path)
    return original, paths


def measure(arguments):
    folder, tables = prepare(arguments)
    binary = cargo("bench", "--bench", "engine", "--no-run")
    engines = {name: Engine(name, binary, tables, arguments) for name in ENGINES}
    chosen = {
        number: statements
        for number, statements in queries(arguments.suite, folder).items()
        if number in arguments.queries or not arguments.queries
    }
    wall = {name: {number: [] for number in chosen} for name in engines}
    processor = {name: {number: [] for number in chosen} for name in engines}
    notes = []
    for round_ in range(arguments.rounds):
        for number, statements in chosen.items():
            answers = {name: engine.run(statements) for name, engine in engines.items()}
            for name, answer in answers.items():
                if "error" in answer:
                    if round_ == 0:
                        reason = answer["error"].split("\n")[0][:100]
                        notes.append(f"{name} rejects query {number}: {reason}")
                    continue
                wall[name][number].append(answer["seconds"])
                processor[name][number].append(answer["processor"])
                if round_ == 0 and not same(answer, answers["datafusion"]):
                    notes.append(f"{name}'s result of query {number} differs from DataFusion's.")
        print(f"round {round_ + 1} of {arguments.rounds} done", file=sys.stderr)
    memory = {name: engine.end() for name, engine in engines.items()}
    medians = lambda times: {
        name: {number: statistics.median(t) for number, t in queries.items() if t}
        for name, queries in times.items()
    }
    return medians(wall), medians(processor), memory, notes


def best_of_peers(times):
    """Returns the time of the fastest peer for each query."""
    numbers = times["gatework"]
    peers = [times[name] for name in ENGINES[1:]]
    best = {n: min((peer[n] for peer in peers if n in peer), default=None) for n in numbers}
    return {number: seconds for number, seconds in best.items() if seconds}


def ratios(ours, theirs):
    """Returns the ratio of the sums, the geometric mean of the ratios and the number of queries."""
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    total = sum(ours[n] for n in common) / sum(theirs[n] for n in common)
    return total, statistics.geometric_mean([ours[n] / theirs[n] for n in common]), len(common)


def table(wall, processor, memory, notes, arguments):
    wheels = ", ".join((ROOT / "benches/peers.txt").read_text().split())
    about = (
        "Milliseconds, medians; beside a peer gatework's time divided by its. Made by "
        f"`benches/compare.py` with {arguments.rounds} rounds, on {platform.machine()} with "
        f"{os.cpu_count()} cores. Wheels: {wheels}."
    )
    peers = ENGINES[1:]
    columns = [*peers, "best peer"]
    times = {**wall, "best peer": best_of_peers(wall)}
    lines = [
        f"# {title(arguments)}",
        "",
        *textwrap.wrap(about, width=100),
        "",
        "| query | gatework | " + " | ".join(f"{name} | ×" for name in columns) + " |",
        "|--:|" + "--:|" * (1 + 2 * len(columns)),
    ]
    for number, ours in wall["gatework"].items():
        cells = [f"{1000 * ours:.0f}"]
        for name in columns:
            theirs = times[name].get(number)
            cells += [f"{1000 * theirs:.0f}", f"{ours / theirs:.2f}"] if theirs else ["", ""]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    processor = {**processor, "best peer": best_of_peers(processor)}
    for what, times in [("wall clock", times), ("processor", processor)]:
        totals = [f"{1000 * sum(times['gatework'].values()):.0f}"]
        means = [""]
        for name in columns:
            found = ratios(times["gatework"], times[name])
            if not found:
                totals, means = [*totals, "", ""], [*means, "", ""]
                continue
            total, mean, count = found
            totals += [f"{1000 * sum(times[name].values()):.0f}", f"**{total:.2f}**"]
            all_of_them = count == len(times["gatework"])
            means += ["" if all_of_them else f"{count} queries", f"{mean:.2f}"]
        lines.append(f"| total, {what} | " + " | ".join(totals) + " |")
        lines.append(f"| geometric mean, {what} | " + " | ".join(means) + " |")
    peaks = ", ".join(f"{name} {memory[name] / 2**20:.0f} MiB" for name in ENGINES)
    lines += ["", *textwrap.wrap(f"Peak memory of the process: {peaks}.", width=100), ""]
    best = best_of_peers(wall)
    slower = [n for n, seconds in best.items() if wall["gatework"][n] > 1.3 * seconds]
    if slower:
        numbers = ", ".join(map(str, slower))
        notes = [f"Above 1.3 times the best peer: {numbers}.", *notes]
    for note in notes:
        lines += textwrap.wrap(f"* {note}", width=100, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def title(arguments):
    names = {
        "tpch": "TPC-H",
        "tpcds": "TPC-DS",
        "mixed": "Mixed queries over TPC-H's tables",
        "weblog": "Web log",
        "groupjoin": "Groups and joins",
        "star": "Star schema",
    }
    of_tpc = arguments.suite in ("tpch", "tpcds", "mixed")
    size = f"{'scale factor ' if of_tpc else ''}{arguments.size:g}{'' if of_tpc else ' M rows'}"
    where = "in memory" if arguments.in_memory else f"Parquet by {arguments.writer}"
    return f"{names[arguments.suite]}, {size}, {where}, {arguments.threads} threads"


def chart(wall, arguments, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4))
    numbers = sorted(wall["gatework"])
    last = len(numbers)
    # An engine that rejects a query has no total.
    totals = {
        name: [times.get(n) for n in numbers]
        + [sum(times.values()) if len(times) == last else None]
        for name, times in wall.items()
        if times
    }
    for place in range(last + 1):
        figures = [times[place] for times in totals.values() if times[place]]
        axes.plot([place] * 2, [min(figures), max(figures)], color="0.8", linewidth=1, zorder=1)
    for marker, (name, times) in zip("osDv", totals.items()):
        size = 55 if name == "gatework" else 28
        places = [place for place, time in enumerate(times) if time]
        axes.scatter(
            places, [times[n] for n in places], size, marker=marker, label=name, zorder=2
        )
    axes.set_title(title(arguments), loc="left")
    labels = [*(f"{n}" for n in numbers), "all"]
    axes.set_xticks(range(last + 1), labels, fontsize=7 if last > 25 else 9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("seconds, less is better")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SIZES, default="tpch")
    parser.add_argument("--size", "--scale-factor", type=float, metavar="SIZE")
    parser.add_argument("--writer", choices=WRITERS, default="parquet-rs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--queries", type=lambda text: [int(n) for n in text.split(",")], default=[])
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--tables", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--tpcds", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tpcds:
        return generate_tpcds(*arguments.tpcds)
    if arguments.worker:
        return worker(arguments)
    arguments.size = arguments.size or SIZES[arguments.suite]
    home = ROOT / "tpch-data" / "peers"
    if Path(sys.prefix) != home:
        python = environment("peers", ["-r", ROOT / "benches/peers.txt"])
        os.execv(python, [str(python), *sys.argv])
    wall, processor, memory, notes = measure(arguments)
    suffix = "-memory" if arguments.in_memory else ""
    writer = "" if arguments.writer == "parquet-rs" else f"-{arguments.writer}"
    size = f"-sf{arguments.size:g}" if arguments.suite == "tpch" else ""
    path = ROOT / "docs" / f"{arguments.suite}{size}{writer}{suffix}"
    text = table(wall, processor, memory, notes, arguments)
    if not arguments.queries:
        Path(f"{path}.md").write_text(text)
        chart(wall, arguments, f"{path}.svg")
    print(text)


if __name__ == "__main__":
    main()
