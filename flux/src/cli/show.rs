//! How answers look: aligned columns for people, JSON for programs. Pure: values in, text out. The JSON is API:
//! it is described in the README, and only ever grows.

use std::fmt::Write as _;

use flux::{Answer, Error, Event, EventKind, Instance, Member, NodeStatus, ServiceSummary, Update};
use serde_json::{Value, json};

/// The way of printing.
pub(crate) struct Output {
    pub(crate) json: bool,
}

/// A member, and what it says of itself with its catalog's revision.
pub(crate) struct MemberStatus {
    pub(crate) member: Member,
    pub(crate) status: Result<(NodeStatus, u64), Error>,
}

impl Output {
    pub(crate) fn services(&self, answer: &Answer<Vec<ServiceSummary>>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "services": answer.value}));
        }
        let rows =
            answer.value.iter().map(|s| vec![s.name.clone(), s.instances.to_string(), s.up.to_string()]);
        table(&["SERVICE", "INSTANCES", "UP"], rows.collect())
    }

    pub(crate) fn instances(&self, answer: &Answer<Vec<Instance>>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "instances": answer.value}));
        }
        table(&INSTANCE_HEADER, answer.value.iter().map(instance_row).collect())
    }

    /// `first` prints the header above a table.
    pub(crate) fn update(&self, update: &Update, first: bool) -> String {
        match update {
            Update::Progress { .. } => String::new(),
            Update::Reset { revision, instances } if self.json => {
                line(&json!({"type": "reset", "revision": revision, "instances": instances}))
            }
            Update::Events { events, .. } if self.json => events.iter().map(event_json).collect(),
            Update::Reset { revision, instances } => {
                let rows = instances.iter().map(|i| change_row(*revision, "HELD", i));
                changes(rows.collect(), first)
            }
            Update::Events { events, .. } => {
                let rows = events.iter().map(|e| change_row(e.revision, kind(e.kind), &e.instance));
                changes(rows.collect(), first)
            }
        }
    }

    pub(crate) fn cluster(&self, cluster_id: &str, members: &[MemberStatus]) -> String {
        if self.json {
            let members: Vec<Value> = members.iter().map(member_json).collect();
            return line(&json!({"cluster_id": cluster_id, "members": members}));
        }
        table(
            &["NAME", "ID", "ROLE", "TERM", "REVISION", "APPLIED", "REST", "STATE"],
            members.iter().map(member_row).collect(),
        )
    }
}

const INSTANCE_HEADER: [&str; 7] = ["ID", "SERVICE", "STATUS", "URL", "WEIGHT", "ZONE", "VERSION"];

fn instance_row(i: &Instance) -> Vec<String> {
    let status = i.status.as_str().to_owned();
    vec![
        i.id.clone(),
        i.service.clone(),
        status,
        i.url.clone(),
        i.weight.to_string(),
        i.zone.clone(),
        i.version.clone(),
    ]
}

fn change_row(revision: u64, what: &str, instance: &Instance) -> Vec<String> {
    let status = instance.status.as_str().to_owned();
    vec![revision.to_string(), what.to_owned(), instance.id.clone(), status, instance.url.clone()]
}

/// Changes come one by one, so their columns cannot be measured together: they have fixed least widths.
fn changes(rows: Vec<Vec<String>>, first: bool) -> String {
    const WIDTHS: [usize; 5] = [10, 7, 40, 12, 0];
    let header = ["REVISION", "CHANGE", "ID", "STATUS", "URL"].map(str::to_owned).to_vec();
    first.then_some(header).into_iter().chain(rows).map(|row| aligned(&row, &WIDTHS)).collect()
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Put => "PUT",
        EventKind::Delete => "DELETE",
        EventKind::Expire => "EXPIRE",
    }
}

fn event_json(event: &Event) -> String {
    let kind = kind(event.kind).to_ascii_lowercase();
    line(&json!({"type": kind, "revision": event.revision, "instance": event.instance}))
}

