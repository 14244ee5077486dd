use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use expect_test::expect;

use super::nemesis::{Board, KINDS, Scope, schedule};
use super::workload::{Fate, Keeper, Mixed};
use crate::history::F;

#[test]
fn a_seed_is_a_schedule() {
    let lines: Vec<String> = schedule(1, 3, Duration::from_secs(12))
        .iter()
        .map(|fault| format!("{} {:>6?} for {:?}: {}", fault.id, fault.at, fault.lasts, fault.name()))
        .collect();
    expect![[r#"
        1  500ms for 1.646s: kill-majority
        2  3.57s for 2.681s: pause-leader
        3 6.619s for 2.215s: kill-all
        4 9.225s for 739ms: term-one
        5 11.558s for 1.47s: pause-one"#]]
    .assert_eq(&lines.join("\n"));
    assert_ne!(schedule(1, 3, Duration::from_secs(30)), schedule(2, 3, Duration::from_secs(30)));
}

#[test]
fn thirty_seconds_meet_every_kind() {
    for seed in 0..200 {
        let met: HashSet<_> = schedule(seed, 3, Duration::from_secs(30))
            .iter()
            .map(|fault| (fault.action, fault.scope))
            .collect();
        assert_eq!(met.len(), KINDS.len(), "seed {seed}");
    }
}

#[test]
fn a_single_node_has_no_followers_to_hit() {
    assert!(schedule(3, 1, Duration::from_secs(60)).iter().all(|fault| fault.scope != Scope::Follower));
}

#[test]
fn nobody_is_hit_twice_at_once() {
    let mut rng = super::rng(7, "test");
    let names = ["node-1", "node-2", "node-3"].map(str::to_owned);
    let mut board = Board::new(names.to_vec());
    let mut log = Vec::new();
    let leader = Some("node-2");
    let mut hit = |board: &mut Board, id, scope, leader| {
        let nodes = board.choose(scope, leader, &mut rng);
        if let Some(nodes) = &nodes {
            board.install(id, nodes);
        }
        log.push(format!("{scope}: {}", nodes.map_or("waits".into(), |nodes| nodes.join(" "))));
    };
    hit(&mut board, 1, Scope::Leader, None);
    hit(&mut board, 1, Scope::Leader, leader);
    hit(&mut board, 2, Scope::Leader, leader);
    hit(&mut board, 2, Scope::All, leader);
    hit(&mut board, 3, Scope::Majority, leader);
    board.heal(1);
    hit(&mut board, 3, Scope::Majority, leader);
    board.heal(2);
    hit(&mut board, 3, Scope::Majority, leader);
    hit(&mut board, 4, Scope::One, leader);
    board.heal(3);
    board.heal(4);
    hit(&mut board, 5, Scope::All, None);
    expect![[r#"
        leader: waits
        leader: node-2
        leader: waits
        all: node-1 node-3
        majority: waits
        majority: waits
        majority: node-2 node-3
        one: node-1
        all: node-1 node-2 node-3"#]]
    .assert_eq(&log.join("\n"));
}

#[test]
fn values_are_unique_over_all_clients() {
    let mut seen = BTreeSet::new();
    for number in 1..=6 {
        let mut client = Mixed::new(1, number, number < 4);
        for _ in 0..500 {
            let step = client.step();
            if step.f == F::Read {
                client.learn(step.key.as_deref().expect("reads have a key"), None);
            }
            assert!(step.value.is_none_or(|value| seen.insert(value)), "{step:?}");
        }
    }
    for number in 7..=9 {
        let mut keeper = Keeper::new(1, number);
        for _ in 0..50 {
            assert!(seen.insert(keeper.life().value));
            assert!(seen.insert(keeper.again()));
        }
    }
}

#[test]
fn a_workload_has_every_call_and_swaps_only_what_it_saw() {
    for seed in 0..20 {
        let mut client = Mixed::new(seed, 1, true);
        let mut calls = BTreeSet::new();
        let mut seen: HashSet<String> = HashSet::new();
        for _ in 0..600 {
            let step = client.step();
            calls.insert(step.f);
            match (step.f, step.key) {
                (F::Read, Some(key)) => {
                    client.learn(&key, Some((1, 1)));
                    seen.insert(key);
                }
                (F::Cas, Some(key)) => assert!(seen.remove(&key), "swap of {key} without a look at it"),
                _ => {}
            }
        }
        let wanted = BTreeSet::from([F::Register, F::Cas, F::Deregister, F::Read, F::List]);
        assert_eq!(calls, wanted, "seed {seed}");
    }
}

#[test]
fn even_keepers_keep_odd_ones_end_every_way() {
    assert_eq!(Keeper::new(1, 10).life().fate, Fate::Kept);
    let mut odd = Keeper::new(1, 11);
    let fates: HashSet<String> = (0..40).map(|_| format!("{:?}", odd.life().fate)).collect();
    assert_eq!(fates, HashSet::from(["Abandoned", "Deregistered", "Replaced"].map(str::to_owned)));
}

#[test]
fn cuts_are_dealt_evenly_and_by_the_seed_alone() {
    use super::cuts::{CUTS_PER_RIG_MAX, Fs, Mode, plan};

    let both = [Fs::Ext4, Fs::Xfs];
    let rigs = plan(1, 120, &both, None);
    assert_eq!(rigs, plan(1, 120, &both, None));
    assert_ne!(rigs, plan(2, 120, &both, None));
    for fs in both {
        for mode in [Mode::Single, Mode::Minority, Mode::All, Mode::MinorityAndKill] {
            let of_mode = rigs
                .iter()
                .filter(|rig| rig.fs == fs)
                .flat_map(|rig| &rig.cuts)
                .filter(|cut| cut.mode == mode);
            assert_eq!(of_mode.count(), 15, "{fs} {mode}");
        }
    }
    for rig in &rigs {
        assert!(rig.cuts.len() <= CUTS_PER_RIG_MAX);
        assert!(rig.cuts.iter().all(|cut| cut.mode.nodes() == rig.nodes && cut.node < rig.nodes));
    }
    let single = plan(5, 7, &[Fs::Xfs], Some(1));
    assert_eq!(single.iter().map(|rig| rig.cuts.len()).sum::<usize>(), 7);
    assert!(single.iter().all(|rig| rig.nodes == 1 && rig.fs == Fs::Xfs));
}
