//! How a store is told: for people, and as JSON.
//!
//! The lines of `--log` have a fixed shape, described in README.md: tools read them.

use std::{
    io::{self, Write as _},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::Found;
use crate::{
    catalog::{Applied, Command, Outcome, Proposal, Record, Spec, Status},
    consensus::{Content, Mark, Peer, Reading},
};

/// One line for people for everything there is.
pub fn text(dir: &Path, found: &Found) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Found { files, format, reading } = found;
    let none = || "none".to_owned();
    let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let owner = reading
        .identity
        .as_ref()
        .map_or_else(none, |it| format!("node {} of cluster {}", it.node_id, it.cluster_id));
    writeln!(out, "directory  {}", dir.display())?;
    writeln!(out, "belongs to {owner}")?;
    writeln!(out, "format     {}", format.map_or_else(none, |format| format.to_string()))?;
    writeln!(out, "size       {bytes} bytes in {} files", files.len())?;
    let vote = reading.vote.map_or_else(none, |vote| {
        format!("term {} for node {}{}", vote.term, vote.node, if vote.elected { ", elected" } else { "" })
    });
    writeln!(out, "vote       {vote}")?;
    let mark =
        |mark: Option<Mark>| mark.map_or_else(none, |mark| format!("{} (term {})", mark.index, mark.term));
    writeln!(out, "committed  {}", mark(reading.committed))?;
    writeln!(out, "purged     {}", mark(reading.purged))?;
    let log = match (reading.log.first(), reading.log.last()) {
        (Some(first), Some(last)) => {
            format!(
                "{} to {} (term {}), {} entries",
                first.mark.index,
                last.mark.index,
                last.mark.term,
                reading.log.len()
            )
        }
        _ => none(),
    };
    writeln!(out, "log        {log}")?;
    let snapshot = reading.snapshot.map_or_else(none, |it| {
        let (revision, instances, bytes) = (it.revision, it.instances, it.bytes);
        format!("{}: revision {revision}, {instances} instances, {bytes} bytes", mark(Some(it.last)))
    });
    writeln!(
        out,
        "promised   {}",
        reading.promised.map_or_else(none, |end| format!("everything below {end}"))
    )?;
    writeln!(out, "snapshot   {snapshot}")?;
    let catalog = reading.catalog.as_ref().map_or_else(none, |(at, catalog)| {
        format!("after {}: revision {}, {} instances", mark(*at), catalog.revision(), catalog.len())
    });
    writeln!(out, "catalog    {catalog}")?;
    for peer in &reading.members {
        let part = if peer.voter { "votes" } else { "learner" };
        writeln!(out, "member     {} {} ({part}) {}", peer.id, peer.address.name, peer.address.peer)?;
    }
    for note in &reading.notes {
        writeln!(out, "note       {}: {}", note.place, note.what)?;
    }
    for flaw in &reading.flaws {
        writeln!(out, "DAMAGED    {}: {}", flaw.place, flaw.what)?;
    }
    writeln!(out, "{}", if reading.flaws.is_empty() { "sound" } else { "DAMAGED" })
}

/// The same as one JSON object.
pub fn json(dir: &Path, found: &Found) -> io::Result<()> {
    let Found { files, format, reading } = found;
    let identity = reading.identity.as_ref();
    let files =
        files.iter().map(|(path, bytes)| json!({ "path": path.display().to_string(), "bytes": bytes }));
    let flaws = reading.flaws.iter().map(|flaw| json!({ "place": flaw.place, "what": flaw.what }));
    let notes = reading.notes.iter().map(|note| json!({ "place": note.place, "what": note.what }));
    let value = json!({
        "dir": dir.display().to_string(),
        "cluster_id": identity.map(|it| &it.cluster_id),
        "node_id": identity.map(|it| it.node_id),
        "format": format,
        "vote": reading.vote.map(|it| json!({ "term": it.term, "node": it.node, "elected": it.elected })),
        "committed": reading.committed.map(mark),
        "purged": reading.purged.map(mark),
        "log": reading.log.first().zip(reading.log.last()).map(|(first, last)| json!({
            "first": mark(first.mark), "last": mark(last.mark), "entries": reading.log.len(),
        })),
        "snapshot": reading.snapshot.map(|it| json!({
            "last": mark(it.last), "revision": it.revision, "instances": it.instances, "bytes": it.bytes, "chunks": it.chunks,
        })),
        "catalog": reading.catalog.as_ref().map(|(at, catalog)| json!({
            "last": at.map(mark), "revision": catalog.revision(), "instances": catalog.len(),
            "hash": format!("{:016x}", catalog.hash()),
        })),
        "members": reading.members.iter().map(member).collect::<Vec<_>>(),
        "files": files.collect::<Vec<_>>(),
        "promised": reading.promised,
        "flaws": flaws.collect::<Vec<_>>(),
        "notes": notes.collect::<Vec<_>>(),
        "sound": reading.flaws.is_empty(),
    });
    writeln!(io::stdout().lock(), "{value:#}")
}

