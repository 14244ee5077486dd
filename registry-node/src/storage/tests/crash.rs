//! Every step at which a store can be cut off, or can fail, is tried: whatever was acknowledged is there afterwards,
//! and nothing else is claimed.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    super::{Error, Purged, Recovered, Slot, Snapshot, Store, Tree},
    append, entry, format_1,
    memory::Memory,
    used,
};

/// What is done to a store, and what may be found after it was begun, and must be after it was acknowledged.
struct Scenario {
    name: &'static str,
    base: fn() -> BoxFuture<'static, Memory>,
    work: fn(Store) -> BoxFuture<'static, io::Result<()>>,
    begun: fn(&Recovered) -> bool,
    done: fn(&Recovered) -> bool,
}

fn unchanged(found: &Recovered) -> bool {
    (found.log.clone(), found.vote.as_deref(), &found.purged) == (0..30, Some(&[2][..]), &None)
        && found.committed.is_none()
        && found.snapshot.as_ref().is_some_and(|snapshot| snapshot.index == 9)
        && found.identity.as_deref() == Some(b"us")
        && found.quarantine.is_none()
}

/// `unchanged`, but for one thing.
fn with(found: &Recovered, change: impl FnOnce(&mut Recovered)) -> bool {
    let mut found = found.clone();
    change(&mut found);
    unchanged(&found)
}

fn taken(index: u64) -> Snapshot {
    Snapshot { index, meta: vec![2], chunks: vec![entry(2), entry(3), entry(4)] }
}

fn purged(index: u64) -> Purged {
    Purged { index, mark: b"mark".to_vec() }
}

fn installed(found: &Recovered, purge: bool) -> bool {
    found.snapshot.as_ref() == Some(&taken(50))
        && found.vote.as_deref() == Some(&[2])
        && match &found.purged {
            None => !purge && found.log == (0..30),
            Some(mark) => mark.index == 50 && found.log == (51..51),
        }
}

/// As itself, and in quarantine until the log is what it was.
fn repairing(found: &Recovered, done: bool) -> bool {
    found.vote.as_deref() == Some(&[2])
        && found.identity.as_deref() == Some(b"us")
        && match &found.quarantine {
            Some(quarantine) => !done && quarantine.floor == 30,
            None => found.log == (0..30),
        }
}

fn scenarios() -> Vec<Scenario> {
    let base = || -> BoxFuture<'static, Memory> { Box::pin(async { used().await.killed() }) };
    vec![
        Scenario {
            name: "append",
            base,
            work: |store| Box::pin(async move { append(&store, 30..33).await }),
            begun: |found| unchanged(found) || with(found, |f| f.log.end -= 3),
            done: |found| with(found, |f| f.log.end -= 3),
        },
        Scenario {
            name: "vote",
            base,
            work: |store| Box::pin(async move { store.put(Slot::Vote, vec![9]).await }),
            begun: |found| unchanged(found) || found.vote.as_deref() == Some(&[9]),
            done: |found| with(found, |f| f.vote = f.vote.take().filter(|v| *v == [9]).map(|_| vec![2])),
        },
        Scenario {
            name: "commit mark",
            base,
            work: |store| {
                Box::pin(async move {
                    append(&store, 30..33).await?;
                    store.note_committed(b"32".to_vec());
                    append(&store, 33..34).await
                })
            },
            begun: |found| found.committed.is_none() || found.log.end >= 33,
            done: |found| found.log == (0..34) && found.committed.is_some(),
        },
        Scenario {
            name: "snapshot",
            base,
            work: |store| Box::pin(async move { store.save_snapshot(taken(29)).await }),
            begun: |found| unchanged(found) || found.snapshot == Some(taken(29)),
            done: |found| found.log == (0..30) && found.snapshot == Some(taken(29)),
        },
        Scenario {
            name: "purge",
            base,
            work: |store| Box::pin(async move { store.purge(purged(9)).await }),
            begun: |found| unchanged(found) || found.log == (10..30) && found.purged == Some(purged(9)),
            done: |found| found.log == (10..30) && found.purged == Some(purged(9)),
        },
        Scenario {
            name: "install",
            base,
            work: |store| {
                Box::pin(async move {
                    store.save_snapshot(taken(50)).await?;
                    store.purge(purged(50)).await
                })
            },
            begun: |found| unchanged(found) || installed(found, false),
            done: |found| installed(found, true),
        },
        Scenario {
            name: "truncate",
            base,
            work: |store| Box::pin(async move { store.truncate_from(5).await }),
            begun: |found| with(found, |f| f.log.end = if (5..=30).contains(&f.log.end) { 30 } else { 0 }),
            done: |found| found.log == (0..5),
        },
        Scenario {
            name: "truncate and append",
            base,
            work: |store| {
                Box::pin(async move {
                    store.truncate_from(15).await?;
                    append(&store, 15..25).await
                })
            },
            begun: |found| with(found, |f| f.log.end = if (15..=30).contains(&f.log.end) { 30 } else { 0 }),
            done: |found| found.log == (0..25),
        },
        Scenario {
            name: "creation",
            base: || Box::pin(async { Memory::default() }),
            work: |store| Box::pin(async move { store.put(Slot::Identity, b"us".to_vec()).await }),
            begun: |found| found.log == (0..0) && found.vote.is_none(),
            done: |found| found.identity.as_deref() == Some(b"us"),
        },
        Scenario {
            name: "migration",
            base: || {
                Box::pin(async {
                    let mut disk = Memory::default();
                    format_1(&mut disk);
                    disk
                })
            },
            work: |_| Box::pin(async { Ok(()) }),
            begun: |found| found.log == (0..30) && found.vote.as_deref() == Some(b"vote"),
            done: |found| found.identity.as_deref() == Some(b"us") && found.committed.is_some(),
        },
        Scenario {
            name: "repair",
            base: || {
                Box::pin(async {
                    let disk = used().await.killed();
                    disk.edit(Tree::Log, |frame| frame[40] ^= 1);
                    disk
                })
            },
            work: |store| {
                Box::pin(async move {
                    append(&store, 0..30).await?;
                    assert!(store.rejoin(false).await?);
                    Ok(())
                })
            },
            begun: |found| repairing(found, false),
            done: |found| repairing(found, true),
        },
    ]
}

