//! Queries and workers after the loss of a worker, and how long they take to end.
//!
//! Time bounds are measured by the sweeps, which are run by hand; tests only check that queries and
//! workers end.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::fixture::{
    Data, Disk, Host, Network, Running, Worker, distinct_of, distinct_of_triples, gatework,
    join_of, on_workers, signal, urls,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    Cut,
    /// The worker runs on a host of its own whose cable is unplugged. Needs root.
    Unplugged,
    /// The worker gets no more memory.
    OutOfMemory,
    /// The worker spills to a file system of its own, which is full. Needs root.
    DiskFull,
}

/// Time until the query ended, and until the remaining workers were idle.
type Took = [Duration; 2];

/// Runs a query of several minutes on two workers, and injects this fault into one of them after
/// `after`.
fn struck_by(data: &Data, sql: &str, fault: Fault, after: Duration) -> Took {
    let host = (fault == Fault::Unplugged).then(Host::make);
    let disk = (fault == Fault::DiskFull).then(Disk::make);
    let struck = match (&host, &disk) {
        (Some(host), _) => Worker::start_on(data, host),
        (_, Some(disk)) => {
            Worker::start(data, &["--memory-limit", "1MB", "--temp-dir", disk.folder()])
        }
        _ if fault == Fault::OutOfMemory => Worker::start_lean(data),
        _ => Worker::start(data, &[]),
    };
    let other = match &host {
        Some(host) => Worker::start(data, &["--listen", &host.near(), "--insecure"]),
        None => Worker::start(data, &[]),
    };
    let network = host.is_none().then(|| Network::to(&struck));
    let at = network.as_ref().map_or(&struck.url, |network| &network.url);
    let (list, table) = (format!("{at},{}", other.url), data.table());
    let query = Running::start(&on_workers(sql, &table, &list));
    query.wait_until_reached(&other);
    thread::sleep(after);
    match (fault, &network, &host, &disk) {
        (Fault::Stopped, ..) => struck.signal("STOP"),
        (Fault::OutOfMemory, ..) => struck.has_no_more_memory(),
        (Fault::Cut, Some(network), ..) => network.cut(),
        (Fault::Unplugged, _, Some(host), _) => host.unplug(),
        (Fault::DiskFull, .., Some(disk)) => disk.fill(),
        _ => struck.signal("KILL"),
    }
    let (code, said, ended) = query.wait_for_exit();
    assert_eq!(code, 1, "{fault:?}: {said}");
    let why = if disk.is_some() { "No space left" } else { "is lost (stage " };
    let names = [why, "stage ", ", task ", at];
    assert!(names.iter().all(|name| said.contains(name)), "{fault:?}: {said}");
    let rested = other.wait_until_idle().expect("the other worker does not become idle");
    if matches!(fault, Fault::Cut | Fault::Unplugged | Fault::DiskFull) {
        struck.wait_until_idle().expect("the faulty worker does not become idle");
    }
    // The remaining worker runs the next query with a new one.
    let third = Worker::start(data, &[]);
    let (list, sql) = (urls([&other, &third]), "SELECT count(*), sum(l_orderkey) FROM lineitem");
    let (code, stdout, stderr) = gatework(&on_workers(sql, &table, &list));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
    [ended, rested]
}

/// Slows the network of one of a query's two workers, and sends the client a signal after `after`.
/// Returns the time until that worker was idle, and until both were.
fn left_by(data: &Data, sql: &str, name: &str, after: Duration) -> Took {
    let workers = [Worker::start(data, &[]), Worker::start(data, &[])];
    let network = Network::to(&workers[0]);
    let (list, table) = (format!("{},{}", network.url, workers[1].url), data.table());
    let mut query = Running::start(&on_workers(sql, &table, &list));
    query.wait_until_reached(&workers[1]);
    network.slow(20);
    thread::sleep(after);
    if !query.is_running() {
        panic!("a slow network must not fail the query: {:?}", query.wait_for_exit());
    }
    let begun = Instant::now();
    signal(query.id(), name);
    thread::scope(|scope| {
        let idle_after = |worker: &Worker| {
            worker
                .wait_until_idle()
                .unwrap_or_else(|| panic!("SIG{name}: a worker does not become idle"));
            begun.elapsed().saturating_sub(Worker::IDLE_PROBE)
        };
        let waits = workers.each_ref().map(|worker| scope.spawn(move || idle_after(worker)));
        let took = waits.map(|wait| wait.join().unwrap());
        [took[0], took[0].max(took[1])]
    })
}

