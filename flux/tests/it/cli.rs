//! `registryctl` as a process: what it prints where, and how it exits.

use std::process::Stdio;

use expect_test::{Expect, expect};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::fake::{Catalog, Node};
use crate::soon;

fn registryctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registryctl"));
    command.args(args).env_remove("REGISTRY_ENDPOINTS").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end. Shown: exit code, stdout, and stderr behind bars; the node's port is replaced.
async fn check(mut command: Command, port: u16, want: Expect) {
    let output = soon("the end", command.output()).await.expect("registryctl starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let err: String = err.lines().map(|line| format!("| {line}\n")).collect();
    let shown = format!("exit {:?}\n{out}{err}", output.status.code().unwrap_or(-1));
    want.assert_eq(&shown.replace(&port.to_string(), "PORT"));
}

#[tokio::test]
async fn answers_go_to_stdout_and_exit_with_0() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    catalog.put("pay-1");
    let (url, port) = (node.url(), node.address.port());
    check(
        registryctl(&["--endpoints", &url, "services"]),
        port,
        expect![[r#"
        exit 0
        SERVICE  INSTANCES  UP
        pay      1          1
    "#]],
    )
    .await;
    check(
        registryctl(&["instances", "pay", "--endpoints", &url]),
        port,
        expect![[r#"
        exit 0
        ID     SERVICE  STATUS  URL  WEIGHT  ZONE  VERSION
        pay-1  pay      up      -    100     -     -
    "#]],
    )
    .await;
    check(
        registryctl(&["services", "-o", "json", "--endpoints", &url]),
        port,
        expect![[r#"
        exit 0
        {"revision":1,"services":[{"instances":1,"name":"pay","up":1}]}
    "#]],
    )
    .await;
    let mut from_env = registryctl(&["services", "-o", "json"]);
    from_env.env("REGISTRY_ENDPOINTS", format!("http://127.0.0.1:1,{url}"));
    check(
        from_env,
        port,
        expect![[r#"
        exit 0
        {"revision":1,"services":[{"instances":1,"name":"pay","up":1}]}
    "#]],
    )
    .await;
}

#[tokio::test]
async fn failures_say_what_why_and_what_next() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let (url, port) = (node.url(), node.address.port());
    check(
        registryctl(&["--endpoints", &url, "instances", "nope"]),
        port,
        expect![[r#"
        exit 3
        | registryctl: no instance of service "nope" is registered
        | try `registryctl services` for what is registered
    "#]],
    )
    .await;
    check(
        registryctl(&["--endpoints", "http://127.0.0.1:1", "--timeout-s", "1", "services"]),
        port,
        expect![[r#"
            exit 4
            | registryctl: cannot list services: no node could take the call within 1s: http://127.0.0.1:1: Connection refused (os error 111)
            | is the registry running at http://127.0.0.1:1? name its nodes by --endpoints or REGISTRY_ENDPOINTS; a node's own view is at its /readyz?verbose
        "#]],
    )
    .await;
    check(
        registryctl(&["--endpoints", "https://x", "services"]),
        port,
        expect![[r#"
        exit 2
        | registryctl: cannot use --endpoints: "https://x" is not an endpoint: only http:// is spoken
        | try `registryctl --help`
    "#]],
    )
    .await;
    check(
        registryctl(&["instances", "-o", "yaml"]),
        port,
        expect![[r#"
        exit 2
        | error: invalid value 'yaml' for '--output <OUTPUT>'
        |   [possible values: table, json]
        | 
        | For more information, try '--help'.
    "#]],
    )
    .await;
}

#[tokio::test]
async fn the_cluster_has_a_leader_or_exits_with_4() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let me = proto::registry::v1::Member {
        id: 1,
        name: "node-1".into(),
        grpc: node.url(),
        rest: node.url(),
        ..Default::default()
    };
    node.set(|knobs| knobs.members = vec![me.clone()]);
    let (url, port) = (node.url(), node.address.port());
    check(registryctl(&["--endpoints", &url, "cluster", "status"]), port, expect![[r#"
        exit 4
        NAME    ID  ROLE      TERM  REVISION  APPLIED  REST                    STATE
        node-1  1   follower  0     0         0        http://127.0.0.1:PORT  ready
        | registryctl: no node is the leader now: nothing can be registered
        | try again in a second: an election takes less. If it stays so, a majority of the nodes is down: start them
    "#]]).await;
    node.set(|knobs| knobs.leader = Some(me));
    check(
        registryctl(&["--endpoints", &url, "cluster", "status"]),
        port,
        expect![[r#"
        exit 0
        NAME    ID  ROLE    TERM  REVISION  APPLIED  REST                    STATE
        node-1  1   leader  0     0         0        http://127.0.0.1:PORT  ready
    "#]],
    )
    .await;
}

#[tokio::test]
async fn watching_prints_what_there_is_and_then_what_changes() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    catalog.put("pay-1");
    let mut child = registryctl(&["--endpoints", &node.url(), "watch", "pay"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("registryctl starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut next = async || soon("a line", lines.next_line()).await.expect("text").expect("it goes on");
    assert!(next().await.starts_with("REVISION"));
    assert!(next().await.starts_with("1           HELD     pay-1"));
    catalog.expire("pay-1");
    assert!(next().await.starts_with("2           EXPIRE   pay-1"));
}
