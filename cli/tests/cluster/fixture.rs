//! Worker processes, data, and faults between them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

/// A query whose work is a join that all workers share: the fewer keys, the more work. With 1000
/// keys it takes one or two seconds on one thread, with 40 about a minute.
pub(crate) fn join_of(keys: usize) -> String {
    let grouped = grouped(keys);
    format!(
        "SELECT count(*) FROM {grouped} a JOIN {grouped} b ON a.k = b.k \
         WHERE a.c || b.c LIKE '%never%to%be%found%anywhere%'"
    )
}

/// A query whose memory grows without bound, shared by all workers: it has more groups than any
/// worker has memory for.
pub(crate) fn distinct_of(keys: usize) -> String {
    let grouped = grouped(keys);
    format!(
        "SELECT count(*) FROM (SELECT a.c || b.c AS d, count(*) FROM {grouped} a JOIN {grouped} b \
         ON a.k = b.k GROUP BY 1)"
    )
}

/// The same without an end.
pub(crate) fn distinct_of_triples() -> String {
    let grouped = grouped(2);
    format!(
        "SELECT count(*) FROM (SELECT a.c || b.c || c.c AS d, count(*) FROM {grouped} a \
         JOIN {grouped} b ON a.k = b.k JOIN {grouped} c ON b.k = c.k GROUP BY 1)"
    )
}

fn grouped(keys: usize) -> String {
    format!(
        "(SELECT l_orderkey, l_partkey % {keys} AS k, max(l_comment) AS c FROM lineitem GROUP BY \
         1, 2)"
    )
}

/// A worker process, killed when dropped.
pub(crate) struct Worker {
    process: Child,
    pub(crate) url: String,
}

impl Worker {
    /// Time for which a worker is observed to decide whether it is idle.
    pub(crate) const IDLE_PROBE: Duration = Duration::from_millis(200);

    /// Starts a worker that may read the data, with more arguments.
    pub(crate) fn start(data: &Data, more: &[&str]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_gatework")), data, more)
    }

    /// Starts a worker whose allocator requests memory from the system on demand.
    pub(crate) fn start_lean(data: &Data) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatework"));
        command.env("MIMALLOC_DISALLOW_ARENA_ALLOC", "1");
        Self::run(command, data, &[])
    }

    /// Starts a worker on another host.
    pub(crate) fn start_on(data: &Data, host: &Host) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.name, env!("CARGO_BIN_EXE_gatework")]);
        Self::run(command, data, &["--listen", &host.far(), "--insecure"])
    }

    fn run(mut command: Command, data: &Data, more: &[&str]) -> Self {
        let command = command.args(["worker", "--threads", "1", "--allow-path", data.folder()]);
        let mut process = command.args(more).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        assert!(url.starts_with("http"), "{url}");
        Self { process, url }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.rsplit('/').next().unwrap().parse().unwrap()
    }

    /// Processor time, in ticks of 10 ms.
    pub(crate) fn busy(&self) -> u64 {
        busy(self.process.id())
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Denies all further memory requests of the worker.
    pub(crate) fn has_no_more_memory(&self) {
        run("prlimit", &["--pid", &self.process.id().to_string(), "--as=1"]);
    }

    /// Waits until the worker is idle, at most 30 s. Returns how long that took.
    pub(crate) fn wait_until_idle(&self) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            let (before, at) = (self.busy(), begun.elapsed());
            thread::sleep(Self::IDLE_PROBE);
            // One tick is allowed for answering pings.
            if self.busy() <= before + 1 {
                return Some(at);
            }
        }
        None
    }

    /// Waits for the worker to exit by itself, and returns its exit code.
    pub(crate) fn wait_for_exit(mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _waited = self.process.wait();
    }
}

pub(crate) fn busy(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).map_or(0, |text| text.parse::<u64>().unwrap());
    ticks(11) + ticks(12)
}

pub(crate) fn signal(process: u32, name: &str) {
    run("kill", &[&format!("-{name}"), &process.to_string()]);
}

fn run(program: &str, arguments: &[&str]) {
    let ended = Command::new(program).args(arguments).status().unwrap();
    assert!(ended.success(), "{program} {arguments:?}: {ended}");
}

pub(crate) fn urls<'a>(workers: impl IntoIterator<Item = &'a Worker>) -> String {
    workers.into_iter().map(|worker| worker.url.as_str()).collect::<Vec<_>>().join(",")
}

/// TPC-H tables at scale factor 0.02.
pub(crate) struct Data(TempDir);

