use std::sync::Arc;
use std::time::Duration;

use crate::{Role, Status};
use expect_test::expect;

use super::*;

const TABLE: Output = Output { json: false };
const JSON: Output = Output { json: true };

fn answer<T>(value: T) -> Answer<T> {
    Answer { revision: 7, cluster_id: "c1".to_owned(), node_id: 1, age: Duration::ZERO, value }
}

fn instances() -> Vec<Instance> {
    let mut first = Instance::new("pay", "10.0.0.1", 8082).zone("z1").meta("metrics_port", "9092");
    (first.reg_rev, first.mod_rev) = (5, 7);
    vec![first, Instance::new("pay", "10.0.0.22", 8082).status(Status::Draining).version("1.2").tag("new")]
}

#[test]
fn instances_line_up() {
    expect![[r#"
        ID                  SERVICE  STATUS    URL                    WEIGHT  ZONE  VERSION
        pay-10.0.0.1-8082   pay      up        http://10.0.0.1:8082   100     z1    -
        pay-10.0.0.22-8082  pay      draining  http://10.0.0.22:8082  100     -     1.2
    "#]]
    .assert_eq(&TABLE.instances(&answer(instances())));
    expect![[r#"
        {"instances":[{"health_path":"","host":"10.0.0.1","id":"pay-10.0.0.1-8082","metadata":{"metrics_port":"9092"},"mod_rev":7,"port":8082,"reg_rev":5,"service":"pay","status":"up","tags":[],"ttl_ms":10000,"url":"http://10.0.0.1:8082","version":"","weight":100,"zone":"z1"},{"health_path":"","host":"10.0.0.22","id":"pay-10.0.0.22-8082","metadata":{},"mod_rev":0,"port":8082,"reg_rev":0,"service":"pay","status":"draining","tags":["new"],"ttl_ms":10000,"url":"http://10.0.0.22:8082","version":"1.2","weight":100,"zone":""}],"revision":7}
    "#]].assert_eq(&JSON.instances(&answer(instances())));
}

#[test]
fn services_line_up_also_when_there_are_none() {
    let services = vec![ServiceSummary { name: "pay".into(), instances: 12, up: 3 }];
    expect![[r#"
        SERVICE  INSTANCES  UP
        pay      12         3
    "#]]
    .assert_eq(&TABLE.services(&answer(services.clone())));
    expect![[r#"
        SERVICE  INSTANCES  UP
    "#]]
    .assert_eq(&TABLE.services(&answer(vec![])));
    expect![[r#"
        {"revision":7,"services":[{"instances":12,"name":"pay","up":3}]}
    "#]]
    .assert_eq(&JSON.services(&answer(services)));
}

#[test]
fn changes_are_one_line_each() {
    let instances: Vec<_> = instances().into_iter().map(Arc::new).collect();
    let reset = Update::Reset { revision: 7, instances: instances.clone() };
    let gone = Event { revision: 8, kind: EventKind::Expire, instance: instances[0].clone() };
    let events = Update::Events { revision: 8, events: vec![gone] };
    let all = |output: &Output| {
        [
            output.update(&reset, true),
            output.update(&events, false),
            output.update(&Update::Progress { revision: 9 }, false),
        ]
        .concat()
    };
    expect![[r#"
        REVISION    CHANGE   ID                                        STATUS        URL
        7           HELD     pay-10.0.0.1-8082                         up            http://10.0.0.1:8082
        7           HELD     pay-10.0.0.22-8082                        draining      http://10.0.0.22:8082
        8           EXPIRE   pay-10.0.0.1-8082                         up            http://10.0.0.1:8082
    "#]]
    .assert_eq(&all(&TABLE));
    expect![[r#"
        {"instances":[{"health_path":"","host":"10.0.0.1","id":"pay-10.0.0.1-8082","metadata":{"metrics_port":"9092"},"mod_rev":7,"port":8082,"reg_rev":5,"service":"pay","status":"up","tags":[],"ttl_ms":10000,"url":"http://10.0.0.1:8082","version":"","weight":100,"zone":"z1"},{"health_path":"","host":"10.0.0.22","id":"pay-10.0.0.22-8082","metadata":{},"mod_rev":0,"port":8082,"reg_rev":0,"service":"pay","status":"draining","tags":["new"],"ttl_ms":10000,"url":"http://10.0.0.22:8082","version":"1.2","weight":100,"zone":""}],"revision":7,"type":"reset"}
        {"instance":{"health_path":"","host":"10.0.0.1","id":"pay-10.0.0.1-8082","metadata":{"metrics_port":"9092"},"mod_rev":7,"port":8082,"reg_rev":5,"service":"pay","status":"up","tags":[],"ttl_ms":10000,"url":"http://10.0.0.1:8082","version":"","weight":100,"zone":"z1"},"revision":8,"type":"expire"}
    "#]].assert_eq(&all(&JSON));
}

#[test]
fn a_cluster_shows_who_is_down() {
    let member = |id: u64, role| Member {
        id,
        name: format!("node-{id}"),
        peer: format!("http://127.0.0.1:7{id}91"),
        grpc: format!("http://127.0.0.1:9{id}91"),
        rest: format!("http://127.0.0.1:8{id}81"),
        role,
    };
    let status = NodeStatus {
        name: "node-1".into(),
        node: None,
        version: "0.1.0".into(),
        role: Role::Leader,
        term: 3,
        leader_id: 1,
        applied_index: 120,
        committed_index: 120,
        last_log_index: 121,
        snapshot_index: 0,
        purged_index: 0,
        instances: 2,
        watchers: 1,
        ready: true,
        not_ready_reason: String::new(),
        catalog_hash: "00ff".into(),
        alarm: String::new(),
        disk_slow: String::new(),
    };
    let mut troubled = status.clone();
    troubled.alarm = "nodes disagree".into();
    troubled.disk_slow = "130 ms".into();
    let refused = crate::Client::connect(["nonsense:x"]).expect_err("not an endpoint");
    let members = [
        MemberStatus { member: member(1, Role::Leader), status: Ok((status, 7)) },
        MemberStatus { member: member(2, Role::Follower), status: Err(refused) },
        MemberStatus { member: member(3, Role::Follower), status: Ok((troubled, 7)) },
    ];
    expect![[r#"
        NAME    ID  ROLE    TERM  REVISION  APPLIED  REST                   STATE
        node-1  1   leader  3     7         120      http://127.0.0.1:8181  ready
        node-2  2   down    -     -         -        http://127.0.0.1:8281  does not answer
        node-3  3   leader  3     7         120      http://127.0.0.1:8381  ready; alarm: nodes disagree; slow disk: 130 ms
    "#]]
    .assert_eq(&TABLE.cluster("c1", &members));
    expect![[r#"
        {"cluster_id":"c1","members":[{"grpc":"http://127.0.0.1:9191","id":1,"name":"node-1","peer":"http://127.0.0.1:7191","rest":"http://127.0.0.1:8181","revision":7,"role":"leader","status":{"alarm":"","applied_index":120,"catalog_hash":"00ff","committed_index":120,"disk_slow":"","instances":2,"last_log_index":121,"leader_id":1,"name":"node-1","node":null,"not_ready_reason":"","purged_index":0,"ready":true,"role":"leader","snapshot_index":0,"term":3,"version":"0.1.0","watchers":1}},{"error":"\"nonsense:x\" is not an endpoint: the port is not one","grpc":"http://127.0.0.1:9291","id":2,"name":"node-2","peer":"http://127.0.0.1:7291","rest":"http://127.0.0.1:8281","role":"down"},{"grpc":"http://127.0.0.1:9391","id":3,"name":"node-3","peer":"http://127.0.0.1:7391","rest":"http://127.0.0.1:8381","revision":7,"role":"leader","status":{"alarm":"nodes disagree","applied_index":120,"catalog_hash":"00ff","committed_index":120,"disk_slow":"130 ms","instances":2,"last_log_index":121,"leader_id":1,"name":"node-1","node":null,"not_ready_reason":"","purged_index":0,"ready":true,"role":"leader","snapshot_index":0,"term":3,"version":"0.1.0","watchers":1}}]}
    "#]].assert_eq(&JSON.cluster("c1", &members));
}
