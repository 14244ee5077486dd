use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(10);

fn id(number: usize) -> InstanceId {
    InstanceId::new(format!("web-{number:05}")).expect("valid")
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `count` instances, all granted at `now`.
fn granted(count: usize, now: Instant) -> Lessor {
    let mut lessor = Lessor::new();
    (0..count).for_each(|number| lessor.grant(id(number), 1, TTL, now));
    lessor
}

#[test]
fn a_lease_runs_out_at_its_ttl_and_not_before() {
    let now = Instant::now();
    let mut lessor = granted(1, now);
    assert_eq!(lessor.take_overdue(now + s(10) - Duration::from_nanos(1), 10), vec![]);
    assert_eq!(lessor.take_overdue(now + s(10), 10), vec![(id(0), 1)]);
    assert_eq!(lessor.take_overdue(now + s(20), 10), vec![], "it is taken once");
}

#[test]
fn a_heartbeat_renews_for_the_full_ttl_even_of_an_overdue_lease() {
    let now = Instant::now();
    let mut lessor = granted(1, now);
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(9)), Renewal::Renewed);
    assert_eq!(lessor.take_overdue(now + s(18), 0), vec![]);
    assert_eq!(lessor.take_overdue(now + s(19), 0), vec![], "overdue, not taken");
    assert_eq!(lessor.renew(&id(0), None, now + s(20)), Renewal::Renewed);
    assert_eq!(lessor.take_overdue(now + s(29), 10), vec![]);
    assert_eq!(lessor.take_overdue(now + s(30), 10), vec![(id(0), 1)]);
}

#[test]
fn from_its_proposal_on_an_expiry_cannot_be_renewed_until_the_outcome_is_known() {
    let now = Instant::now();
    let mut lessor = granted(2, now);
    let victims = lessor.take_overdue(now + s(10), 10);
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(10)), Renewal::Expiring);
    lessor.revoke(&id(0), 1);
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(10)), Renewal::Lost);
    lessor.expiry_failed(&victims, now + s(11));
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(11)), Renewal::Lost, "the revoked one stays revoked");
    assert_eq!(lessor.renew(&id(1), Some(1), now + s(11)), Renewal::Renewed);
    assert_eq!(lessor.next_due(), Some(now + s(21)));
}

#[test]
fn arming_anew_within_a_term_leaves_what_is_expiring() {
    let now = Instant::now();
    let mut lessor = granted(3, now);
    assert_eq!(lessor.renew(&id(2), None, now + s(5)), Renewal::Renewed);
    let victims = lessor.take_overdue(now + s(10), 10);
    assert_eq!(victims, [(id(0), 1), (id(1), 1)]);
    // The second has been registered again meanwhile: its expiry is of another incarnation.
    let present = [(id(0), 1, TTL), (id(1), 7, TTL), (id(2), 1, TTL)];
    lessor.rearm_all(present, now + s(11), s(1));
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(12)), Renewal::Expiring);
    assert_eq!(lessor.renew(&id(1), Some(7), now + s(12)), Renewal::Renewed);
    assert_eq!(lessor.take_overdue(now + s(12), 10), []);
    lessor.expiry_failed(&victims, now + s(12));
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(12)), Renewal::Renewed);
    assert_eq!(lessor.take_overdue(now + s(60), 10).len(), 3, "none is lost, none is there twice");
}

#[test]
fn a_predecessor_cannot_touch_its_successors_lease() {
    let now = Instant::now();
    let mut lessor = granted(1, now);
    lessor.grant(id(0), 5, TTL, now + s(1));
    assert_eq!(lessor.renew(&id(0), Some(1), now + s(9)), Renewal::Lost);
    lessor.revoke(&id(0), 1);
    lessor.grant(id(0), 1, s(3600), now + s(2));
    assert_eq!(lessor.take_overdue(now + s(11), 10), vec![(id(0), 5)]);
}

#[test]
fn a_new_incarnation_may_have_a_shorter_lease() {
    let now = Instant::now();
    let mut lessor = granted(1, now);
    lessor.grant(id(0), 2, s(3), now);
    assert_eq!(lessor.take_overdue(now + s(3), 10), vec![(id(0), 2)]);
}