impl Data {
    pub(crate) fn make() -> Self {
        let data = Self(tempdir().unwrap());
        let made = gatework(&[
            "tpch",
            "--scale-factor",
            "0.02",
            "--data",
            data.folder(),
            "--queries",
            "6",
            "--iterations",
            "1",
            "--no-verify",
        ]);
        assert_eq!(made.0, 0, "{made:?}");
        data
    }

    pub(crate) fn folder(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn table(&self) -> String {
        format!("lineitem={}/lineitem.parquet", self.folder())
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatework"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn gatework(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Arguments of a query over one table, distributed however small the table is.
pub(crate) fn on_workers<'a>(sql: &'a str, table: &'a str, list: &'a str) -> [&'a str; 8] {
    ["sql", sql, "--table", table, "--workers", list, "--bytes-per-partition", "1KB"]
}

/// A running query.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self(command(arguments).spawn().unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until `worker` works on the query.
    pub(crate) fn wait_until_reached(&self, worker: &Worker) {
        let begun = Instant::now();
        let before = worker.busy();
        while worker.busy() < before + 20 {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the query does not reach the worker"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Returns exit code, standard error and run time; fails if the query does not end within 60 s.
    pub(crate) fn wait_for_exit(mut self) -> (i32, String, Duration) {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the query hangs");
            thread::sleep(Duration::from_millis(5));
        }
        let took = begun.elapsed();
        let (mut out, mut error) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (self.0.wait().unwrap().code().unwrap_or(-1), out + &error, took)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// A network between a worker and its clients that can be cut: bytes are lost without an error.
pub(crate) struct Network {
    pub(crate) url: String,
    state: Arc<AtomicU64>,
}

const CUT: u64 = u64::MAX;

impl Network {
    pub(crate) fn to(worker: &Worker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (state, target) = (Arc::new(AtomicU64::new(0)), worker.address());
        let shared = state.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (one, other) = (shared.clone(), shared.clone());
                thread::spawn(move || carry(near, far, &one));
                thread::spawn(move || carry(far_too, near_too, &other));
            }
        });
        Self { url, state }
    }

    pub(crate) fn cut(&self) {
        self.state.store(CUT, Ordering::Relaxed);
    }

    /// Delays each chunk by `millis` milliseconds.
    pub(crate) fn slow(&self, millis: u64) {
        self.state.store(millis, Ordering::Relaxed);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        match state.load(Ordering::Relaxed) {
            CUT => continue,
            millis => thread::sleep(Duration::from_millis(millis)),
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Both);
    let _closed = from.shutdown(Shutdown::Both);
}

/// Another host at the end of a cable: a network namespace. Needs root.
pub(crate) struct Host {
    name: String,
    number: u32,
}

static HOSTS: AtomicU64 = AtomicU64::new(0);

impl Host {
    pub(crate) fn make() -> Self {
        let count = u32::try_from(HOSTS.fetch_add(1, Ordering::Relaxed)).unwrap();
        let number = (std::process::id() + count) % 250;
        let host = Self { name: format!("gatework{number}"), number };
        let (name, far) = (host.name.as_str(), format!("far{number}"));
        run("ip", &["netns", "add", name]);
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", &far, "netns", name]);
        let address = |end: u32| format!("10.77.{number}.{end}/24");
        run("ip", &["address", "add", &address(1), "dev", name]);
        run("ip", &["-n", name, "address", "add", &address(2), "dev", &far]);
        run("ip", &["link", "set", name, "up"]);
        run("ip", &["-n", name, "link", "set", &far, "up"]);
        host
    }

    /// The address of this host, as seen from the other one.
    pub(crate) fn near(&self) -> String {
        format!("10.77.{}.1:0", self.number)
    }

    fn far(&self) -> String {
        format!("10.77.{}.2:0", self.number)
    }

    /// Drops all packets from now on, without an error.
    pub(crate) fn unplug(&self) {
        run("ip", &["-n", &self.name, "link", "set", &format!("far{}", self.number), "down"]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// A file system of its own. Needs root.
pub(crate) struct Disk(TempDir);

impl Disk {
    pub(crate) fn make() -> Self {
        let disk = Self(tempdir().unwrap());
        run("mount", &["-t", "tmpfs", "-o", "size=2g", "gatework", disk.folder()]);
        disk
    }

    pub(crate) fn folder(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// Fills the file system.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.0.path().join("full")).unwrap();
        let block = vec![1; 1 << 20];
        while file.write_all(&block).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = Command::new("umount").args(["--lazy", self.folder()]).status();
    }
}
