//! Authentication and authorization of clients.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::{TempDir, tempdir};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::fixture::{Data, Worker, gatework, on_workers, urls};

/// Two workers: a single one would get no tasks.
fn two(data: &Data, more: &[&str]) -> [Worker; 2] {
    [Worker::start(data, more), Worker::start(data, more)]
}

const SUM: &str = "SELECT sum(l_quantity) FROM lineitem";

/// The query's exit code and standard error.
fn sum(data: &Data, workers: &[Worker; 2], more: &[&str]) -> (i32, String) {
    let (table, list) = (data.table(), urls(workers));
    let arguments = on_workers(SUM, &table, &list);
    let (code, _, stderr) = gatework(&[&arguments[..], more].concat());
    (code, stderr)
}

fn file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_token_is_asked_for() {
    let (data, folder) = (Data::make(), tempdir().unwrap());
    let right = file(folder.path(), "right", "a secret of the cluster\n");
    let wrong = file(folder.path(), "wrong", "a secret of the clusters");
    let empty = file(folder.path(), "empty", "\n");
    let workers = two(&data, &["--token-file", &right]);
    for more in [&["--token-file", &wrong][..], &[]] {
        let (code, said) = sum(&data, &workers, more);
        assert!(code == 1 && said.contains("refuses (stage "), "{said}");
        assert!(said.contains("the token is missing or wrong"), "{said}");
    }
    let (code, said) = sum(&data, &workers, &["--token-file", &empty]);
    assert!(
        code == 1 && said.contains("a token is one line of at least one visible ASCII"),
        "{said}"
    );
    assert_eq!(sum(&data, &workers, &["--token-file", &right]), (0, String::new()));
}

/// A certificate authority, with certificates that it signs.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempdir().unwrap();
        file(folder.path(), "ca", &issuer.pem());
        Self { folder, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Arguments of a member with this host name.
    fn member(&self, host: &str) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = file(self.folder.path(), &format!("{host}.key"), &key.serialize_pem());
        let certificate = file(self.folder.path(), &format!("{host}.pem"), &certificate.pem());
        let ca = self.path("ca").to_str().unwrap().to_owned();
        let options = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &ca];
        options.map(str::to_owned).to_vec()
    }
}

