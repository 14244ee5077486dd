use super::*;
use proptest::prelude::*;

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn five_failures_within_the_window_eject() {
    let (t0, policy) = (Instant::now(), Policy::default());
    let mut o = Outlier::new(&Policy::default(), t0);
    (0..4).for_each(|i| o.failure(t0 + s(i)));
    assert!(!o.deserves_ejection(&policy));
    o.failure(t0 + s(9));
    assert!(o.deserves_ejection(&policy));
}

/// The original counted errors over any period: five in a week took a backend out.
#[test]
fn failures_spread_over_more_than_the_window_do_not() {
    let (t0, policy) = (Instant::now(), Policy::default());
    let mut o = Outlier::new(&Policy::default(), t0);
    for i in 0..100 {
        o.failure(t0 + s(i * 3));
        assert!(!o.deserves_ejection(&policy), "after {} failures", i + 1);
    }
}

#[test]
fn a_few_failures_among_very_many_requests_do_not() {
    let (t0, policy) = (Instant::now(), Policy::default());
    let mut o = Outlier::new(&Policy::default(), t0);
    o.requests(50_000, t0);
    (0..20).for_each(|_| o.failure(t0));
    assert!(!o.deserves_ejection(&policy));
    (0..480).for_each(|_| o.failure(t0));
    assert!(o.deserves_ejection(&policy));
}

#[test]
fn ejections_grow_to_a_maximum_and_are_forgiven() {
    let (t0, policy) = (Instant::now(), Policy::default());
    let mut o = Outlier::new(&Policy::default(), t0);
    let mut now = t0;
    let mut lengths = Vec::new();
    for _ in 0..14 {
        let until = o.eject(&policy, now);
        lengths.push((until - now).as_secs());
        assert!(!o.readmit(until - s(1)) && o.readmit(until) && !o.readmit(until));
        now = until;
    }
    assert_eq!(lengths, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60]);
    now += s(121);
    assert_eq!(o.eject(&policy, now) - now, s(5));
}

#[test]
fn the_cap_leaves_someone_in() {
    let policy = Policy::default();
    let caps: Vec<_> = [0, 1, 2, 3, 4, 10].iter().map(|&n| policy.ejected_max(n)).collect();
    assert_eq!(caps, [0, 0, 1, 1, 2, 5]);
}

#[test]
fn failures_can_be_left_to_others_to_judge() {
    let (t0, policy) = (Instant::now(), Policy { failures_min: None, ..Policy::default() });
    let mut o = Outlier::new(&policy, t0);
    (0..100).for_each(|_| o.failure(t0));
    assert!(!o.deserves_ejection(&policy));
}

proptest! {
    /// Against a plain list of times, at the resolution of a bucket.
    #[test]
    fn the_window_slides(steps in prop::collection::vec(0u64..4000, 1..200), window in 1u64..20) {
        let t0 = Instant::now();
        let mut o = Outlier::new(&Policy { window: s(window), ..Policy::default() }, t0);
        let (mut now_ms, mut times) = (0, Vec::new());
        for step in steps {
            now_ms += step;
            o.failure(t0 + Duration::from_millis(now_ms));
            times.push(now_ms / 1000);
            let second = now_ms / 1000;
            let live = times.iter().filter(|&&t| t + window > second).count();
            prop_assert_eq!(o.failures() as usize, live);
        }
    }
}
