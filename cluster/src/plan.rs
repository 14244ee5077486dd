//! From how many to exactly what: the processes of a cluster, their ports, arguments and directories. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    options::Options,
    ports::{self, Assigned, Ports, Want},
    spec::{Kind, ProcessSpec, port_of},
};

#[cfg(test)]
mod tests;

/// Limits of one machine and of the documented ports: node n is at 8081 + 100 (n - 1), so beyond these the
/// ranges of nodes, balancers and backends run into each other.
const NODES_MAX: usize = 9;
const BALANCERS_MAX: usize = 9;
pub(crate) const BACKENDS_MAX: usize = 90;

const HOST: &str = "127.0.0.1";

/// Why there is no such cluster.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// More, or fewer, than fit.
    #[error("{count} {what} do not fit on one machine; choose {min} to {max}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        count: usize,
        /// At least.
        min: usize,
        /// At most.
        max: usize,
    },
    /// A port could not be had.
    #[error(transparent)]
    Port(#[from] ports::Error),
}

/// What is to be started, and what differs from the documented ports.
#[derive(Debug)]
pub(crate) struct Plan {
    pub specs: Vec<ProcessSpec>,
    pub moved: Vec<Assigned>,
}

/// Plans all processes of a cluster in `dir`, run by `exe`.
pub(crate) fn plan(
    options: &Options,
    dir: &Path,
    exe: &Path,
    free_below: u16,
    is_free: impl FnMut(u16) -> bool,
) -> Result<Plan, Error> {
    within("nodes", options.nodes, 1, NODES_MAX)?;
    within("balancers", options.balancers, 0, BALANCERS_MAX)?;
    within("backends", options.backends, 0, BACKENDS_MAX)?;
    let slots = slots(options.nodes, options.balancers, 0..options.backends);
    let wants: Vec<Want> = slots.iter().flat_map(Slot::wants).collect();
    let assigned = ports::assign(&wants, options.ports, &BTreeSet::new(), free_below, is_free)?;
    let mut ports = assigned.iter().map(|one| one.port);
    let addressed: Vec<(Slot, Vec<u16>)> =
        slots.into_iter().map(|slot| (slot, ports.by_ref().take(slot.ports().len()).collect())).collect();
    let members = members(&addressed);
    let registry = registry(&addressed);
    let context = Context { options, dir, exe, members: &members, registry: &registry };
    let specs = addressed.iter().map(|(slot, ports)| context.spec(*slot, ports)).collect();
    Ok(Plan { specs, moved: moved(assigned, options.ports) })
}

/// Plans one more sample backend beside `existing`.
pub(crate) fn plan_backend(
    options: &Options,
    existing: &[ProcessSpec],
    dir: &Path,
    exe: &Path,
    free_below: u16,
    is_free: impl FnMut(u16) -> bool,
) -> Result<Plan, Error> {
    let index = (0..).find(|index| !existing.iter().any(|spec| spec.name == Slot::Backend(*index).name()));
    let slot = Slot::Backend(index.expect("names are finite"));
    within(
        "backends",
        existing.iter().filter(|spec| matches!(spec.kind, Kind::Backend { .. })).count() + 1,
        0,
        BACKENDS_MAX,
    )?;
    let reserved =
        existing.iter().flat_map(|spec| spec.kind.listens()).filter_map(|(_, url)| port_of(url)).collect();
    let assigned = ports::assign(&slot.wants(), options.ports, &reserved, free_below, is_free)?;
    let ports: Vec<u16> = assigned.iter().map(|one| one.port).collect();
    let rests = existing.iter().filter_map(|spec| match &spec.kind {
        Kind::Node { rest, .. } => Some(rest.as_str()),
        _ => None,
    });
    let registry = rests.collect::<Vec<_>>().join(",");
    let context = Context { options, dir, exe, members: "", registry: &registry };
    Ok(Plan { specs: vec![context.spec(slot, &ports)], moved: moved(assigned, options.ports) })
}

fn within(what: &'static str, count: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&count) { Ok(()) } else { Err(Error::Count { what, count, min, max }) }
}

fn moved(assigned: Vec<Assigned>, policy: Ports) -> Vec<Assigned> {
    assigned.into_iter().filter(|one| policy != Ports::Free && one.moved()).collect()
}

/// A place in the cluster: what, and the how manieth, from 0.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Node(usize),
    Balancer(usize),
    Backend(usize),
}

fn slots(nodes: usize, balancers: usize, backends: std::ops::Range<usize>) -> Vec<Slot> {
    let nodes = (0..nodes).map(Slot::Node);
    nodes.chain((0..balancers).map(Slot::Balancer)).chain(backends.map(Slot::Backend)).collect()
}