/// The log, a JSON object a line: one for every command, and one for every entry that has none.
pub fn log(reading: &Reading) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in log_lines(reading) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

pub(super) fn log_lines(reading: &Reading) -> impl Iterator<Item = Value> {
    let committed = reading.certain().map(|certain| certain.index);
    reading.log.iter().flat_map(move |entry| {
        let Mark { index, term, leader } = entry.mark;
        let known = committed.is_some_and(|committed| index <= committed);
        let place = json!({ "index": index, "term": term, "leader": leader, "committed": known });
        let with = move |more: Value| {
            let mut line = Map::new();
            for part in [place.clone(), more] {
                line.extend(part.as_object().cloned().unwrap_or_default());
            }
            Value::Object(line)
        };
        match &entry.content {
            Content::Blank => vec![with(json!({ "command": { "do": "blank" } }))],
            Content::Members(members) => {
                let members: Vec<Value> = members.iter().map(member).collect();
                vec![with(json!({ "command": { "do": "members", "members": members } }))]
            }
            Content::Commands(commands) => {
                let line = |(at, (proposal, applied)): (usize, &(Proposal, Option<Applied>))| {
                    with(command_line(at, proposal, applied.as_ref()))
                };
                commands.iter().enumerate().map(line).collect()
            }
        }
    })
}

fn command_line(position: usize, proposal: &Proposal, applied: Option<&Applied>) -> Value {
    json!({
        "position": position,
        "command": command(&proposal.command),
        "revision": applied.map(|applied| applied.revision),
        "changed": applied.map(|applied| !applied.events.is_empty()),
        "outcome": applied.map(|applied| outcome(&applied.outcome)),
        "client": proposal.origin.as_ref().map(|origin| &origin.client),
        "seq": proposal.origin.as_ref().map(|origin| origin.seq),
        "by": proposal.cause.by,
        "why": proposal.cause.why,
        "at_ms": proposal.cause.at_ms,
    })
}

fn command(command: &Command) -> Value {
    match command {
        Command::Register { spec, expected } => {
            json!({ "do": "register", "id": spec.id.as_str(), "instance": instance(spec), "expected_revision": expected })
        }
        Command::Deregister { id, reg_rev } => {
            json!({ "do": "deregister", "id": id.as_str(), "reg_rev": reg_rev })
        }
        Command::SetStatus { id, status: to, reg_rev } => {
            json!({ "do": "set_status", "id": id.as_str(), "status": status(*to), "reg_rev": reg_rev })
        }
        Command::Expire { term, victims } => {
            let victims =
                victims.iter().map(|(id, reg_rev)| json!({ "id": id.as_str(), "reg_rev": reg_rev }));
            json!({ "do": "expire", "term": term, "instances": victims.collect::<Vec<_>>() })
        }
        Command::SetFeatureLevel { level } => json!({ "do": "set_feature_level", "level": level }),
    }
}

fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Registered(_) => "registered",
        Outcome::Deregistered { found: true } => "deregistered",
        Outcome::Deregistered { found: false } => "not_found",
        Outcome::StatusSet(_) => "status_set",
        Outcome::Expired { .. } => "expired",
        Outcome::FeatureLevel(_) => "feature_level",
        Outcome::Refused(_) => "refused",
    }
}

/// The catalog, as one JSON object.
pub fn catalog(reading: &Reading) -> io::Result<()> {
    let Some((at, catalog)) = &reading.catalog else {
        return writeln!(io::stdout().lock(), "null");
    };
    let instances: Vec<Value> = catalog.records().map(|it| record(it)).collect();
    let value = json!({ "last": at.map(mark), "revision": catalog.revision(), "instances": instances });
    writeln!(io::stdout().lock(), "{value:#}")
}

fn record(record: &Record) -> Value {
    let mut value = instance(&record.spec);
    value["reg_rev"] = record.reg_rev.into();
    value["mod_rev"] = record.mod_rev.into();
    let changed = &record.changed;
    value["changed"] = json!({ "by": changed.by, "why": changed.why, "at_ms": changed.at_ms });
    value
}

fn instance(spec: &Spec) -> Value {
    json!({
        "id": spec.id.as_str(),
        "service": spec.service.as_str(),
        "host": spec.host,
        "port": spec.port,
        "url": spec.url,
        "health_path": spec.health_path,
        "ttl_ms": spec.ttl_ms,
        "weight": spec.weight,
        "zone": spec.zone,
        "version": spec.version,
        "tags": spec.tags,
        "metadata": spec.metadata,
        "status": status(spec.status),
    })
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Up => "up",
        Status::Draining => "draining",
        Status::Maintenance => "maintenance",
    }
}

fn mark(mark: Mark) -> Value {
    json!({ "index": mark.index, "term": mark.term, "leader": mark.leader })
}

fn member(peer: &Peer) -> Value {
    let address = &peer.address;
    json!({
        "id": peer.id, "voter": peer.voter, "name": address.name,
        "peer": address.peer, "grpc": address.grpc, "rest": address.rest,
    })
}