fn opened(disk: &Memory) -> Result<Recovered, Error> {
    let opened = Store::in_task(
        disk.clone(),
        Path::new("memory"),
        &|_| Ok(()),
        Arc::default(),
        |_| (),
        || Duration::ZERO,
    );
    opened.map(|(_, found, _)| found)
}

/// Opens and works; says whether all of it was acknowledged, and whether the store took anything after it failed.
async fn act(scenario: &Scenario, disk: &Memory) -> bool {
    let failed = Arc::new(AtomicBool::new(false));
    let told = failed.clone();
    let on_failure = move |_: &io::Error| told.store(true, Ordering::Release);
    let opened =
        Store::in_task(disk.clone(), Path::new("memory"), &|_| Ok(()), Arc::default(), on_failure, || {
            Duration::ZERO
        });
    let Ok((store, _, work)) = opened else { return false };
    let driven = tokio::spawn(work);
    let acknowledged = (scenario.work)(store.clone()).await.is_ok();
    if failed.load(Ordering::Acquire) {
        let after = store.put(Slot::Vote, vec![99]).await;
        assert!(after.is_err(), "{}: something was acknowledged after a failure", scenario.name);
    }
    drop(store);
    driven.await.expect("it ends with its handles");
    acknowledged
}

fn check(scenario: &Scenario, left: &Memory, torn: bool, acknowledged: bool, at: &str) {
    let name = scenario.name;
    let expected = if acknowledged { scenario.done } else { scenario.begun };
    match opened(left) {
        Ok(found) => assert!(expected(&found), "{name}, {at}, acknowledged {acknowledged}: {found:?}"),
        // With a database to be set aside, and half a record that may have held a newer vote.
        Err(Error::Damaged { what, .. })
            if name == "repair" && torn && what.contains("vote is uncertain") => {}
        Err(error) => panic!("{name}, {at}, acknowledged {acknowledged}: {error}"),
    }
}

/// A cut before every step, keeping every prefix of what was not synced; and an error at every step.
#[tokio::test]
async fn every_step_may_be_the_last() {
    for scenario in scenarios() {
        let base = (scenario.base)().await;
        let whole = base.killed();
        assert!(act(&scenario, &whole).await, "{}: nothing fails", scenario.name);
        let steps = whole.steps();
        assert!(steps > 2, "{}: {steps} steps", scenario.name);
        check(&scenario, &whole.killed(), false, true, "whole");
        for step in 0..=steps {
            let disk = base.killed();
            disk.fail_after(step);
            let acknowledged = act(&scenario, &disk).await;
            check(&scenario, &disk.killed(), false, acknowledged, &format!("killed at {step} of {steps}"));
            for (left, torn) in disk.power_cuts() {
                check(
                    &scenario,
                    &left,
                    torn,
                    acknowledged,
                    &format!("cut at {step} of {steps}, torn {torn}"),
                );
            }

            let disk = base.killed();
            disk.fail_once_after(step);
            let acknowledged = act(&scenario, &disk).await;
            check(&scenario, &disk.killed(), false, acknowledged, &format!("an error at {step} of {steps}"));
        }
    }
}