impl Slot {
    fn name(self) -> String {
        match self {
            Slot::Node(n) => format!("node-{}", n + 1),
            Slot::Balancer(n) => format!("lb-{}", n + 1),
            Slot::Backend(n) => format!("backend-{}", n + 1),
        }
    }

    /// The documented ports, in the order that [`Context::spec`] takes them.
    fn ports(self) -> Vec<(&'static str, u16)> {
        let n = |index: usize| u16::try_from(index).expect("counts are checked to be small");
        match self {
            Slot::Node(i) => {
                let step = 100 * n(i);
                vec![("rest", 8081 + step), ("grpc", 9091 + step), ("peer", 7091 + step)]
            }
            Slot::Balancer(i) => {
                let http = if i == 0 { 8080 } else { 8069 + n(i) };
                vec![("http", http), ("admin", 8060 + n(i))]
            }
            Slot::Backend(i) => vec![("http", 8082 + n(i)), ("metrics", 9092 + n(i))],
        }
    }

    fn wants(&self) -> Vec<Want> {
        let want = |(what, port)| Want { owner: format!("{} {what}", self.name()), port };
        self.ports().into_iter().map(want).collect()
    }
}

fn members(addressed: &[(Slot, Vec<u16>)]) -> String {
    let peers = addressed.iter().filter_map(|(slot, ports)| match slot {
        Slot::Node(index) => Some(format!("{}={HOST}:{}", index + 1, ports[2])),
        _ => None,
    });
    peers.collect::<Vec<_>>().join(",")
}

fn registry(addressed: &[(Slot, Vec<u16>)]) -> String {
    let rests = addressed.iter().filter_map(|(slot, ports)| match slot {
        Slot::Node(_) => Some(url(ports[0])),
        _ => None,
    });
    rests.collect::<Vec<_>>().join(",")
}

fn url(port: u16) -> String {
    format!("http://{HOST}:{port}")
}

fn address(port: u16) -> String {
    format!("{HOST}:{port}")
}

/// What all processes of a cluster share.
struct Context<'a> {
    options: &'a Options,
    dir: &'a Path,
    exe: &'a Path,
    members: &'a str,
    registry: &'a str,
}

impl Context<'_> {
    fn spec(&self, slot: Slot, ports: &[u16]) -> ProcessSpec {
        let name = slot.name();
        let dir = self.dir.join(&name);
        let (kind, role, args, extra) = match slot {
            Slot::Node(index) => self.node(index, &name, ports),
            Slot::Balancer(_) => self.balancer(&name, ports),
            Slot::Backend(_) => self.backend(ports),
        };
        let argv = [self.exe.display().to_string(), role.to_string()];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]);
        let argv = argv.into_iter().chain(args).chain(extra.iter().cloned()).collect();
        ProcessSpec { name, kind, argv, env: BTreeMap::new(), dir, netns: None }
    }

    fn node(&self, index: usize, name: &str, ports: &[u16]) -> Planned<'_> {
        let id = u64::try_from(index + 1).expect("counts are checked to be small");
        let kind = Kind::Node { id, rest: url(ports[0]), grpc: url(ports[1]), peer: url(ports[2]) };
        let args = vec![
            ("--id", id.to_string()),
            ("--name", name.to_string()),
            ("--dir", "data".to_string()),
            ("--rest", address(ports[0])),
            ("--grpc", address(ports[1])),
            ("--peer", address(ports[2])),
            ("--members", self.members.to_string()),
        ];
        (kind, "node", args, &self.options.node_args)
    }

    fn balancer(&self, name: &str, ports: &[u16]) -> Planned<'_> {
        let kind = Kind::Balancer { http: url(ports[0]), admin: url(ports[1]) };
        let mut args = vec![
            ("--name", name.to_string()),
            ("--host", HOST.to_string()),
            ("--port", ports[0].to_string()),
            ("--admin", address(ports[1])),
            ("--registry", self.registry.to_string()),
            ("--state-dir", "data".to_string()),
        ];
        args.extend(self.options.strategy.clone().map(|strategy| ("--strategy", strategy)));
        (kind, "balancer", args, &self.options.balancer_args)
    }

    fn backend(&self, ports: &[u16]) -> Planned<'_> {
        let service = self.options.service.clone();
        let id = format!("{service}-{HOST}-{}", ports[0]);
        let kind = Kind::Backend { service: service.clone(), id, url: url(ports[0]), metrics: url(ports[1]) };
        let args = vec![
            ("--service", service),
            ("--host", HOST.to_string()),
            ("--port", ports[0].to_string()),
            ("--metrics-port", ports[1].to_string()),
            ("--registry", self.registry.to_string()),
        ];
        (kind, "backend", args, &self.options.backend_args)
    }
}

/// Kind, subcommand, its flags, and what the caller adds.
type Planned<'a> = (Kind, &'static str, Vec<(&'static str, String)>, &'a Vec<String>);