fn member_row(m: &MemberStatus) -> Vec<String> {
    let mut row = vec![m.member.name.clone(), m.member.id.to_string()];
    match &m.status {
        Ok((status, revision)) => {
            let state = if status.ready { "ready" } else { status.not_ready_reason.as_str() };
            row.extend([status.role.as_str().to_owned(), status.term.to_string(), revision.to_string()]);
            row.extend([status.applied_index.to_string(), m.member.rest.clone(), state.to_owned()]);
        }
        Err(_) => {
            row.extend(["down", "", "", ""].map(str::to_owned));
            row.extend([m.member.rest.clone(), "does not answer".to_owned()]);
        }
    }
    row
}

fn member_json(m: &MemberStatus) -> Value {
    let mut value = json!({
        "id": m.member.id, "name": m.member.name,
        "grpc": m.member.grpc, "rest": m.member.rest, "peer": m.member.peer,
    });
    match &m.status {
        Ok((status, revision)) => {
            value["role"] = json!(status.role);
            value["revision"] = json!(revision);
            value["status"] = json!(status);
        }
        Err(error) => {
            value["role"] = json!("down");
            value["error"] = json!(error.to_string());
        }
    }
    value
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// Columns as wide as their widest cell, two spaces apart; an empty cell is a dash.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header = header.iter().map(|cell| (*cell).to_owned()).collect();
    std::iter::once(header).chain(rows).map(|row: Vec<String>| aligned(&row, &widths)).collect()
}

fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut out = String::new();
    for (cell, width) in row.iter().zip(widths) {
        let cell = if cell.is_empty() { "-" } else { cell };
        write!(out, "{cell:<width$}  ").expect("strings take everything");
    }
    format!("{}\n", out.trim_end())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use expect_test::expect;
    use flux::{Role, Status};

    use super::*;

    const TABLE: Output = Output { json: false };
    const JSON: Output = Output { json: true };

    fn answer<T>(value: T) -> Answer<T> {
        Answer { revision: 7, cluster_id: "c1".to_owned(), node_id: 1, age: Duration::ZERO, value }
    }

    fn instances() -> Vec<Instance> {
        let mut first = Instance::new("pay", "10.0.0.1", 8082).zone("z1").meta("metrics_port", "9092");
        (first.reg_rev, first.mod_rev) = (5, 7);
        vec![
            first,
            Instance::new("pay", "10.0.0.22", 8082).status(Status::Draining).version("1.2").tag("new"),
        ]
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
        };
        let refused = flux::Client::connect(["nonsense:x"]).expect_err("not an endpoint");
        let members = [
            MemberStatus { member: member(1, Role::Leader), status: Ok((status, 7)) },
            MemberStatus { member: member(2, Role::Follower), status: Err(refused) },
        ];
        expect![[r#"
            NAME    ID  ROLE    TERM  REVISION  APPLIED  REST                   STATE
            node-1  1   leader  3     7         120      http://127.0.0.1:8181  ready
            node-2  2   down    -     -         -        http://127.0.0.1:8281  does not answer
        "#]]
        .assert_eq(&TABLE.cluster("c1", &members));
        expect![[r#"
            {"cluster_id":"c1","members":[{"grpc":"http://127.0.0.1:9191","id":1,"name":"node-1","peer":"http://127.0.0.1:7191","rest":"http://127.0.0.1:8181","revision":7,"role":"leader","status":{"applied_index":120,"catalog_hash":"00ff","committed_index":120,"instances":2,"last_log_index":121,"leader_id":1,"name":"node-1","not_ready_reason":"","purged_index":0,"ready":true,"role":"leader","snapshot_index":0,"term":3,"version":"0.1.0","watchers":1}},{"error":"\"nonsense:x\" is not an endpoint: the port is not one","grpc":"http://127.0.0.1:9291","id":2,"name":"node-2","peer":"http://127.0.0.1:7291","rest":"http://127.0.0.1:8281","role":"down"}]}
        "#]].assert_eq(&JSON.cluster("c1", &members));
    }
}
