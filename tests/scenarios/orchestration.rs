//! Deployment files: Kubernetes manifests, HAProxy configurations, the compose file. The programs themselves check them, and their queries
//! are checked against the relay's real output.

use std::path::{Path, PathBuf};

use crate::harness::http::{get, http_address};
use crate::harness::machine::{beside_others, cannot_run};
use crate::harness::program::run;
use crate::harness::relay::{BINARY, Relay};
use crate::harness::{DEADLINE, scratch_file, test_file, wait_until};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("--help").output().is_ok()
}

#[test]
fn the_manifests_are_right() {
    let _turn = beside_others();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if !has("kubectl") || !has("promtool") || !python.exists() {
        return cannot_run("the manifests' check needs kubectl, promtool and .venv, which tests/run installs");
    }
    let relay = Relay::configured(
        "listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n[[stream]]\nname = \"t\"\nsource = \"test\"\n",
    )
    .serving("/");
    let metrics = scratch_file("metrics");
    let mut told = String::new();
    // Values of the last interval appear after the first interval.
    wait_until("all is told", DEADLINE, || {
        told = get(http_address(&relay), "/metrics").1;
        told.contains("rtsprelay_source_fps{")
    });
    std::fs::write(&metrics, told).unwrap();
    let script = test_file("orchestration/manifests.py");
    let arguments = [script.to_str().unwrap(), BINARY, metrics.to_str().unwrap()];
    let checked = run(DEADLINE, python.to_str().unwrap(), &arguments);
    std::fs::remove_file(metrics).unwrap();
    assert!(checked.status.success(), "{}\n{}", checked.stdout, checked.stderr);
}

#[test]
fn haproxy_and_prometheus_take_their_configurations() {
    let _turn = beside_others();
    if !has("haproxy") || !has("promtool") {
        return cannot_run("this check needs haproxy and promtool, which tests/run installs");
    }
    for name in ["haproxy.cfg", "container/compose/haproxy.cfg"] {
        let checked = run(DEADLINE, "haproxy", &["-c", "-f", packaging(name).to_str().unwrap()]);
        assert!(checked.status.success(), "{name}: {checked:#?}");
        assert!(!(checked.stdout + &checked.stderr).contains("WARNING"), "{name}");
    }
    let prometheus = packaging("container/compose/prometheus.yml");
    let checked = run(DEADLINE, "promtool", &["check", "config", prometheus.to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:#?}");
    for name in ["container/rtsprelay.toml", "container/compose/origin.toml", "container/compose/edge.toml"] {
        let file = packaging(name);
        let mut command = std::process::Command::new(BINARY);
        command.args(["check", "--config", file.to_str().unwrap()]).env("EDGE_PASSWORD", "secret");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
    // Every file that the compose file mounts exists.
    let compose = std::fs::read_to_string(packaging("container/compose.yaml")).unwrap();
    let mounted: Vec<&str> = compose
        .split('"')
        .filter_map(|text| text.strip_prefix("./").or(text.strip_prefix("seccomp=./")))
        .map(|text| text.split(':').next().unwrap())
        .collect();
    assert!(mounted.len() >= 6, "{mounted:?}");
    for file in mounted {
        assert!(packaging("container").join(file).exists(), "{file}");
    }
}
