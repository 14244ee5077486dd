use super::*;

fn split(weights: &[u32]) -> Route {
    let targets = weights.iter().enumerate().map(|(selector, &weight)| Target { selector, weight });
    Route::new("r", Strategy::RoundRobin, Action::Forward(targets.collect()), Limits::default())
}

#[test]
fn requests_are_divided_by_weight() {
    let route = split(&[90, 0, 10]);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = [0; 3];
    for _ in 0..10_000 {
        let order: Vec<usize> = route.targets(rng.u64(..)).map(|t| t.selector).collect();
        counts[order[0]] += 1;
        assert!(order == [0, 2] || order == [2, 0], "{order:?}");
    }
    assert!(counts[1] == 0 && (800..1200).contains(&counts[2]), "{counts:?}");
    for draw in [0, u64::MAX] {
        assert_eq!(route.targets(draw).count(), 2);
    }
    assert_eq!(split(&[1]).targets(5).map(|t| t.selector).collect::<Vec<_>>(), [0]);
}

#[test]
fn sessions_are_divided_alike_everywhere_and_by_weight() {
    let (here, there) = (split(&[1, 3]), split(&[1, 3]));
    let first = |route: &Route, session: &u64| route.targets(route.draw(*session)).next().map(|t| t.selector);
    let sessions: Vec<u64> = (0..4000).collect();
    let second = sessions.iter().filter(|s| first(&here, s) == Some(1)).count();
    assert!((2800..3200).contains(&second), "{second}");
    assert!(sessions.iter().all(|s| first(&here, s) == first(&there, s)));
    // Of a raised share nobody is sent away who had been in it.
    let raised = split(&[1, 7]);
    let mut in_it = sessions.iter().filter(|s| first(&here, s) == Some(1));
    assert!(in_it.all(|s| first(&raised, s) == Some(1)));
}

#[test]
fn counts_outlive_a_reload_that_allows_the_same() {
    let limiter = |requests: u32| {
        let number = |n| std::num::NonZeroU32::new(n).expect("not 0");
        let (per, by) = (Duration::from_secs(3600), limit::By::Route);
        let allowance = limit::Allowance { requests: number(requests), per, burst: number(1), by };
        Limiter::new(allowance).map(Arc::new)
    };
    let routes = |requests| {
        let route = Route { rate: limiter(requests), ..split(&[1]) };
        Routes::new(vec![(Rules::default(), route)], vec![Selector::default()])
    };
    let old = routes(1);
    let take = |routes: &Routes| routes.get(0).rate.as_ref().is_some_and(|rate| rate.take("", None).is_ok());
    assert!(take(&old));
    let (mut same, mut other) = (routes(1), routes(2));
    same.inherit(&old);
    other.inherit(&old);
    assert!(!take(&same) && take(&other));
}
