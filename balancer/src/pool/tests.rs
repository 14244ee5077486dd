use super::*;
use proptest::prelude::*;

fn entry(id: &str, weight: u32, standing: Standing) -> Entry {
    let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
    Entry { endpoint: Arc::new(Endpoint::new(0, id, "s", address)), weight, standing, why: String::new() }
}

fn rotation(standings: &[Standing]) -> Vec<Standing> {
    let entries = standings.iter().map(|&s| entry("a", 100, s)).collect();
    Pool::new(1, entries).rotation().map(|e| e.standing).collect()
}

#[test]
fn urls_are_taken_apart() {
    let parsed = |url| Address::parse(url).map(|a| (a.authority(), a.base_path));
    assert_eq!(parsed("http://a:8082"), Ok(("a:8082".into(), String::new())));
    assert_eq!(parsed("http://a"), Ok(("a:80".into(), String::new())));
    assert_eq!(parsed("http://a:1/"), Ok(("a:1".into(), String::new())));
    assert_eq!(parsed("http://a:1/api/v2/"), Ok(("a:1".into(), "/api/v2".into())));
    assert_eq!(parsed("http://[::1]:9"), Ok(("[::1]:9".into(), String::new())));
    assert_eq!(Address::parse("https://a"), Err(AddressError::Scheme("https".into())));
    for bad in ["", "a:80", "/x", "http://", "http://a b", "http://a/?q=1", "\0"] {
        assert!(Address::parse(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn only_the_best_tier_takes_requests() {
    use Standing::*;
    assert_eq!(rotation(&[Up, Unproven, Failing, Down, Draining]), [Up]);
    assert_eq!(rotation(&[Unproven, Failing, Down]), [Unproven]);
    assert_eq!(rotation(&[Failing, Ejected, Down]), [Failing, Ejected]);
    assert_eq!(rotation(&[Down, Draining]), [Down]);
    assert_eq!(rotation(&[Draining, Maintenance, Unusable]), []);
    assert_eq!(rotation(&[]), []);
}

#[test]
fn equal_weights_take_turns() {
    assert_eq!(schedule(&[100, 100, 100]), [0, 1, 2]);
    assert_eq!(schedule(&[7]), [0]);
    assert_eq!(schedule(&[]), [0u16; 0]);
}

#[test]
fn turns_of_a_heavy_endpoint_are_spread_out() {
    assert_eq!(schedule(&[500, 100, 100]), [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn in_flight_falls_with_its_guard() {
    let e = entry("a", 1, Standing::Up).endpoint;
    let (one, two) = (e.begin(), e.begin());
    assert_eq!(e.in_flight(), 2);
    drop(one);
    assert_eq!(e.in_flight(), 1);
    let panicked = std::thread::spawn(move || {
        let _held = two;
        std::panic::resume_unwind(Box::new("cut short"));
    })
    .join();
    assert!(panicked.is_err());
    assert_eq!((e.in_flight(), e.served()), (0, 2));
}

proptest! {
    #[test]
    fn everyone_gets_its_share(weights in prop::collection::vec(1u32..=1000, 1..40)) {
        let schedule = schedule(&weights);
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        prop_assert!(schedule.len() as u64 <= SCHEDULE_MAX + weights.len() as u64);
        for (i, &w) in weights.iter().enumerate() {
            let turns = schedule.iter().filter(|&&t| usize::from(t) == i).count() as f64;
            let want = schedule.len() as f64 * f64::from(w) / total as f64;
            prop_assert!(turns >= 1.0 && (turns - want).abs() <= 2.0 + want * 0.05, "{turns} of {want}");
        }
    }

    #[test]
    fn equal_weights_are_exactly_fair(n in 1usize..200, w in 1u32..1000) {
        let order: Vec<u16> = (0..n as u16).collect();
        prop_assert_eq!(schedule(&vec![w; n]), order);
    }
}
