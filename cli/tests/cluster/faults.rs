//! What becomes of queries and of workers when one of them is gone, and how soon.
//!
//! Bounds of time are measured by the sweep, which is run by hand; tests only know that something ends.

use std::time::Duration;

use tempfile::tempdir;

use crate::world::{Data, Network, Running, Worker, gatework, join_of, on_workers, signal, urls};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    Cut,
}

/// Runs a query that would take minutes on two workers, and lets one of them have this fault after so long. How long
/// it took until the query ended, and until the other worker was idle.
fn struck_by(data: &Data, fault: Fault, after: Duration) -> (Duration, Duration) {
    let struck = Worker::start(data, &[]);
    let other = Worker::start(data, &[]);
    let network = Network::to(&struck);
    let (list, table) = (format!("{},{}", network.url, other.url), data.table());
    let query = Running::start(&on_workers(&join_of(40), &table, &list));
    query.reaches(&other);
    std::thread::sleep(after);
    match fault {
        Fault::Killed => struck.signal("KILL"),
        Fault::Stopped => struck.signal("STOP"),
        Fault::Cut => network.cut(),
    }
    let (code, said, ended) = query.ends();
    assert_eq!(code, 1, "{fault:?}: {said}");
    let names = ["is lost (stage ", ", task ", &network.url];
    assert!(names.iter().all(|name| said.contains(name)), "{fault:?}: {said}");
    let rested = other.rests().expect("the other worker goes on");
    if fault == Fault::Cut {
        struck.rests().expect("the worker that nobody reaches goes on");
    }
    // It takes the next query, with somebody else.
    let third = Worker::start(data, &[]);
    let (list, sql) = (urls([&other, &third]), "SELECT count(*), sum(l_orderkey) FROM lineitem");
    let (code, stdout, stderr) = gatework(&on_workers(sql, &table, &list));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
    (ended, rested)
}

#[test]
fn a_worker_is_killed() {
    struck_by(&Data::make(), Fault::Killed, Duration::ZERO);
}

#[test]
fn a_worker_is_stopped() {
    struck_by(&Data::make(), Fault::Stopped, Duration::ZERO);
}

#[test]
fn a_worker_is_cut_off() {
    struck_by(&Data::make(), Fault::Cut, Duration::ZERO);
}

/// `cargo test --release -p gatework-cli --test cluster -- --ignored --nocapture sweep`
#[test]
#[ignore = "takes minutes; prints the bounds that docs/cluster.md states"]
fn sweep_of_ten_moments() {
    let data = Data::make();
    for fault in [Fault::Killed, Fault::Stopped, Fault::Cut] {
        let moments = (0..10).map(|moment| Duration::from_millis(moment * moment * 37));
        let took: Vec<_> = moments.map(|after| struck_by(&data, fault, after)).collect();
        let ended = took.iter().map(|took| took.0).max().unwrap();
        let rested = took.iter().map(|took| took.1).max().unwrap();
        println!("{fault:?}: ended within {ended:?}, the other idle within {rested:?} more");
    }
}

/// The client is gone: nobody wants the rows any more.
#[test]
fn workers_whose_client_is_gone_come_to_rest() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let (list, table) = (urls(&workers), data.table());
    for name in ["KILL", "STOP", "INT"] {
        let query = Running::start(&on_workers(&join_of(40), &table, &list));
        query.reaches(&workers[0]);
        signal(query.id(), name);
        for worker in &workers {
            worker.rests().unwrap_or_else(|| panic!("SIG{name}: a worker goes on"));
        }
    }
}

/// One of three is gone; the query runs again on the two that are left, and its result is right.
#[test]
fn a_query_runs_again_without_the_worker_that_was_lost() {
    let data = Data::make();
    let mut workers: Vec<_> = (0..3).map(|_| Worker::start(&data, &[])).collect();
    let (list, table) = (urls(&workers), data.table());
    let sql = &join_of(400);
    let arguments = on_workers(sql, &table, &list);
    let query = Running::start(&[&arguments[..], &["--retries", "1"]].concat());
    query.reaches(&workers[1]);
    drop(workers.remove(1));
    let (code, said, _) = query.ends();
    assert_eq!(code, 0, "{said}");
    assert_eq!(said, gatework(&["sql", sql, "--table", &table]).1);
    // What writes is not run again.
    drop(workers.remove(0));
    let target = data.path().join("copy");
    let copy = format!("COPY ({sql}) TO '{}/' STORED AS PARQUET", target.display());
    let arguments = on_workers(&copy, &table, &list);
    let (code, _, stderr) = gatework(&[&arguments[..], &["--retries", "3"]].concat());
    assert!(code == 1 && stderr.contains("is lost (stage "), "{stderr}");
}

/// One of two is gone: what is left runs in this process, with all groups of the result.
#[test]
fn a_query_runs_again_with_nobody_to_share_it() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let (list, table) = (urls(&workers), data.table());
    let sql = &format!(
        "SELECT p % 1000 AS p, sum(n) AS n FROM ({}) GROUP BY 1",
        join_of(400)
            .replace("SELECT count(*)", "SELECT a.l_orderkey AS p, count(*) AS n")
            .replace("'%never%to%be%found%anywhere%'", "'%a%b%c%furiously%' GROUP BY 1")
    );
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let arguments = on_workers(sql, &table, &list);
    let more = ["--retries", "1", "--format", "csv"];
    let query = Running::start(&[&arguments[..], &more].concat());
    query.reaches(&workers[1]);
    workers[1].signal("KILL");
    let (code, said, _) = query.ends();
    assert_eq!(code, 0, "{said}");
    let alone = gatework(&["sql", sql, "--table", &table, "--format", "csv"]).1;
    assert!(alone.lines().count() > 100, "{alone}");
    assert_eq!(sorted(said), sorted(alone));
}

