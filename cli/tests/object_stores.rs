//! Tables in an object store: an S3 server in this process, and its failures.

#![cfg(feature = "object-stores")]
#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::{TempDir, tempdir};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A server with the bucket `data`.
struct Server {
    _folder: TempDir,
    _runtime: Runtime,
    address: SocketAddr,
}

impl Server {
    /// Starts a server that knows the key `key` with its secret.
    fn start() -> Self {
        Self::with(Some(SimpleAuth::from_single("key", "secret")))
    }

    fn with(auth: Option<SimpleAuth>) -> Self {
        let folder = tempdir().unwrap();
        let bucket = folder.path().join("data");
        fs::create_dir_all(bucket.join("logs/day=1")).unwrap();
        fs::create_dir_all(bucket.join("logs/day=2")).unwrap();
        fs::write(bucket.join("people.csv"), "id;name\n1;ann\n2;bob\n").unwrap();
        fs::write(bucket.join("logs/day=1/a.csv"), "n\n1\n").unwrap();
        fs::write(bucket.join("logs/day=2/b.csv"), "n\n5\n").unwrap();
        // Hidden, as files of that name are.
        fs::write(bucket.join("logs/day=2/_c.csv"), "n\n100\n").unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        if let Some(auth) = auth {
            service.set_auth(auth);
        }
        let service = service.build();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let builder = Builder::new(TokioExecutor::new());
                let service = service.clone();
                tokio::spawn(async move {
                    // A client may leave at any time.
                    let _left = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { _folder: folder, _runtime: runtime, address }
    }

    fn run(&self, sql: &str) -> (i32, String, String) {
        run(self.address, "secret", sql)
    }
}

/// Runs a query with the store at `address`. Returns the exit code and output of the command.
fn run(address: SocketAddr, secret: &str, sql: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_gatework"))
        .args([sql, "--format", "csv"])
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", format!("http://{address}"))
        .env("AWS_ALLOW_HTTP", "true")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn objects_are_tables() {
    let server = Server::start();
    let note = "note: 's3://data/people.csv': values are separated by ';'\n";
    assert_eq!(
        server.run("SELECT name FROM 's3://data/people.csv' WHERE id = 2"),
        (0, "name\nbob\n".to_owned(), note.to_owned())
    );
    for sql in [
        "SELECT sum(n) AS n FROM 's3://data/logs/'",
        "SELECT sum(n) AS n FROM 's3://data/logs/*/*.csv'",
        "SELECT sum(n) AS n FROM 's3://data/logs' WHERE day > 0",
    ] {
        assert_eq!(server.run(sql), (0, "n\n6\n".to_owned(), String::new()), "{sql}");
    }
    let write = "COPY (SELECT 7 AS n) TO 's3://data/new.parquet'; FROM 's3://data/new.parquet'";
    assert_eq!(server.run(write), (0, "count\n1\nn\n7\n".to_owned(), String::new()));
}

#[test]
fn options_of_a_table_open_its_store() {
    let server = Server::start();
    let create = |key: &str, secret: &str| {
        format!(
            "CREATE EXTERNAL TABLE people STORED AS CSV LOCATION 's3://data/people.csv' OPTIONS \
             ('{key}' 'key', 'aws.secret_access_key' '{secret}', 'format.delimiter' ';'); \
             SELECT name FROM people WHERE id = 2"
        )
    };
    // The variables of the process have another secret.
    let run = |sql: &str| run(server.address, "wrong", sql);
    let (code, rows, stderr) = run(&create("aws.access_key_id", "secret"));
    assert_eq!((code, rows.as_str(), stderr.as_str()), (0, "name\nbob\n", ""));
    let (code, _, stderr) = run(&create("aws.access_key", "secret"));
    assert_eq!(code, 1);
    assert_eq!(
        stderr,
        "error: there is no option 'aws.access_key' of S3; options are named like the variables, \
         for example 'aws.access_key_id'\n"
    );
}

#[test]
fn objects_of_a_pattern_have_partition_columns() {
    let server = Server::start();
    for pattern in ["logs/*/*.csv", "logs/day=*/[ab].csv"] {
        let sql = format!("SELECT n FROM 's3://data/{pattern}' WHERE day = '2'");
        assert_eq!(server.run(&sql), (0, "n\n5\n".to_owned(), String::new()), "{pattern}");
    }
}

#[test]
fn files_of_a_web_server_are_tables() {
    let server = Server::with(None);
    let url = format!("http://{}/data/people.csv", server.address);
    let (code, stdout, _) = server.run(&format!("SELECT name FROM '{url}' WHERE id = 1"));
    assert_eq!((code, stdout.as_str()), (0, "name\nann\n"));
    let (code, _, stderr) = server.run(&format!("FROM '{url}?version=1'"));
    assert_eq!(code, 1);
    assert!(stderr.contains("queries behind '?' are not supported"), "{stderr}");
}

#[test]
fn failures_of_a_store_are_answered_with_a_sentence() {
    let server = Server::start();
    let sql = "FROM 's3://data/people.csv'";
    let refused = "the store refuses access; check the credentials, for S3 AWS_ACCESS_KEY_ID and \
                   AWS_SECRET_ACCESS_KEY";
    let answer = |reason: &str, path: &str| {
        (1, String::new(), format!("error: '{path}' cannot be read: {reason}\n"))
    };
    let people = "s3://data/people.csv";
    assert_eq!(run(server.address, "wrong", sql), answer(refused, people));
    assert_eq!(
        run(server.address, "wrong", "FROM 's3://data/logs/*.csv'"),
        answer(refused, "s3://data/logs/*.csv")
    );
    assert_eq!(
        server.run("FROM 's3://nothing/logs/'"),
        answer("there is no such bucket", "s3://nothing/logs/")
    );
    let missing = server.run("FROM 's3://data/nobody.csv'");
    assert_eq!(missing, answer("there is no object 'nobody.csv'", "s3://data/nobody.csv"));
    let none = server.run("FROM 's3://data/*.parquet'");
    assert_eq!(none, (1, String::new(), "error: no object matches 's3://data/*.parquet'\n".into()));
    let unknown = server.run("FROM 'ftp://host/a.csv'");
    assert_eq!(unknown.0, 1);
    assert!(unknown.2.contains("there is no store for 'ftp://'"), "{}", unknown.2);
    // Nothing listens on the port of a server that has ended.
    let address = server.address;
    drop(server);
    let (code, _, stderr) = run(address, "secret", sql);
    assert_eq!(code, 1);
    let expected = format!("error: '{people}' cannot be read: the store cannot be reached: ");
    assert!(stderr.starts_with(&expected) && stderr.contains("refused"), "{stderr}");
}
