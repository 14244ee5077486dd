//! Status as a table. Pure.

use std::fmt::Write as _;

use crate::Status;

#[cfg(test)]
mod tests;

/// The whole status, a row for each process.
pub(super) fn status(status: &Status) -> String {
    let mut rows = vec![["NAME", "STATE", "PID", "URL", "ALSO"].map(String::from)];
    for node in &status.nodes {
        let also = format!("grpc {}  revision {}", node.grpc, node.revision);
        rows.push([node.name.clone(), node.role.to_string(), pid(node.pid), node.rest.clone(), also]);
    }
    for balancer in &status.balancers {
        let also = format!("admin {}  {} ready endpoints", balancer.admin, balancer.ready_endpoints);
        rows.push([balancer.name.clone(), up(balancer.pid), pid(balancer.pid), balancer.http.clone(), also]);
    }
    for backend in &status.backends {
        let also = format!("service {}", backend.service);
        rows.push([backend.name.clone(), up(backend.pid), pid(backend.pid), backend.url.clone(), also]);
    }
    columns(&rows)
}

fn up(pid: Option<i32>) -> String {
    if pid.is_some() { "up" } else { "down" }.into()
}

fn pid(pid: Option<i32>) -> String {
    pid.map_or("-".into(), |pid| pid.to_string())
}

/// Every column as wide as its widest cell.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "{}", line.trim_end()).expect("writing to a string");
    }
    text
}
