//! What the kernel says of the machine and of processes.

use std::time::Duration;

/// Clock ticks a second in `/proc/PID/stat`, on every architecture we run on (proc(5): USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// The load average over the last minute; zero where there is none.
pub(crate) fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// Processors this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Resident memory of a process in MiB; zero if it has gone.
pub(crate) fn rss_mib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1_024.0
}

/// Processor time that a process and its children have used; of those that have gone nothing.
pub(crate) fn tree_cpu_time(pid: i32) -> Duration {
    cpu_time(pid) + children(pid).into_iter().map(cpu_time).sum::<Duration>()
}

/// Resident memory of a process and its children in MiB. Pages that they share count for each.
pub(crate) fn tree_rss_mib(pid: i32) -> f64 {
    rss_mib(pid) + children(pid).into_iter().map(rss_mib).sum::<f64>()
}

/// The processes that a process has started; none if it has gone.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Processor time that a process has used, in user space and in the kernel; zero if it has gone.
pub(crate) fn cpu_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name in parentheses and may itself hold blanks and parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}
