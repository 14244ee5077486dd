//! The table that people read.

use crate::{BackendStatus, BalancerStatus, NodeStatus, Role, Status};

#[test]
fn a_table_shows_who_is_where() {
    let status = Status {
        nodes: vec![NodeStatus {
            name: "node-1".into(),
            id: 1,
            rest: "http://127.0.0.1:8081".into(),
            grpc: "http://127.0.0.1:9091".into(),
            peer: "http://127.0.0.1:7091".into(),
            pid: Some(4711),
            role: Role::Follower,
            revision: 12,
        }],
        balancers: vec![BalancerStatus {
            name: "lb-1".into(),
            http: "http://127.0.0.1:8080".into(),
            admin: "http://127.0.0.1:8060".into(),
            pid: Some(4712),
            ready_endpoints: 1,
        }],
        backends: vec![BackendStatus {
            name: "backend-1".into(),
            service: "hello".into(),
            url: "http://127.0.0.1:8082".into(),
            pid: None,
        }],
    };
    let expected = "\
NAME       STATE     PID   URL                    ALSO
node-1     follower  4711  http://127.0.0.1:8081  grpc http://127.0.0.1:9091  revision 12
lb-1       up        4712  http://127.0.0.1:8080  admin http://127.0.0.1:8060  1 ready endpoints
backend-1  down      -     http://127.0.0.1:8082  service hello
";
    assert_eq!(super::status(&status), expected);
}
