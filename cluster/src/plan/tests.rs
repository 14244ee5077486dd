//! What is planned, and on which ports.

use std::path::Path;

use crate::{Options, Ports, ProcessSpec};

use super::{Error, plan, plan_backend};

const DIR: &str = "/d";
const EXE: &str = "/bin/cluster";

fn planned(options: &Options, taken: &[u16]) -> (Vec<ProcessSpec>, Vec<String>) {
    let plan = plan(options, Path::new(DIR), Path::new(EXE), 32_768, |port| !taken.contains(&port))
        .expect("it fits");
    let moved = plan.moved.iter().map(|one| format!("{} {} -> {}", one.want.owner, one.want.port, one.port));
    (plan.specs, moved.collect())
}

fn addresses(specs: &[ProcessSpec]) -> Vec<String> {
    let line = |spec: &ProcessSpec| {
        let ports = spec.kind.listens().into_iter().map(|(what, url)| format!("{what} {url}"));
        format!("{} {}", spec.name, ports.collect::<Vec<_>>().join(" ")).replace("http://127.0.0.1:", "")
    };
    specs.iter().map(line).collect()
}

#[test]
fn the_documented_ports_are_the_default() {
    let (specs, moved) = planned(&Options::default(), &[]);
    assert_eq!(
        addresses(&specs),
        [
            "node-1 rest 8081 grpc 9091 peer 7091",
            "node-2 rest 8181 grpc 9191 peer 7191",
            "node-3 rest 8281 grpc 9291 peer 7291",
            "lb-1 http 8080 admin 8060",
            "lb-2 http 8070 admin 8061",
            "backend-1 http 8082 metrics 9092",
            "backend-2 http 8083 metrics 9093",
            "backend-3 http 8084 metrics 9094",
        ]
    );
    assert_eq!(moved, [""; 0]);
}

#[test]
fn a_moved_port_reaches_everyone_who_needs_it() {
    let (specs, moved) = planned(&Options::default(), &[7091, 8081, 8080]);
    assert_eq!(moved, ["node-1 rest 8081 -> 8085", "node-1 peer 7091 -> 7092", "lb-1 http 8080 -> 8086"]);
    let members = "1=127.0.0.1:7092,2=127.0.0.1:7191,3=127.0.0.1:7291";
    let registry = "http://127.0.0.1:8085,http://127.0.0.1:8181,http://127.0.0.1:8281";
    for spec in &specs {
        let expected = if spec.name.starts_with("node") { members } else { registry };
        assert!(spec.argv.iter().any(|arg| arg == expected), "{spec:?}");
    }
    assert_eq!(specs[0].argv[..6], [EXE, "node", "--id", "1", "--name", "node-1"]);
    assert_eq!(specs[0].dir, Path::new("/d/node-1"));
}

#[test]
fn a_further_backend_takes_the_first_free_name_and_nobodys_port() {
    let (mut specs, _) = planned(&Options::default(), &[]);
    specs.retain(|spec| spec.name != "backend-2");
    let options = Options::default();
    let more =
        plan_backend(&options, &specs, Path::new(DIR), Path::new(EXE), 32_768, |_| true).expect("it fits");
    assert_eq!(addresses(&more.specs), ["backend-2 http 8083 metrics 9093"]);
    assert_eq!(more.specs[0].argv[1], "backend");
}

#[test]
fn what_does_not_fit_is_refused() {
    let options = Options { nodes: 0, ports: Ports::Free, ..Options::default() };
    let refused = plan(&options, Path::new(DIR), Path::new(EXE), 32_768, |_| true).map(|plan| plan.specs);
    assert_eq!(refused, Err(Error::Count { what: "nodes", count: 0, min: 1, max: 9 }));
}