#[test]
fn grace_and_postponement_only_push_deadlines_later() {
    let now = Instant::now();
    let mut lessor = granted(1, now);
    lessor.arm_all([(id(0), 1, TTL)], now, s(4));
    lessor.renew(&id(0), Some(1), now + s(1));
    assert_eq!(lessor.take_overdue(now + s(17), 10), vec![]);
    assert_eq!(lessor.take_overdue(now + s(18), 0), vec![]);
    lessor.postpone_all(s(2));
    assert_eq!(lessor.take_overdue(now + s(19), 10), vec![]);
    assert_eq!(lessor.take_overdue(now + s(20), 10), vec![(id(0), 1)]);
}

#[test]
fn deaths_of_a_few_are_not_braked() {
    let now = Instant::now();
    let mut lessor = granted(50, now);
    assert_eq!(lessor.take_overdue(now + s(10), 1_000).len(), 50);
    let mut lessor = granted(1_000, now);
    (100..1_000).for_each(|number| lessor.grant(id(number), 2, s(100), now));
    assert_eq!(lessor.take_overdue(now + s(10), 1_000).len(), 100, "ten percent of a thousand");
}

#[test]
fn mass_expiry_pauses_for_a_ttl_then_goes_on_slowly() {
    let now = Instant::now();
    let mut lessor = granted(3_000, now);
    let at = now + s(10);
    assert_eq!(lessor.take_overdue(at, 5_000), vec![]);
    assert_eq!(lessor.brake(), BrakeState::Paused { until: at + TTL, ttl: TTL });
    assert_eq!(lessor.next_due(), Some(at + TTL));
    assert_eq!(lessor.take_overdue(at + s(9), 5_000), vec![]);
    // Whoever beats during the pause is saved.
    (0..500).for_each(|number| assert_eq!(lessor.renew(&id(number), Some(1), at + s(9)), Renewal::Renewed));
    let mut taken = 0;
    let mut slow = at + TTL;
    for _ in 0..20 {
        slow += Duration::from_millis(100);
        let victims = lessor.take_overdue(slow, 5_000);
        assert!(victims.len() <= 100, "{} in 100 ms", victims.len());
        taken += victims.len();
    }
    assert_eq!(taken, 2_000);
    assert_eq!(lessor.overdue(), 500);
}

#[test]
fn a_pause_is_no_shorter_for_time_in_which_nobody_was_heard() {
    let now = Instant::now();
    let mut lessor = granted(200, now);
    assert_eq!(lessor.take_overdue(now + s(10), 1_000), vec![]);
    lessor.postpone_all(s(2));
    assert_eq!(lessor.brake(), BrakeState::Paused { until: now + s(22), ttl: TTL });
    assert_eq!(lessor.take_overdue(now + s(21), 1_000), vec![]);
    assert_eq!(lessor.take_overdue(now + s(23), 1_000).len(), 200);
}

#[test]
fn an_operator_lets_go_of_the_brake() {
    let now = Instant::now();
    let mut lessor = granted(200, now);
    assert_eq!(lessor.take_overdue(now + s(10), 1_000), vec![]);
    lessor.override_brake();
    assert_eq!(lessor.take_overdue(now + s(10), 150).len(), 150);
    assert_eq!(lessor.take_overdue(now + s(10), 150).len(), 50);
    assert_eq!(lessor.brake(), BrakeState::Released);
}

#[test]
fn the_brake_releases_itself_once_the_storm_is_over() {
    let now = Instant::now();
    let mut lessor = granted(100, now);
    assert_eq!(lessor.take_overdue(now + s(10), 1_000), vec![]);
    assert_eq!(lessor.take_overdue(now + s(20), 1_000), vec![], "the pause just ended");
    assert_eq!(lessor.take_overdue(now + s(21), 1_000).len(), 100);
    assert!(matches!(lessor.brake(), BrakeState::Slow { .. }));
    assert_eq!(lessor.take_overdue(now + s(32), 1_000), vec![]);
    assert_eq!(lessor.brake(), BrakeState::Released);
}

