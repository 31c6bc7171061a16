//! A cluster of worker processes on this machine, as a user runs it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::tempdir;

/// A process that is killed when it is not needed any more.
struct Worker {
    process: Child,
    url: String,
}

impl Worker {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_gatework"))
            .args(["worker", "--threads", "1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        Self { process, url }
    }

    /// Time on processors, in ticks.
    fn busy(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(path).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _waited = self.process.wait();
    }
}

fn urls(workers: &[Worker]) -> String {
    workers.iter().map(|worker| worker.url.as_str()).collect::<Vec<_>>().join(",")
}

fn gatework(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_gatework")).args(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A query of one table, in parts however small it is.
fn on_workers<'a>(sql: &'a str, table: &'a str, list: &'a str) -> [&'a str; 8] {
    ["sql", sql, "--table", table, "--workers", list, "--part-size", "1KB"]
}

/// TPC-H on three workers: the results are verified, and nothing but what lies between stages is DataFusion's.
#[test]
fn tpch_on_three_workers() {
    let folder = tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let workers: Vec<_> = (0..3).map(|_| Worker::start()).collect();
    let list = urls(&workers);
    let (code, stdout, stderr) = gatework(&[
        "tpch",
        "--scale-factor",
        "0.02",
        "--data",
        data,
        "--iterations",
        "1",
        "--threads",
        "2",
        "--workers",
        &list,
        "--part-size",
        "1KB",
    ]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("0 of 22"), "{stdout}");
    for worker in &workers {
        assert!(worker.busy() > 10, "a worker without work: {} ticks", worker.busy());
    }
    let table = format!("lineitem={data}/lineitem.parquet");
    let sql = "SELECT l_orderkey, count(*) AS n FROM lineitem GROUP BY l_orderkey ORDER BY n DESC LIMIT 3";
    let (code, stdout, stderr) =
        gatework(&[&on_workers(sql, &table, &list)[..], &["--explain"]].concat());
    assert_eq!(code, 0, "{stderr}");
    for expected in ["DistributedExec", "[gatework] ", "Stage 1", "fallbacks: none"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
}

/// A worker is killed in the middle of a query: it fails soon, and says so; the others are idle soon, and go on.
#[test]
fn a_worker_that_is_killed_fails_the_query() {
    let folder = tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let made = gatework(&[
        "tpch",
        "--scale-factor",
        "0.02",
        "--data",
        data,
        "--queries",
        "6",
        "--iterations",
        "1",
        "--no-verify",
    ]);
    assert_eq!(made.0, 0, "{made:?}");
    let mut workers: Vec<_> = (0..2).map(|_| Worker::start()).collect();
    let list = urls(&workers);
    let table = format!("lineitem={data}/lineitem.parquet");
    // Hours, if it is left alone.
    let sql = "SELECT count(*) FROM lineitem a JOIN lineitem b ON a.l_linenumber = b.l_linenumber \
               WHERE a.l_comment || b.l_comment LIKE '%never%to%be%found%anywhere%'";
    let query = Command::new(env!("CARGO_BIN_EXE_gatework"))
        .args(on_workers(sql, &table, &list))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let busiest = loop {
        let busy = (0..workers.len()).max_by_key(|place| workers[*place].busy()).unwrap();
        if workers[busy].busy() >= 50 {
            break busy;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the query does not come to the workers"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(workers.remove(busiest));
    let Output { status, stderr, .. } = query.wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error"), "{stderr}");
    // The survivor comes to rest, and takes the next query.
    let rests = (0..100).any(|_| {
        let before = workers[0].busy();
        std::thread::sleep(Duration::from_millis(300));
        workers[0].busy() <= before + 1
    });
    assert!(rests, "the other worker goes on");
    let list = urls(&workers);
    let sql = "SELECT count(*), sum(l_orderkey) FROM lineitem";
    let (code, stdout, stderr) = gatework(&on_workers(sql, &table, &list));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
}

#[test]
fn what_a_cluster_refuses() {
    for (arguments, sentence) in [
        (vec!["worker", "--listen", "0.0.0.0:0"], "it listens to this machine only"),
        (vec!["sql", "SELECT 1", "--workers", "nonsense"], "'nonsense' is no worker's address"),
        (vec!["sql", "SELECT 1", "--workers", "https://a:1"], "is no worker's address"),
    ] {
        let (code, _, stderr) = gatework(&arguments);
        assert!(code == 1 && stderr.contains(sentence), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let (code, _, stderr) =
        gatework(&["sql", "SELECT 1", "--workers", "http://a:1", "--nodes", "2"]);
    assert!(code == 2 && stderr.contains("cannot be used with"), "{stderr}");
}
