use std::io::Read;
use std::time::Instant;

use super::*;

fn counter() -> IntCounter {
    IntCounter::new("dropped", "Lines dropped").expect("a name")
}

fn content(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits for what another thread does.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn lines_of_all_pens_are_in_the_file_when_it_is_closed_and_a_moved_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let dropped = counter();
    let log = Log::start(&Sink::File(path.clone()), dropped.clone()).unwrap();
    let mut pens = [log.pens().pen(), log.pens().pen()];
    for i in 0..1000 {
        pens[i % 2].write(format!("{{\"n\":{i}}}\n").as_bytes());
    }
    pens.iter_mut().for_each(Pen::flush);
    eventually("the first are there", || content(&path).lines().count() == 1000);
    std::fs::rename(&path, &moved).unwrap();
    let reopen = log.reopener();
    reopen();
    eventually("the file is there again", || path.exists());
    pens[0].write(b"{\"n\":1000}\n");
    drop((pens, reopen));
    log.close(Duration::from_secs(15)).await;
    assert_eq!(content(&path), "{\"n\":1000}\n");
    assert_eq!(content(&moved).lines().count(), 1000);
    assert_eq!(dropped.get(), 0);
}

/// A pipe that nobody reads: lines are dropped and counted, and nobody waits.
#[tokio::test]
async fn a_log_that_takes_nothing_costs_lines_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Opening a pipe waits for both of its ends.
    let other_end = std::thread::spawn({
        let path = path.clone();
        move || File::open(path).expect("the pipe opens")
    });
    let dropped = counter();
    let log = Log::start(&Sink::File(path), dropped.clone()).unwrap();
    let mut other_end = other_end.join().unwrap();
    let mut pen = log.pens().pen();
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    let mut written = 0u64;
    while dropped.get() == 0 {
        assert!(written < 100_000, "the queue has no end");
        pen.write(&line);
        written += 1;
    }
    drop(pen);
    log.close(Duration::from_millis(1)).await;
    // What was queued is written as soon as it is taken; with what was dropped that is everything.
    let mut taken = Vec::new();
    other_end.read_to_end(&mut taken).unwrap();
    assert_eq!(taken.len() as u64 / 1024 + dropped.get(), written);
    assert!(dropped.get() < written / 2, "{} of {written}", dropped.get());
}

#[test]
fn a_file_that_cannot_be_opened_is_told_at_once() {
    assert!(Log::start(&Sink::File("/nowhere/at/all.log".into()), counter()).is_err());
}
