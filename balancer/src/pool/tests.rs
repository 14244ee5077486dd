use super::*;

fn entry(id: &str, weight: u32, standing: Standing) -> Entry {
    let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
    Entry::new(Arc::new(Endpoint::new(0, id, "s", address)), weight, standing, String::new())
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

#[test]
fn a_limit_holds_whoever_begins_at_the_same_moment() {
    let e = entry("a", 1, Standing::Up).endpoint;
    let begin = |_| {
        let e = e.clone();
        std::thread::spawn(move || (0..100).filter_map(|_| e.begin_within(70)).collect::<Vec<_>>())
    };
    let threads: Vec<_> = (0..4).map(begin).collect();
    let held: Vec<InFlight> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    assert_eq!((held.len(), e.in_flight(), e.served()), (70, 70, 70));
    drop(held);
    assert_eq!(e.in_flight(), 0);
}

#[test]
fn a_freed_slot_calls_who_waits_for_it() {
    let gate = Arc::new(Gate::default());
    let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
    let e = Arc::new(Endpoint::new(7, "a", "s", address).behind(gate.clone()));
    let held = e.begin_within(1).unwrap();
    assert!(e.begin_within(1).is_none());
    let mut ticket = gate.enter(0, &[], 1).unwrap();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(ticket.poll(&mut cx).is_pending());
    drop(held);
    assert!(ticket.poll(&mut cx).is_ready());
}

/// Wakes a thread.
struct Parked(std::thread::Thread);

impl std::task::Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Takes a slot as a request does: at once if nobody waits, else in turn.
fn slot(endpoint: &Arc<Endpoint>, gate: &Arc<Gate>) -> InFlight {
    let at_once = (!gate.is_waited_for(0)).then(|| endpoint.begin_within(2)).flatten();
    if let Some(slot) = at_once {
        return slot;
    }
    let mut ticket = gate.enter(0, &[], 100).unwrap();
    let waker = Arc::new(Parked(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let (began, mut looked) = (std::time::Instant::now(), false);
    loop {
        let is_called = ticket.poll(&mut cx).is_ready();
        let is_first = !std::mem::replace(&mut looked, true) && ticket.is_first();
        if !is_called && !is_first {
            std::thread::park_timeout(std::time::Duration::from_secs(30));
            assert!(began.elapsed().as_secs() < 30, "nobody called");
        } else if let Some(slot) = endpoint.begin_within(2) {
            return slot;
        }
    }
}

/// A call that got lost would leave a thread waiting although slots are free: for ever, once the others have ended.
#[test]
fn nobody_waits_for_ever_and_the_limit_holds_under_contention() {
    let gate = Arc::new(Gate::default());
    let address = Address { host: "127.0.0.1".into(), port: 80, base_path: String::new() };
    let endpoint = Arc::new(Endpoint::new(7, "a", "s", address).behind(gate.clone()));
    let run = |_| {
        let (endpoint, gate) = (endpoint.clone(), gate.clone());
        std::thread::spawn(move || {
            for _ in 0..500 {
                let held = slot(&endpoint, &gate);
                assert!(endpoint.in_flight() <= 2);
                std::thread::yield_now();
                drop(held);
            }
        })
    };
    let threads: Vec<_> = (0..6).map(run).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((endpoint.in_flight(), endpoint.served(), gate.waiting()), (0, 3000, 0));
}

#[test]
fn below_the_panic_threshold_all_that_may_serve_do() {
    use Standing::*;
    let rotates = |standings: &[Standing]| {
        let entries = standings.iter().map(|&s| entry("a", 100, s)).collect();
        let rules = Rules { panic_percent: 50, ..Rules::default() };
        Pool::under(&rules, 1, entries, None).rotation().map(|e| e.standing).collect::<Vec<_>>()
    };
    assert_eq!(rotates(&[Up, Failing]), [Up]);
    assert_eq!(rotates(&[Up, Failing, Down]), [Up, Failing, Down]);
    assert_eq!(rotates(&[Up, Draining, Maintenance, Unusable]), [Up]);
    assert_eq!(rotates(&[Failing, Down, Draining]), [Failing, Down]);
}

#[test]
fn an_endpoint_that_starts_slowly_has_its_share_of_turns_and_no_more() {
    let slow = Entry { ramp: 2, ..entry("a", 100, Standing::Up) };
    let pool = Pool::new(1, vec![slow, entry("b", 100, Standing::Up)]);
    let turns = (0..600).filter(|&turn| pool.scheduled(turn) == Some(0)).count();
    assert_eq!(turns, 100);
    let shares: Vec<f64> = pool.shares().map(|(_, share)| share).collect();
    assert_eq!(shares, [2.0 / 12.0, 10.0 / 12.0]);
}

/// A table takes a millisecond: it is made only for those who need it, and kept for as long as it is true.
#[test]
fn a_table_is_kept_while_the_same_endpoints_share_in_it() {
    let entries = |standing, weight| vec![entry("a", 100, standing), entry("b", weight, Standing::Up)];
    let built = |pool: &Pool| pool.maglev.get().is_some();
    let first = Pool::new(1, entries(Standing::Up, 100));
    let next = Pool::under(&Rules::default(), 2, entries(Standing::Up, 7), Some(&first));
    assert!(!built(&first) && !built(&next));
    next.owner(1);
    let down = Pool::under(&Rules::default(), 3, entries(Standing::Down, 7), Some(&next));
    assert!(Arc::ptr_eq(&down.maglev, &next.maglev));
    for changed in [entries(Standing::Draining, 7), entries(Standing::Up, 8)] {
        let after = Pool::under(&Rules::default(), 4, changed, Some(&down));
        assert!(built(&after) && !Arc::ptr_eq(&after.maglev, &down.maglev));
    }
}

#[test]
fn a_home_is_found_by_the_hash_of_its_id() {
    let pool = Pool::new(1, ["a", "b", "c"].map(|id| entry(id, 1, Standing::Down)).to_vec());
    for (i, e) in pool.entries().iter().enumerate() {
        assert_eq!(pool.home(e.endpoint.id_hash), Some(i));
    }
    assert_eq!(pool.home(1), None);
    assert_eq!(Pool::default().home(1), None);
}
