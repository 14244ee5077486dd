//! How answers look: aligned columns for people, JSON for programs. Pure: values in, text out. The JSON is API:
//! it is described in the README, and only ever grows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{
    Answer, Change, Error, Event, EventKind, History, Instance, Member, NodeStatus, ServiceSummary, Status,
    Update,
};
use proto::backup::Summary;
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

    pub(super) fn history(&self, answer: &Answer<History>) -> String {
        let history = &answer.value;
        if self.json {
            return line(&json!({
                "revision": answer.revision, "compact_revision": history.compact_revision,
                "more": history.more, "instance": history.instance,
                "changes": history.changes.iter().map(change_json).collect::<Vec<_>>(),
            }));
        }
        let row = |change: &Change| {
            let what = match change.previous {
                Some(_) => {
                    differences(change).into_iter().map(|(_, said)| said).collect::<Vec<_>>().join(", ")
                }
                None => format!(
                    "{} {} {}",
                    change.instance.service,
                    change.instance.status.as_str(),
                    change.instance.url
                ),
            };
            let revision = change.revision.to_string();
            vec![
                revision,
                time(change.at_ms),
                happened(change).to_owned(),
                what,
                change.by.clone(),
                change.why.clone(),
            ]
        };
        table(&["REVISION", "TIME", "CHANGE", "WHAT", "BY", "WHY"], history.changes.iter().map(row).collect())
    }

    /// A backup; with its records only where they are wanted.
    pub(super) fn backup(&self, file: &str, summary: &Summary, records: Option<&[Instance]>) -> String {
        let Summary { head, records: count, bytes } = summary;
        if self.json {
            let mut value = json!({
                "file": file, "bytes": bytes, "cluster_id": head.cluster_id, "revision": head.revision,
                "index": head.index, "term": head.term, "taken_at_ms": head.taken_at_ms, "node_id": head.node_id,
                "version": head.version, "count": count,
            });
            if let Some(records) = records {
                value["instances"] = json!(records);
            }
            return line(&value);
        }
        let row = vec![
            file.to_owned(),
            head.cluster_id.clone(),
            head.revision.to_string(),
            head.index.to_string(),
            time(head.taken_at_ms),
            count.to_string(),
            bytes.to_string(),
        ];
        let whole =
            table(&["FILE", "CLUSTER", "REVISION", "INDEX", "TAKEN", "INSTANCES", "BYTES"], vec![row]);
        let mut services: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for instance in records.unwrap_or_default() {
            let (all, up) = services.entry(&instance.service).or_default();
            *all += 1;
            *up += u32::from(instance.status == Status::Up);
        }
        let rows = services
            .iter()
            .map(|(name, (all, up))| vec![(*name).to_owned(), all.to_string(), up.to_string()]);
        match records {
            Some(_) => format!("{whole}\n{}", table(&["SERVICE", "INSTANCES", "UP"], rows.collect())),
            None => whole,
        }
    }

    pub(super) fn restored(&self, revision: u64, restored: u32, kept: u32, removed: u32) -> String {
        if self.json {
            return line(
                &json!({"revision": revision, "restored": restored, "kept": kept, "removed": removed}),
            );
        }
        let row =
            [revision, restored.into(), kept.into(), removed.into()].map(|number: u64| number.to_string());
        table(&["REVISION", "RESTORED", "KEPT", "REMOVED"], vec![row.to_vec()])
    }

    /// A node's own snapshot.
    pub(super) fn taken(&self, answer: &Answer<u64>) -> String {
        if self.json {
            return line(
                &json!({"revision": answer.revision, "node_id": answer.node_id, "snapshot_index": answer.value}),
            );
        }
        table(&["NODE", "SNAPSHOT INDEX"], vec![vec![answer.node_id.to_string(), answer.value.to_string()]])
    }

    /// Leases that were held back and no longer are.
    pub(super) fn released(&self, answer: &Answer<u64>) -> String {
        if self.json {
            return line(
                &json!({"revision": answer.revision, "node_id": answer.node_id, "released": answer.value}),
            );
        }
        table(&["LEADER", "RELEASED"], vec![vec![answer.node_id.to_string(), answer.value.to_string()]])
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

/// A change in a word.
fn happened(change: &Change) -> &'static str {
    match (change.kind, &change.previous) {
        (EventKind::Put, None) => "registered",
        (EventKind::Put, Some(_)) if change.instance.reg_rev == change.instance.mod_rev => "registered again",
        (EventKind::Put, Some(_)) => "changed",
        (EventKind::Delete, _) => "deregistered",
        (EventKind::Expire, _) => "expired",
    }
}

/// What differs from the record before: the names of the fields, and from what to what.
fn differences(change: &Change) -> Vec<(String, String)> {
    let fields = |instance: &Instance| match json!(instance) {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, now) = (change.previous.as_ref().map(fields).unwrap_or_default(), fields(&change.instance));
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::String(_)) | None => "-".to_owned(),
        Some(value) => value.to_string(),
    };
    let own = |name: &str| name == "reg_rev" || name == "mod_rev";
    let differs = now.iter().filter(|(name, value)| !own(name) && before.get(*name) != Some(value));
    differs
        .map(|(name, value)| {
            (name.clone(), format!("{name} {} -> {}", text(before.get(name)), text(Some(value))))
        })
        .collect()
}

fn change_json(change: &Change) -> Value {
    let changed = change.previous.iter().flat_map(|_| differences(change)).map(|(name, _)| name);
    json!({
        "revision": change.revision, "type": kind(change.kind).to_ascii_lowercase(), "at_ms": change.at_ms,
        "by": change.by, "why": change.why, "instance": change.instance, "previous": change.previous,
        "changed": changed.collect::<Vec<_>>(),
    })
}

/// A time in UTC, to the second.
fn time(at_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(at_ms));
    // What RFC 3339 cannot say is no time at all.
    let sayable = at.filter(|_| at_ms < 253_402_300_800_000);
    sayable.map_or("-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
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
            let ready = if status.ready { "ready" } else { status.not_ready_reason.as_str() };
            // What is alarming is mostly why it is not ready.
            let alarm =
                Some(&status.alarm).filter(|alarm| !alarm.is_empty() && **alarm != status.not_ready_reason);
            let alarm = alarm.map(|alarm| format!("alarm: {alarm}"));
            let slow = Some(&status.disk_slow)
                .filter(|slow| !slow.is_empty())
                .map(|slow| format!("slow disk: {slow}"));
            let state =
                [Some(ready.to_owned()), alarm, slow].into_iter().flatten().collect::<Vec<_>>().join("; ");
            row.extend([status.role.as_str().to_owned(), status.term.to_string(), revision.to_string()]);
            row.extend([status.applied_index.to_string(), m.member.rest.clone(), state]);
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
