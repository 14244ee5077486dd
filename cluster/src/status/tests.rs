//! The JSON that others write and the JSON that others read.

use serde_json::json;

use super::{BackendStatus, BalancerStatus, NodeSays, NodeStatus, Role, Status, parse_node, ready_endpoints};

#[test]
fn the_shape_of_status_is_what_scripts_rely_on() {
    let status = Status {
        nodes: vec![NodeStatus {
            name: "node-1".into(),
            id: 1,
            rest: "http://127.0.0.1:8081".into(),
            grpc: "http://127.0.0.1:9091".into(),
            peer: "http://127.0.0.1:7091".into(),
            pid: Some(7),
            role: Role::Leader,
            revision: 12,
        }],
        balancers: vec![BalancerStatus {
            name: "lb-1".into(),
            http: "http://127.0.0.1:8080".into(),
            admin: "http://127.0.0.1:8060".into(),
            pid: None,
            ready_endpoints: 3,
        }],
        backends: vec![BackendStatus {
            name: "backend-1".into(),
            service: "hello".into(),
            url: "http://127.0.0.1:8082".into(),
            pid: Some(9),
        }],
    };
    let expected = json!({
        "nodes": [{"name": "node-1", "id": 1, "rest": "http://127.0.0.1:8081", "grpc": "http://127.0.0.1:9091",
                   "peer": "http://127.0.0.1:7091", "pid": 7, "role": "leader", "revision": 12}],
        "balancers": [{"name": "lb-1", "http": "http://127.0.0.1:8080", "admin": "http://127.0.0.1:8060",
                       "pid": null, "ready_endpoints": 3}],
        "backends": [{"name": "backend-1", "service": "hello", "url": "http://127.0.0.1:8082", "pid": 9}],
    });
    assert_eq!(serde_json::to_value(status).expect("plain data"), expected);
}

#[test]
fn a_nodes_answer_is_proto3_json() {
    let says = |json| parse_node(&json);
    let leader = NodeSays { role: Role::Leader, term: 3, revision: 12 };
    assert_eq!(says(json!({"header": {"term": "3", "revision": "12"}, "role": "LEADER"})), Some(leader));
    let follower = NodeSays { role: Role::Follower, term: 0, revision: 0 };
    assert_eq!(says(json!({"header": {}, "role": "FOLLOWER"})), Some(follower));
    assert_eq!(says(json!({"title": "not ready"})), None);
    assert_eq!(says(json!({"header": {"revision": "x"}})), None);
}

#[test]
fn only_ready_endpoints_count() {
    let endpoints = json!([{"id": "a", "state": "up"}, {"id": "b", "state": "ejected"}]);
    assert_eq!(ready_endpoints(&json!({"revision": 7, "ready": 1, "endpoints": endpoints})), 1);
    assert_eq!(ready_endpoints(&json!("x")), 0);
}