/// A value of 60 kB in the text of an error is no break.
#[test]
fn an_error_with_a_long_text() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let (list, table) = (urls(&workers), data.table());
    let sql = "SELECT sum(CAST(repeat('is lost (stage ', 4000) || l_comment AS INT)) FROM lineitem";
    let arguments = on_workers(sql, &table, &list);
    let (code, _, stderr) = gatework(&[&arguments[..], &["--retries", "3"]].concat());
    let start = stderr.split("is lost (stage ").next().unwrap();
    assert!(
        code == 1 && start.contains(", stage ") && start.contains("Cannot cast string"),
        "{start}"
    );
}

/// A worker comes back at the same address: whoever knew it connects anew.
#[test]
fn a_worker_comes_back() {
    let data = Data::make();
    let (first, other) = (Worker::start(&data, &[]), Worker::start(&data, &[]));
    let (list, table) = (urls([&first, &other]), data.table());
    let address = first.address().to_string();
    let sql =
        "SELECT l_orderkey, sum(l_quantity) FROM lineitem GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3";
    let before = gatework(&on_workers(sql, &table, &list));
    assert_eq!(before.0, 0, "{}", before.2);
    drop(first);
    let _again = Worker::start(&data, &["--listen", &address]);
    // The other one had a connection to it.
    for _ in 0..3 {
        assert_eq!(gatework(&on_workers(sql, &table, &list)), before);
    }
}

/// No disk and no memory on workers: an error that says so, and whose.
#[test]
fn a_worker_without_room() {
    let data = Data::make();
    let temporary = tempdir().unwrap();
    let folder = temporary.path().to_str().unwrap();
    let small = ["--memory-limit", "1MB", "--temp-dir", folder, "--temp-limit", "100KB"];
    let poor = [Worker::start(&data, &small), Worker::start(&data, &small)];
    let (list, table) = (urls(&poor), data.table());
    let sorted = "SELECT l_comment, l_orderkey FROM lineitem ORDER BY 1, 2 LIMIT 60000";
    let grouped =
        "SELECT l_orderkey, l_comment, count(*) FROM lineitem GROUP BY 1, 2 ORDER BY 3 LIMIT 1";
    for sql in [sorted, grouped] {
        let (code, _, stderr) = gatework(&on_workers(sql, &table, &list));
        assert_eq!(code, 1, "{stderr}");
        assert!(poor.iter().any(|worker| stderr.contains(&worker.url)), "{stderr}");
        let says = [", stage ", ", task ", "max_temp_directory_size"];
        assert!(says.iter().all(|word| stderr.contains(*word)), "{stderr}");
        for worker in &poor {
            worker.rests().expect("it goes on");
        }
        assert_eq!(
            temporary
                .path()
                .read_dir()
                .unwrap()
                .flat_map(|entry| entry.unwrap().path().read_dir())
                .flatten()
                .count(),
            0
        );
    }
}

/// A network that takes its time delays a query, and nothing else.
#[test]
fn a_slow_network_is_no_break() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let network = Network::to(&workers[0]);
    network.slow(5);
    let (list, table) = (format!("{},{}", network.url, workers[1].url), data.table());
    let sql = "SELECT l_orderkey, sum(l_quantity) AS q FROM lineitem GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10";
    let (code, stdout, stderr) = gatework(&on_workers(sql, &table, &list));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
}

/// A worker that is told to end finishes what it has, and ends.
#[test]
fn a_worker_drains() {
    let data = Data::make();
    let (worker, other) = (Worker::start(&data, &[]), Worker::start(&data, &[]));
    let (list, table) = (urls([&worker, &other]), data.table());
    let sql = &join_of(400);
    let query = Running::start(&on_workers(sql, &table, &list));
    query.reaches(&worker);
    worker.signal("TERM");
    let (code, said, _) = query.ends();
    assert_eq!((code, worker.ends()), (0, Some(0)), "{said}");
    assert_eq!(said, gatework(&["sql", sql, "--table", &table]).1);
}

/// Ctrl-C ends a worker at once, whatever it has, and leaves no file.
#[test]
fn a_worker_is_interrupted() {
    let (data, temporary) = (Data::make(), tempdir().unwrap());
    let folder = temporary.path().to_str().unwrap();
    let small = ["--memory-limit", "1MB", "--temp-dir", folder];
    let workers = [Worker::start(&data, &small), Worker::start(&data, &small)];
    let (list, table) = (urls(&workers), data.table());
    let query = Running::start(&on_workers(&join_of(40), &table, &list));
    query.reaches(&workers[0]);
    let spilled = temporary.path().read_dir().unwrap().count();
    assert!(spilled > 0, "nothing was spilled");
    for worker in workers {
        worker.signal("INT");
        assert_eq!(worker.ends(), Some(130));
    }
    assert_eq!(query.ends().0, 1);
    assert_eq!(temporary.path().read_dir().unwrap().count(), 0);
}
