//! Printing a log, and going on with what is added.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::Cluster;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Prints the last `lines` of the log of `name`, then what is added until Ctrl-C or until the reader goes away.
pub(super) async fn print(cluster: &Cluster, name: &str, lines: usize, follow: bool) -> Result<()> {
    let path = cluster.logs(name);
    let mut file =
        File::open(&path).with_context(|| format!("{name} has no log yet at {}", path.display()))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut open = put(last_lines(&text, lines));
    while follow && open {
        tokio::time::sleep(POLL).await;
        text.clear();
        file.read_to_end(&mut text)?;
        open = put(&text);
    }
    Ok(())
}

fn put(text: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).is_ok()
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let from = if lines == 0 { Some(text.len()) } else { breaks.map(|(at, _)| at + 1).nth(lines - 1) };
    &text[from.unwrap_or(0)..]
}

#[cfg(test)]
mod tests;
