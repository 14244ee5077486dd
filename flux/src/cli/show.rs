//! How answers look: aligned columns for people, JSON for programs. Pure: values in, text out. The JSON is API:
//! it is described in the README, and only ever grows.

use std::fmt::Write as _;

use crate::{Answer, Error, Event, EventKind, Instance, Member, NodeStatus, ServiceSummary, Update};
use serde_json::{Value, json};

#[cfg(test)]
mod tests;

/// The way of printing.
pub(super) struct Output {
    pub(super) json: bool,
}

/// A member, and what it says of itself with its catalog's revision.
pub(super) struct MemberStatus {
    pub(super) member: Member,
    pub(super) status: Result<(NodeStatus, u64), Error>,
}

impl Output {
    pub(super) fn services(&self, answer: &Answer<Vec<ServiceSummary>>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "services": answer.value}));
        }
        let rows =
            answer.value.iter().map(|s| vec![s.name.clone(), s.instances.to_string(), s.up.to_string()]);
        table(&["SERVICE", "INSTANCES", "UP"], rows.collect())
    }

    pub(super) fn instances(&self, answer: &Answer<Vec<Instance>>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "instances": answer.value}));
        }
        table(&INSTANCE_HEADER, answer.value.iter().map(instance_row).collect())
    }

    /// One record.
    pub(super) fn instance(&self, answer: &Answer<Instance>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "instance": answer.value}));
        }
        table(&INSTANCE_HEADER, vec![instance_row(&answer.value)])
    }

    /// A record that is kept registered from now on.
    pub(super) fn kept(&self, instance: &Instance) -> String {
        if self.json {
            return line(&json!({"revision": instance.mod_rev, "instance": instance}));
        }
        table(&INSTANCE_HEADER, vec![instance_row(instance)])
    }

    pub(super) fn deregistered(&self, id: &str, answer: &Answer<bool>) -> String {
        if self.json {
            return line(&json!({"revision": answer.revision, "id": id, "found": answer.value}));
        }
        table(
            &["ID", "REVISION", "STATUS"],
            vec![vec![id.to_owned(), answer.revision.to_string(), "gone".to_owned()]],
        )
    }

    /// The members as the cluster knows them, without asking each.
    pub(super) fn members(&self, answer: &Answer<Vec<Member>>) -> String {
        if self.json {
            return line(&json!({"cluster_id": answer.cluster_id, "members": answer.value}));
        }
        let row = |m: &Member| {
            vec![m.name.clone(), m.id.to_string(), m.role.as_str().to_owned(), m.rest.clone(), m.peer.clone()]
        };
        table(&["NAME", "ID", "ROLE", "REST", "PEER"], answer.value.iter().map(row).collect())
    }

    /// `first` prints the header above a table.
    pub(super) fn update(&self, update: &Update, first: bool) -> String {
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

    pub(super) fn cluster(&self, cluster_id: &str, members: &[MemberStatus]) -> String {
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
