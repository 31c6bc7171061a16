//! A cluster of worker processes on this machine, as a user runs it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

mod access;
mod faults;
mod fixture;

use fixture::{Data, Worker, gatework, on_workers, urls};
use yaml_rust2::YamlLoader;

/// TPC-H on three workers: verified results, with no fallback nodes but those between stages.
#[test]
fn tpch_on_three_workers() {
    let data = Data::make();
    let workers: Vec<_> = (0..3).map(|_| Worker::start(&data, &[])).collect();
    let list = urls(&workers);
    let (code, stdout, stderr) = gatework(&[
        "tpch",
        "--data",
        data.folder(),
        "--iterations",
        "1",
        "--threads",
        "2",
        "--workers",
        &list,
        "--bytes-per-partition",
        "1KB",
    ]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("0 of 22"), "{stdout}");
    for worker in &workers {
        assert!(worker.busy() > 10, "a worker without work: {} ticks", worker.busy());
    }
    let table = data.table();
    let sql = "SELECT l_orderkey, count(*) AS n FROM lineitem GROUP BY l_orderkey ORDER BY n DESC \
               LIMIT 3";
    let (code, stdout, stderr) =
        gatework(&[&on_workers(sql, &table, &list)[..], &["--explain"]].concat());
    assert_eq!(code, 0, "{stderr}");
    for expected in ["DistributedExec", "[gatework] ", "Stage 1", "fallbacks: none"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
}

#[test]
fn what_a_cluster_refuses() {
    for (arguments, sentence) in [
        (vec!["worker", "--listen", "0.0.0.0:0"], "encrypt connections with --tls-cert"),
        (vec!["worker", "--allow-path", "/no/such"], "--allow-path needs an existing path"),
        (vec!["worker", "--token-file", "/no/such"], "--token-file /no/such: No such file"),
        (vec!["sql", "SELECT 1", "--workers", "nonsense"], "'nonsense' is not a worker's address"),
        (vec!["sql", "SELECT 1", "--workers", "http://a:1,http://a:1"], "is listed twice"),
    ] {
        let (code, _, stderr) = gatework(&arguments);
        assert!(code == 1 && stderr.contains(sentence), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    for arguments in [
        &["sql", "SELECT 1", "--workers", "http://a:1", "--nodes", "2"][..],
        &["worker", "--tls-cert", "some"],
    ] {
        let (code, _, stderr) = gatework(arguments);
        assert!(
            code == 2 && stderr.contains("cannot be used with") | stderr.contains("required"),
            "{stderr}"
        );
    }
}

/// The manifest in docs/cluster.md is valid YAML, and the worker knows all its options.
#[test]
fn the_manifest_of_the_documentation() {
    let text = std::fs::read_to_string("../docs/cluster.md").unwrap();
    let manifest = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let documents = YamlLoader::load_from_str(manifest).unwrap();
    let kinds: Vec<_> =
        documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Service", "StatefulSet"]);
    let pod = &documents[1]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let arguments: Vec<_> =
        container["args"].as_vec().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "worker");
    let help = gatework(&["worker", "--help"]).1;
    for argument in &arguments[1..] {
        let option = argument.split('=').next().unwrap();
        assert!(help.contains(&format!("{option} <")), "{option} is not in {help}");
    }
    // Every mount has a volume.
    let volumes: Vec<_> = pod["volumes"].as_vec().unwrap().iter().map(|one| &one["name"]).collect();
    for mount in container["volumeMounts"].as_vec().unwrap() {
        assert!(volumes.contains(&&mount["name"]), "{mount:?}");
    }
}