#[test]
fn a_worker_is_killed() {
    struck_by(&Data::make(), &join_of(40), Fault::Killed, Duration::ZERO);
}

/// Rows are produced for readers of which some are lost and others are never polled again.
#[test]
fn a_worker_is_killed_while_rows_are_on_their_way() {
    struck_by(&Data::make(), &distinct_of_triples(), Fault::Killed, Duration::from_secs(2));
}

#[test]
fn a_worker_is_stopped() {
    struck_by(&Data::make(), &join_of(40), Fault::Stopped, Duration::ZERO);
}

#[test]
fn a_worker_is_cut_off() {
    struck_by(&Data::make(), &join_of(40), Fault::Cut, Duration::ZERO);
}

/// A tenth of the moments is late; most are early.
fn moments() -> impl Iterator<Item = Duration> {
    let random = RandomState::new();
    (1..=10).map(move |moment: u64| Duration::from_millis(random.hash_one(moment) % (400 * moment)))
}

/// Prints the maximum of ten runs: time until the query ended or one worker was idle, and until all
/// remaining workers were.
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn sweep(what: &str, mut one: impl FnMut(Duration) -> Took) {
    let took: Vec<_> = moments().map(&mut one).collect();
    let longest = |which: usize| took.iter().map(|took| took[which]).max();
    println!("{what}: {:?}, {:?}", longest(0).unwrap(), longest(1).unwrap());
}

/// A query that joins for a minute, and one that builds an ever growing number of groups.
fn heavy() -> [(&'static str, String); 2] {
    [("join", join_of(40)), ("distinct", distinct_of(40))]
}

// All sweeps, run as root: `cargo test --release -p gatework-cli --test cluster -- sweep`, with
// `--ignored --nocapture --test-threads 1`.

#[test]
#[ignore = "takes a quarter of an hour; prints the bounds that docs/cluster.md states"]
fn sweep_of_lost_workers() {
    let data = Data::make();
    for (name, sql) in heavy() {
        for fault in [Fault::Killed, Fault::Stopped, Fault::Cut, Fault::Unplugged] {
            sweep(&format!("{name}, {fault:?}"), |after| struck_by(&data, &sql, fault, after));
        }
    }
}

#[test]
#[ignore = "takes ten minutes; prints the bounds that docs/cluster.md states"]
fn sweep_of_lost_clients() {
    let data = Data::make();
    for (name, sql) in heavy() {
        for signal in ["KILL", "INT", "STOP"] {
            let what = format!("{name}, slow network, and SIG{signal} of the client");
            sweep(&what, |after| left_by(&data, &sql, signal, after));
        }
    }
}

#[test]
#[ignore = "takes five minutes; prints the bounds that docs/cluster.md states"]
fn sweep_of_workers_without_room() {
    let (data, sql) = (Data::make(), distinct_of(40));
    for fault in [Fault::OutOfMemory, Fault::DiskFull] {
        sweep(&format!("distinct, {fault:?}"), |after| struck_by(&data, &sql, fault, after));
    }
}

/// The client is lost, so the rows have no reader.
#[test]
fn workers_whose_client_is_gone_come_to_rest() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let (list, table) = (urls(&workers), data.table());
    for name in ["KILL", "STOP", "INT"] {
        let query = Running::start(&on_workers(&join_of(40), &table, &list));
        query.wait_until_reached(&workers[0]);
        signal(query.id(), name);
        for worker in &workers {
            worker
                .wait_until_idle()
                .unwrap_or_else(|| panic!("SIG{name}: a worker does not become idle"));
        }
    }
}

/// One of three workers is lost: the query is retried on the other two, and its result is right.
#[test]
fn a_query_runs_again_without_the_worker_that_was_lost() {
    let data = Data::make();
    let mut workers: Vec<_> = (0..3).map(|_| Worker::start(&data, &[])).collect();
    let (list, table) = (urls(&workers), data.table());
    let sql = &join_of(400);
    let arguments = on_workers(sql, &table, &list);
    let query = Running::start(&[&arguments[..], &["--retries", "1"]].concat());
    query.wait_until_reached(&workers[1]);
    drop(workers.remove(1));
    let (code, said, _) = query.wait_for_exit();
    assert_eq!(code, 0, "{said}");
    assert_eq!(said, gatework(&["sql", sql, "--table", &table]).1);
    // A query that writes is not retried.
    drop(workers.remove(0));
    let target = data.path().join("copy");
    let copy = format!("COPY ({sql}) TO '{}/' STORED AS PARQUET", target.display());
    let arguments = on_workers(&copy, &table, &list);
    let (code, _, stderr) = gatework(&[&arguments[..], &["--retries", "3"]].concat());
    assert!(code == 1 && stderr.contains("is lost (stage "), "{stderr}");
}

