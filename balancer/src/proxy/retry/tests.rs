use super::*;
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

fn after(method: Method, fault: Fault, upload: Upload) -> Step {
    Plan::new(&method, false, Retry::default()).after(fault, upload)
}

#[test]
fn what_was_not_sent_goes_elsewhere_whatever_the_method() {
    for method in [Method::GET, Method::POST, Method::PATCH, Method::PUT] {
        assert_eq!(after(method.clone(), Fault::Connect, Upload::Untouched), Step::Elsewhere);
        assert_eq!(after(method, Fault::Unsent, Upload::Untouched), Step::ElsewhereOrAgain);
    }
}

#[test]
fn what_was_sent_goes_elsewhere_only_if_it_may_happen_twice() {
    for fault in [Fault::Stale, Fault::Broke] {
        assert_ne!(after(Method::GET, fault, Upload::None), Step::GiveUp);
        assert_ne!(after(Method::PUT, fault, Upload::Untouched), Step::GiveUp);
        assert_eq!(after(Method::PUT, fault, Upload::Consumed), Step::GiveUp);
        assert_eq!(after(Method::POST, fault, Upload::None), Step::GiveUp);
        assert_eq!(after("BREW".parse().unwrap(), fault, Upload::None), Step::GiveUp);
    }
}

#[test]
fn an_endpoint_that_breaks_off_gets_the_request_replayed_once() {
    let mut plan = Plan::new(&Method::GET, false, Retry::default());
    assert_eq!(plan.after(Fault::Broke, Upload::None), Step::Elsewhere);
    assert_eq!(plan.after(Fault::Broke, Upload::None), Step::GiveUp);
}

#[test]
fn no_more_is_done_than_a_route_allows() {
    let plan = |allowed| Plan::new(&Method::GET, false, allowed);
    let all = Retry::default();
    assert_eq!(plan(Retry { attempts: 1, ..all }).after(Fault::Connect, Upload::None), Step::GiveUp);
    assert_eq!(plan(Retry { connect: false, ..all }).after(Fault::Connect, Upload::None), Step::GiveUp);
    assert_eq!(plan(Retry { broke: false, ..all }).after(Fault::Broke, Upload::None), Step::GiveUp);
    for fault in [Fault::Unsent, Fault::Stale] {
        assert_eq!(plan(Retry { stale: false, ..all }).after(fault, Upload::None), Step::GiveUp);
        assert_ne!(
            plan(Retry { connect: false, broke: false, ..all }).after(fault, Upload::None),
            Step::GiveUp
        );
    }
}

#[test]
fn a_session_stays_with_its_endpoint_past_a_closed_connection() {
    let mut plan = Plan::new(&Method::GET, true, Retry::default());
    assert_eq!(plan.after(Fault::Stale, Upload::None), Step::Again);
    assert_eq!(plan.after(Fault::Connect, Upload::None), Step::Elsewhere);
}

#[test]
fn a_time_out_is_not_repeated() {
    assert_eq!(after(Method::GET, Fault::Timeout, Upload::None), Step::GiveUp);
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(vec![Fault::Connect, Fault::Unsent, Fault::Stale, Fault::Broke, Fault::Timeout])
}

#[test]
fn further_attempts_are_a_share_of_the_requests() {
    let begin = Instant::now();
    let mut budget = Budget::new(begin);
    while budget.pay_out(begin) {}
    let mut afforded = 0;
    for _ in 0..1_000 {
        budget.pay_in();
        afforded += u32::from(budget.pay_out(begin));
    }
    assert!((199..=201).contains(&afforded), "{afforded} of 1000");
    assert!(!budget.pay_out(begin) && !budget.pay_out(begin + Duration::from_millis(90)));
    assert!(budget.pay_out(begin + Duration::from_millis(200)), "a little comes with time");
    let late = begin + Duration::from_secs(3600);
    let saved = std::iter::from_fn(|| budget.pay_out(late).then_some(())).count();
    assert_eq!(saved, 500, "not everything is saved");
}

proptest! {
    /// However attempts fail, a request that must not happen twice is never sent after it may have happened,
    /// and every request ends.
    #[test]
    fn no_effect_twice_and_an_end(faults in prop::collection::vec(fault(), 10), sticky: bool) {
        let mut plan = Plan::new(&Method::POST, sticky, Retry::default());
        let mut attempts = 0;
        for fault in faults {
            attempts += 1;
            let step = plan.after(fault, Upload::None);
            if !matches!(fault, Fault::Connect | Fault::Unsent) {
                prop_assert_eq!(step, Step::GiveUp);
            }
            if step == Step::GiveUp {
                break;
            }
        }
        prop_assert!(attempts <= Retry::default().attempts);
    }
}
