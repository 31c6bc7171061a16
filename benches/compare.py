#!/usr/bin/env python3
"""TPC-H on gatework, DataFusion, DuckDB and Polars, on the same files and threads.

    python3 benches/compare.py [--scale-factor 1] [--threads 2] [--rounds 3] [--in-memory]

Needs Python 3.10, cargo and, for the first run, the network. The peers are wheels from PyPI, pinned
in peers.txt and installed into a virtual environment under `tpch-data/`. Each round runs each query
twice on each peer, one engine after the other, and counts the second run. A figure is the median of
the rounds. A peer's process runs for all rounds. gatework's process runs for one query, so it has
two more warm-up runs. Results are checked: gatework's by its own command line against DataFusion
and the answers of the specification, the peers' against DataFusion's. Writes `docs/tpch-sf<F>.md`
and `.svg`.

Polars supports less SQL than the other engines. Queries that it rejects have no figure and do not
count in its ratio. With `--in-memory`, gatework and DataFusion query Arrow batches, and DuckDB its
own tables.
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
TABLES = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
PEERS = ["datafusion", "duckdb", "polars"]


def statements(number):
    text = (ROOT / "cli" / "queries" / f"q{number}.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [part for part in "\n".join(lines).split(";") if part.strip()]


class DataFusion:
    def __init__(self, data, threads, in_memory):
        import datafusion

        self.context = datafusion.SessionContext(
            datafusion.SessionConfig().with_target_partitions(threads)
        )
        for table in TABLES:
            path = f"{data}/{table}.parquet"
            if in_memory:
                batches = datafusion.SessionContext().read_parquet(path).collect()
                self.context.register_record_batches(table, [batches])
            else:
                self.context.register_parquet(table, path)

    def run(self, sql):
        batches = self.context.sql(sql).collect()
        return lambda: [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


class DuckDb:
    def __init__(self, data, threads, in_memory):
        import duckdb

        self.connection = duckdb.connect()
        self.connection.execute(f"SET threads = {threads}")
        kind = "TABLE" if in_memory else "VIEW"
        for table in TABLES:
            source = f"read_parquet('{data}/{table}.parquet')"
            self.connection.execute(f"CREATE {kind} {table} AS SELECT * FROM {source}")

    def run(self, sql):
        rows = self.connection.execute(sql).fetchall()
        return lambda: rows


class Polars:
    def __init__(self, data, threads, in_memory):
        import polars

        self.context = polars.SQLContext()
        for table in TABLES:
            frame = polars.scan_parquet(f"{data}/{table}.parquet")
            self.context.register(table, frame.collect().lazy() if in_memory else frame)

    def run(self, sql):
        frame = self.context.execute(sql).collect(engine="streaming")
        return lambda: frame.rows()


def plain(value):
    """Formats a value in the same way for all engines."""
    if value is None or isinstance(value, str):
        return str(value).strip()
    if hasattr(value, "isoformat"):
        return value.isoformat()[:10]
    return f"{float(value):.4g}"


def worker(arguments):
    """Reads query numbers from stdin, runs the queries and prints the time of each as JSON."""
    kinds = {"datafusion": DataFusion, "duckdb": DuckDb, "polars": Polars}
    engine = kinds[arguments.worker](arguments.data, arguments.threads, arguments.in_memory)
    print("ready", flush=True)
    for line in sys.stdin:
        answer = {}
        try:
            for _ in range(2):
                start = time.perf_counter()
                rows = [engine.run(sql) for sql in statements(int(line))]
                answer["seconds"] = time.perf_counter() - start
            results = [rows() for rows in rows]
            result = max(results, key=len)
            answer["rows"] = sorted([plain(value) for value in row] for row in result)
        except Exception as error:  # A peer may raise any exception.
            answer = {"error": str(error).splitlines()[0][:120]}
        print(json.dumps(answer), flush=True)


class Peer:
    def __init__(self, name, arguments):
        command = [sys.executable, __file__, "--worker", name, "--data", str(arguments.data)]
        command += ["--threads", str(arguments.threads)]
        command += ["--in-memory"] if arguments.in_memory else []
        # Polars has no other setting for it.
        environment = {**os.environ, "POLARS_MAX_THREADS": str(arguments.threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n", f"{name} does not start"

    def run(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        """Ends the process and returns its peak memory in bytes."""
        self.process.stdin.close()
        return os.wait4(self.process.pid, 0)[2].ru_maxrss * 1024


class Gatework:
    def __init__(self, binary, arguments):
        self.command = [binary, "tpch", "--data", str(arguments.data)]
        self.command += ["--threads", str(arguments.threads)]
        self.command += ["--in-memory"] if arguments.in_memory else []
        self.report = arguments.data / "times.json"

    def call(self, *more):
        command = [*self.command, "--json", str(self.report), *more]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"gatework: {errors}")
        return json.loads(self.report.read_text()), usage.ru_maxrss * 1024

    def run(self, number):
        report, _ = self.call("--queries", str(number), "--iterations", "4", "--no-verify")
        return {"seconds": report[0]["seconds"][-1]}

    def verify(self):
        report, _ = self.call("--iterations", "1")
        return sum(query["verified"] for query in report)

    def end(self):
        return self.call("--iterations", "2", "--no-verify")[1]


def close(ours, theirs):
    """Returns whether two values are equal up to rounding."""
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=2e-3, abs_tol=1e-2)
    except ValueError:
        return ours == theirs


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(close, a, b)) for a, b in zip(ours, theirs)
    )


def measure(arguments):
    environment = {**os.environ, "CARGO_TERM_COLOR": "never"}
    subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True, env=environment)
    metadata = subprocess.check_output(
        ["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=ROOT
    )
    binary = str(Path(json.loads(metadata)["target_directory"]) / "release" / "gatework")
    arguments.data = ROOT / "tpch-data" / f"sf{arguments.scale_factor:g}"
    make = [binary, "tpch", "--data", str(arguments.data), "--queries", "6", "--no-verify"]
    make += ["--scale-factor", str(arguments.scale_factor)]
    subprocess.run(make, check=True)

    engines = {"gatework": Gatework(binary, arguments)}
    verified = engines["gatework"].verify()
    engines |= {name: Peer(name, arguments) for name in PEERS}
    times = {name: {number: [] for number in range(1, 23)} for name in engines}
    notes = [f"gatework: {verified} of 22 results verified against DataFusion."]
    for round_ in range(arguments.rounds):
        for number in range(1, 23):
            answers = {name: engine.run(number) for name, engine in engines.items()}
            for name, answer in answers.items():
                if "error" in answer:
                    if round_ == 0:
                        notes.append(f"{name} refuses query {number}: {answer['error']}")
                    continue
                times[name][number].append(answer["seconds"])
                expected = answers["datafusion"].get("rows")
                if round_ == 0 and "rows" in answer and not same(answer["rows"], expected):
                    notes.append(f"{name}'s result of query {number} differs from DataFusion's.")
        print(f"round {round_ + 1} of {arguments.rounds} done", file=sys.stderr)
    memory = {name: engine.end() for name, engine in engines.items()}
    medians = {
        name: {n: statistics.median(t) for n, t in queries.items() if t}
        for name, queries in times.items()
    }
    return medians, memory, notes


def ratio(ours, theirs):
    common = ours.keys() & theirs.keys()
    total = sum(ours[n] for n in common) / sum(theirs[n] for n in common)
    mean = statistics.geometric_mean([ours[n] / theirs[n] for n in common])
    return total, mean, len(common)


def table(medians, memory, notes, arguments):
    names = ["gatework", *PEERS]
    where = "in memory" if arguments.in_memory else "from Parquet"
    wheels = (ROOT / "benches/peers.txt").read_text().split()
    lines = [
        f"# TPC-H, scale factor {arguments.scale_factor:g}, {where}, {arguments.threads} threads",
        "",
        *textwrap.wrap(
            "Seconds, medians; beside a peer gatework's time divided by its. Made by "
            f"`benches/compare.py` with {arguments.rounds} rounds, on {platform.machine()} with "
            f"{os.cpu_count()} cores. Wheels: {', '.join(wheels)}.",
            width=100,
        ),
        "",
        "| query | gatework | " + " | ".join(f"{name} | ×" for name in PEERS) + " |",
        "|--:|" + "--:|" * (1 + 2 * len(PEERS)),
    ]
    for number in range(1, 23):
        ours = medians["gatework"][number]
        cells = [f"{ours:.3f}"]
        for name in PEERS:
            theirs = medians[name].get(number)
            cells += [f"{theirs:.3f}", f"{ours / theirs:.2f}"] if theirs else ["", ""]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    totals, means = [f"{sum(medians['gatework'].values()):.2f}"], [""]
    for name in PEERS:
        if not medians[name]:
            totals, means = [*totals, "", ""], [*means, "", ""]
            continue
        total, mean, count = ratio(medians["gatework"], medians[name])
        totals += [f"{sum(medians[name].values()):.2f}", f"**{total:.2f}**"]
        means += ["" if count == 22 else f"{count} queries", f"{mean:.2f}"]
    lines.append("| total | " + " | ".join(totals) + " |")
    lines.append("| geometric mean | " + " | ".join(means) + " |")
    peaks = [f"{name} {memory[name] / 2**20:.0f} MiB" for name in names]
    peak = f"Peak memory of the process: {', '.join(peaks)}."
    lines += ["", *textwrap.wrap(peak, width=100), ""]
    return "\n".join(lines + [f"* {note}" for note in notes]) + "\n"


def chart(medians, arguments, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4))
    queries = sorted(medians["gatework"])
    # An engine that rejects a query has no total.
    totals = {
        name: {**medians[name], 23: sum(medians[name].values())}
        if len(medians[name]) == len(queries)
        else medians[name]
        for name in ["gatework", *(name for name in PEERS if medians[name])]
    }
    for number in [*queries, 23]:
        figures = [figures[number] for figures in totals.values() if number in figures]
        axes.plot([number] * 2, [min(figures), max(figures)], color="0.8", linewidth=1, zorder=1)
    for marker, (name, figures) in zip("osDv", totals.items()):
        size = 55 if name == "gatework" else 28
        numbers = sorted(figures)
        axes.scatter(
            numbers, [figures[n] for n in numbers], size, marker=marker, label=name, zorder=2
        )
    where = "in memory" if arguments.in_memory else "Parquet"
    title = f"TPC-H, scale factor {arguments.scale_factor:g}, {where}, {arguments.threads} threads"
    axes.set_title(title, loc="left")
    axes.set_xticks(range(1, 24), [*(f"q{n}" for n in range(1, 23)), "all"])
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
    parser.add_argument("--scale-factor", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    home = ROOT / "tpch-data" / "peers"
    python = home / "bin" / "python"
    if Path(sys.prefix) != home:
        if not python.exists():
            venv.create(home, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", ROOT / "benches/peers.txt"]
        subprocess.run(install, check=True)
        os.execv(python, [str(python), *sys.argv])
    medians, memory, notes = measure(arguments)
    suffix = "-memory" if arguments.in_memory else ""
    path = ROOT / "docs" / f"tpch-sf{arguments.scale_factor:g}{suffix}"
    text = table(medians, memory, notes, arguments)
    Path(f"{path}.md").write_text(text)
    chart(medians, arguments, f"{path}.svg")
    print(text)


if __name__ == "__main__":
    main()