#[test]
fn nothing_is_left_behind() {
    let now = Instant::now();
    let mut lessor = Lessor::new();
    for round in 0..1_000 {
        lessor.grant(id(0), 2 * round + 1, s(3600), now);
        lessor.revoke(&id(0), 2 * round + 1);
    }
    assert!(lessor.is_empty() && lessor.filed.is_empty() && lessor.overdue.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Grant { number: usize, ttl_ms: u64 },
    Renew { number: usize, current: bool },
    Revoke { number: usize, current: bool },
    Take { limit: usize },
    Fail,
    Postpone { ms: u64 },
    ArmAll { grace_ms: u64 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0usize..6;
    prop_oneof![
        4 => (number.clone(), 1u64..50).prop_map(|(number, ttl_ms)| Step::Grant { number, ttl_ms }),
        6 => (number.clone(), prop::bool::weighted(0.8)).prop_map(|(number, current)| Step::Renew { number, current }),
        2 => (number, any::<bool>()).prop_map(|(number, current)| Step::Revoke { number, current }),
        6 => (0usize..4).prop_map(|limit| Step::Take { limit }),
        1 => Just(Step::Fail),
        1 => (0u64..20).prop_map(|ms| Step::Postpone { ms }),
        1 => (0u64..20).prop_map(|grace_ms| Step::ArmAll { grace_ms }),
        8 => (0u64..20).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// What the model knows of a lease. It looks at all of them, always.
#[derive(Clone, Debug)]
struct Naive {
    reg_rev: u64,
    ttl: Duration,
    deadline: Instant,
    expiring: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The brake needs more than 50 instances and stays out of this.
    #[test]
    fn behaves_as_the_naive_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut now = Instant::now();
        let (mut lessor, mut model) = (Lessor::new(), BTreeMap::<InstanceId, Naive>::new());
        let mut reg_rev = 0;
        let mut taken: Vec<(InstanceId, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Pass { ms } => now += Duration::from_millis(ms),
                Step::Grant { number, ttl_ms } => {
                    reg_rev += 1;
                    let ttl = Duration::from_millis(ttl_ms);
                    lessor.grant(id(number), reg_rev, ttl, now);
                    model.insert(id(number), Naive { reg_rev, ttl, deadline: now + ttl, expiring: false });
                }
                Step::Renew { number, current } => {
                    let reg_rev = model.get(&id(number)).map_or(99, |lease| lease.reg_rev + u64::from(!current));
                    let expected = match model.get_mut(&id(number)) {
                        Some(lease) if current && lease.expiring => Renewal::Expiring,
                        Some(lease) if current => {
                            lease.deadline = lease.deadline.max(now + lease.ttl);
                            Renewal::Renewed
                        }
                        _ => Renewal::Lost,
                    };
                    prop_assert_eq!(lessor.renew(&id(number), Some(reg_rev), now), expected);
                }
                Step::Revoke { number, current } => {
                    let reg_rev = model.get(&id(number)).map_or(99, |lease| lease.reg_rev + u64::from(!current));
                    lessor.revoke(&id(number), reg_rev);
                    if current {
                        model.remove(&id(number));
                    }
                }
                Step::Take { limit } => {
                    let mut overdue: Vec<_> = model.iter().filter(|(_, lease)| !lease.expiring && lease.deadline <= now)
                        .map(|(id, lease)| (lease.deadline, id.clone(), lease.reg_rev)).collect();
                    overdue.sort();
                    let expected: Vec<_> = overdue.into_iter().take(limit).map(|(_, id, reg_rev)| (id, reg_rev)).collect();
                    for (id, _) in &expected {
                        model.get_mut(id).expect("it is overdue").expiring = true;
                    }
                    let found = lessor.take_overdue(now, limit);
                    prop_assert_eq!(&found, &expected);
                    taken.extend(found);
                }
                Step::Fail => {
                    lessor.expiry_failed(&taken, now);
                    for (id, reg_rev) in taken.drain(..) {
                        if let Some(lease) = model.get_mut(&id).filter(|lease| lease.reg_rev == reg_rev && lease.expiring) {
                            (lease.expiring, lease.deadline) = (false, now + lease.ttl);
                        }
                    }
                }
                Step::Postpone { ms } => {
                    lessor.postpone_all(Duration::from_millis(ms));
                    model.values_mut().for_each(|lease| lease.deadline += Duration::from_millis(ms));
                }
                Step::ArmAll { grace_ms } => {
                    let grace = Duration::from_millis(grace_ms);
                    lessor.arm_all(model.iter().map(|(id, lease)| (id.clone(), lease.reg_rev, lease.ttl)), now, grace);
                    for lease in model.values_mut() {
                        (lease.expiring, lease.deadline) = (false, now + lease.ttl + lease.ttl / 3 + grace);
                    }
                }
            }
            prop_assert_eq!(lessor.len(), model.len());
            let due = model.values().filter(|lease| !lease.expiring).map(|lease| lease.deadline).min();
            prop_assert!(lessor.next_due() <= due || due.is_none(), "next_due is late");
        }
    }
}
