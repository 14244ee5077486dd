use governor::clock::FakeRelativeClock;

use super::*;

fn limiter(requests: u32, burst: u32, by: By) -> (Limiter<FakeRelativeClock>, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    let number = |n| NonZeroU32::new(n).expect("not 0");
    let allowance =
        Allowance { requests: number(requests), per: Duration::from_secs(1), burst: number(burst), by };
    (Limiter::with_clock(allowance, clock.clone(), 100).expect("it can be counted"), clock)
}

#[test]
fn a_burst_is_allowed_and_then_the_rate() {
    let (limiter, clock) = limiter(10, 3, By::Route);
    let mut taken = 0;
    for _ in 0..40 {
        taken += (0..5).filter(|n| limiter.take(&format!("10.0.0.{n}"), None).is_ok()).count();
        clock.advance(Duration::from_millis(50));
    }
    // 2 s at 10 a second, and what was there at the beginning.
    assert!((22..=23).contains(&taken), "{taken}");
    while limiter.take("", None).is_ok() {}
    let wait = limiter.take("", None).expect_err("it is used up");
    assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
}

#[test]
fn clients_are_told_apart_and_networks_are_not() {
    let (limiter, _clock) = limiter(1, 1, By::Client);
    assert!(limiter.take("10.0.0.1", None).is_ok());
    assert!(limiter.take("10.0.0.1", None).is_err());
    assert!(limiter.take("10.0.0.2", None).is_ok());
    assert!(limiter.take("2001:db8::1", None).is_ok());
    assert!(limiter.take("2001:db8::2", None).is_err());
    assert!(limiter.take("2001:db8:0:1::2", None).is_ok());
}

#[test]
fn a_field_counts_and_its_absence_is_no_way_around() {
    let (limiter, _clock) = limiter(1, 1, By::Field("x-api-key".into()));
    assert!(limiter.take("10.0.0.1", Some(b"a")).is_ok());
    assert!(limiter.take("10.0.0.2", Some(b"a")).is_err());
    assert!(limiter.take("10.0.0.1", Some(b"b")).is_ok());
    assert!(limiter.take("10.0.0.1", None).is_ok());
    assert!(limiter.take("10.0.0.1", None).is_err());
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let (limiter, clock) = limiter(1, 1, By::Client);
    let keys = |from: u32, n: u32| {
        let take = |i| limiter.take(&std::net::Ipv4Addr::from_bits(i).to_string(), None).is_ok();
        (from..from + n).filter(|i| take(*i)).count()
    };
    assert_eq!(keys(0, 100), 100);
    let crowd = keys(1000, 100_000);
    assert!(crowd <= CROWD as usize, "{crowd} allowances for newcomers");
    assert!(limiter.counts.len() <= 100 + CROWD as usize, "{limiter:?}");
    // After a rest everybody's bucket is full, and nobody has to be remembered.
    clock.advance(Duration::from_secs(10));
    assert_eq!(keys(0, 90), 90);
    assert!(limiter.counts.len() <= 100, "{limiter:?}");
}

#[test]
fn a_rate_beyond_counting_is_none() {
    let number = |n| NonZeroU32::new(n).expect("not 0");
    let allowance =
        Allowance { requests: number(1000), per: Duration::from_nanos(10), burst: number(1), by: By::Route };
    assert!(Limiter::new(allowance).is_none());
}