fn borrowed(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

#[test]
fn certificates_of_both_sides() {
    let data = Data::make();
    let (authority, other) = (Authority::new(), Authority::new());
    let member = authority.member("127.0.0.1");
    let workers = two(&data, &borrowed(&member));
    assert!(workers[0].url.starts_with("https://127.0.0.1:"), "{}", workers[0].url);
    assert_eq!(sum(&data, &workers, &borrowed(&member)), (0, String::new()));
    // The workers connect to each other.
    let (table, list) = (data.table(), urls(&workers));
    let sql =
        "SELECT l_orderkey, sum(l_quantity) FROM lineitem GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3";
    let arguments = on_workers(sql, &table, &list);
    let (code, stdout, stderr) = gatework(&[&arguments[..], &borrowed(&member)].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, gatework(&["sql", sql, "--table", &table]).1);
    // A client of an unknown authority, a server of an unknown authority, and a client without
    // certificates.
    let stranger = other.member("127.0.0.1");
    let (code, said) = sum(&data, &workers, &borrowed(&stranger));
    assert!(code == 1 && said.contains("is lost (stage "), "{said}");
    let mut pretender = stranger.clone();
    pretender[5] = member[5].clone();
    let (code, said) = sum(&data, &workers, &borrowed(&pretender));
    assert!(code == 1 && said.contains("is lost (stage "), "{said}");
    let (code, said) = sum(&data, &workers, &[]);
    assert!(code == 1 && said.contains("needs certificates on this side"), "{said}");
    // A worker whose certificate has another name.
    let elsewhere = two(&data, &borrowed(&authority.member("elsewhere.example")));
    let (code, said) = sum(&data, &elsewhere, &borrowed(&member));
    assert!(code == 1 && said.contains("not valid for name"), "{said}");
    // Files that are not certificates.
    let garbage = file(other.folder.path(), "garbage", "garbage");
    let mut broken = member.clone();
    broken[3] = garbage;
    let (code, said) = sum(&data, &workers, &borrowed(&broken));
    assert!(code == 1 && said.contains("all in PEM format"), "{said}");
}

/// Only allowed locations are read, whichever path leads to them.
#[test]
fn locations_that_were_not_allowed() {
    let (data, elsewhere) = (Data::make(), tempdir().unwrap());
    let workers = two(&data, &[]);
    let (outside_table, list) =
        (|path: &Path| format!("lineitem={}", path.display()), urls(&workers));
    let outside = elsewhere.path().join("lineitem.parquet");
    fs::copy(data.path().join("lineitem.parquet"), &outside).unwrap();
    let link = data.path().join("link.parquet");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    for path in [&outside, &link] {
        let table = outside_table(path);
        let (code, _, stderr) = gatework(&on_workers(SUM, &table, &list));
        assert!(code == 1 && stderr.contains("this worker may not read "), "{stderr}");
        assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
        assert!(stderr.contains("it may read") && stderr.contains(data.folder()), "{stderr}");
    }
    assert_eq!(sum(&data, &workers, &[]).0, 0);
}

/// A codec for raw bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// Sends a worker a request with these bytes as its message.
async fn send_request(
    worker: &Worker,
    method: &str,
    version: Option<&str>,
    message: Bytes,
) -> Status {
    let channel = Channel::from_shared(worker.url.clone()).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = Request::new(message);
    if let Some(version) = version {
        request.metadata_mut().insert("gatework-version", version.parse().unwrap());
    }
    let path = format!("/worker.WorkerService/{method}").parse().unwrap();
    match client.unary(request, path, Raw).await {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    }
}

/// Requests of other versions, oversized requests, invalid messages, and bytes that are no
/// requests. Each is refused, and the worker stays alive.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense() {
    let data = Data::make();
    let workers = two(&data, &[]);
    let worker = &workers[0];
    let own = format!(
        "gatework {} on DataFusion {}",
        env!("CARGO_PKG_VERSION"),
        datafusion::DATAFUSION_VERSION
    );
    let own = Some(own.as_str());
    assert_eq!(
        send_request(worker, "GetWorkerInfo", own, Bytes::new()).await.code(),
        tonic::Code::Ok
    );
    let old = send_request(worker, "GetWorkerInfo", Some("gatework 0.0.1"), Bytes::new()).await;
    assert_eq!(old.code(), tonic::Code::FailedPrecondition);
    assert!(old.message().contains("the query comes from gatework 0.0.1"), "{old}");
    let none = send_request(worker, "GetWorkerInfo", None, Bytes::new()).await;
    assert!(none.message().contains("the query comes from an unknown version"), "{none}");
    for method in ["CoordinatorChannel", "ExecuteTask"] {
        let garbage = send_request(worker, method, own, Bytes::from_static(&[0xff; 1000])).await;
        assert_ne!(garbage.code(), tonic::Code::Ok, "{method}");
        let empty = send_request(worker, method, own, Bytes::new()).await;
        assert_eq!(empty.code(), tonic::Code::InvalidArgument, "{method}: {empty}");
        let large = send_request(worker, method, own, vec![0; 65 << 20].into()).await;
        assert_eq!(large.code(), tonic::Code::OutOfRange, "{method}: {large}");
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let truncated = [&preface[..], &[0, 0, 40, 4, 0]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 10_000], &truncated] {
        let mut stream = TcpStream::connect(worker.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The worker may have closed the connection already.
        let _written = stream.write_all(bytes);
        let _closed = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let timed_out = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(
            !read.as_ref().is_err_and(timed_out),
            "the worker keeps the connection open after {bytes:?}"
        );
    }
    assert_eq!(sum(&data, &workers, &[]), (0, String::new()));
}