/// One of two workers is lost: the retry runs in this process, with all groups of the result.
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
    query.wait_until_reached(&workers[1]);
    workers[1].signal("KILL");
    let (code, said, _) = query.wait_for_exit();
    assert_eq!(code, 0, "{said}");
    let alone = gatework(&["sql", sql, "--table", &table, "--format", "csv"]).1;
    assert!(alone.lines().count() > 100, "{alone}");
    assert_eq!(sorted(said), sorted(alone));
}

/// A value of 60 kB in the text of an error does not break the connection.
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

/// A worker restarts at the same address: clients that knew it reconnect.
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
    // The other worker had a connection to the old process.
    for _ in 0..3 {
        assert_eq!(gatework(&on_workers(sql, &table, &list)), before);
    }
}

/// A worker without disk and memory: the error names the cause and the worker.
#[test]
fn a_worker_without_room() {
    let data = Data::make();
    let temporary = tempdir().unwrap();
    let folder = temporary.path().to_str().unwrap();
    let small = ["--memory-limit", "1MB", "--temp-dir", folder, "--max-temp-size", "100KB"];
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
            worker.wait_until_idle().expect("the worker does not become idle");
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

/// A slow network delays a query, but does not fail it.
#[test]
fn a_slow_network_is_no_break() {
    let data = Data::make();
    let workers = [Worker::start(&data, &[]), Worker::start(&data, &[])];
    let network = Network::to(&workers[0]);
    network.slow(5);
    let (list, table) = (format!("{},{}", network.url, workers[1].url), data.table());
    let sql = "SELECT l_orderkey, sum(l_quantity) AS q FROM lineitem GROUP BY 1 ORDER BY 2 DESC, \
               1 LIMIT 10";
    let (code, stdout, stderr) = gatework(&on_workers(sql, &table, &list));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
}

/// A worker that receives SIGTERM finishes its active tasks and exits.
#[test]
fn a_worker_drains() {
    let data = Data::make();
    // Tasks without metrics collection answer before they have run.
    for setting in ["", "SET distributed.collect_metrics = false; "] {
        let (worker, other) = (Worker::start(&data, &[]), Worker::start(&data, &[]));
        let (list, table) = (urls([&worker, &other]), data.table());
        let sql = &format!("{setting}{}", join_of(400));
        let query = Running::start(&on_workers(sql, &table, &list));
        query.wait_until_reached(&worker);
        worker.signal("TERM");
        let (code, said, _) = query.wait_for_exit();
        assert_eq!((code, worker.wait_for_exit()), (0, Some(0)), "{said}");
        assert_eq!(said, gatework(&["sql", &join_of(400), "--table", &table]).1);
    }
}

/// Ctrl-C ends a worker at once, whatever it runs, and leaves no file. Prints how long it took.
#[test]
#[allow(clippy::print_stdout, reason = "docs/cluster.md says how long it takes")]
fn a_worker_is_interrupted() {
    let (data, temporary) = (Data::make(), tempdir().unwrap());
    let folder = temporary.path().to_str().unwrap();
    let small = ["--memory-limit", "1MB", "--temp-dir", folder];
    let workers = [Worker::start(&data, &small), Worker::start(&data, &small)];
    let (list, table) = (urls(&workers), data.table());
    let query = Running::start(&on_workers(&join_of(40), &table, &list));
    query.wait_until_reached(&workers[0]);
    let spilled = temporary.path().read_dir().unwrap().count();
    assert!(spilled > 0, "nothing was spilled");
    for worker in workers {
        worker.signal("INT");
        let begun = Instant::now();
        assert_eq!(worker.wait_for_exit(), Some(130));
        println!("the worker ended after {:?}", begun.elapsed());
    }
    assert_eq!(query.wait_for_exit().0, 1);
    assert_eq!(temporary.path().read_dir().unwrap().count(), 0);
}
