use expect_test::{Expect, expect};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::control::record::Intent;
use crate::pool::{Entry, Protocol, RAMP_FULL};
use crate::report::Failure;
use crate::route::Selector;

/// A state driven by a script; every line is `AT_MS COMMAND ...`, and the answer is the pool after each line.
///
///     reset / put ID [URL] / drain ID / gone ID   changes of the catalog
///     ok ID / bad ID / refused ID                 the answer to the latest probe order of ID
///     fail ID KIND [TIMES]                        reports of the proxy
///     reach ID                                    the proxy connects
///     answer ID                                   the endpoint answers a request
///     tick                                        only time passes
struct Script {
    state: State,
    start: Instant,
    rng: fastrand::Rng,
    tickets: BTreeMap<String, Ticket>,
    revision: u64,
}

fn check(script: &str, want: Expect) {
    check_under(Policy::default(), script, want);
}

fn check_under(policy: Policy, script: &str, want: Expect) {
    let start = Instant::now();
    let mut s = Script {
        state: State::new(policy),
        start,
        rng: fastrand::Rng::with_seed(7),
        tickets: BTreeMap::new(),
        revision: 0,
    };
    let lines = script.trim().lines().map(|line| s.line(line.trim()));
    want.assert_eq(&lines.collect::<Vec<_>>().join("\n"));
}

fn record(id: &str, url: Option<&str>) -> Record {
    Record {
        id: id.into(),
        service: "web".into(),
        url: url.map_or(format!("http://{id}:80"), str::to_owned),
        health_path: String::new(),
        weight: 100,
        zone: String::new(),
        version: String::new(),
        probe: None,
        probe_service: String::new(),
        protocol: Protocol::Http1,
        intent: Intent::Serve,
        incarnation: 1,
    }
}

impl Script {
    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = self.start + Duration::from_millis(words[0].parse().expect("a time in ms"));
        self.command(&words[1..], now);
        self.state.tick(now);
        let probes: Vec<String> =
            self.state.due(now, usize::MAX).into_iter().map(|o| self.order(o)).collect();
        let notices: Vec<String> = self.state.take_notices().iter().map(|n| n.why.clone()).collect();
        let mut out = format!("{line:<24} |");
        for e in self.state.table().entries() {
            out += &format!(" {}={}", e.endpoint.id, e.standing.name());
        }
        if !probes.is_empty() {
            out += &format!("; probe {}", probes.join(" "));
        }
        if !notices.is_empty() {
            out += &format!("; {}", notices.join(" & "));
        }
        out
    }

    fn command(&mut self, words: &[&str], now: Instant) {
        self.revision += 1;
        let revision = self.revision;
        let put = |record| Change::Events { revision, events: vec![Event::Put(record)] };
        match *words {
            ["reset", ref ids @ ..] => {
                let records = ids.iter().map(|id| record(id, None)).collect();
                self.state.apply(Change::Reset { revision, records }, now);
            }
            ["put", id] => self.state.apply(put(record(id, None)), now),
            ["put", id, url] => self.state.apply(put(record(id, Some(url))), now),
            ["reborn", id] => {
                self.state.apply(put(Record { incarnation: revision, ..record(id, None) }), now);
            }
            ["drain", id] => self.state.apply(put(Record { intent: Intent::Drain, ..record(id, None) }), now),
            ["gone", id] => {
                let events = vec![Event::Gone(id.into())];
                self.state.apply(Change::Events { revision, events }, now);
            }
            ["ok", id] => self.answer(id, ProbeResult::Healthy, now),
            ["bad", id] => self.answer(id, ProbeResult::Unhealthy("status 500".into()), now),
            ["refused", id] => self.answer(id, ProbeResult::Refused, now),
            ["fail", id, kind] => self.fail(id, kind, 1, now),
            ["fail", id, kind, times] => self.fail(id, kind, times.parse().expect("a number"), now),
            ["reach", id] => self.state.members[id].endpoint.reached(),
            ["answer", id] => self.state.members[id].endpoint.answered(),
            ["tick"] => {}
            _ => panic!("no such command: {words:?}"),
        }
    }

    fn order(&mut self, order: ProbeOrder) -> String {
        let id = order.endpoint.id.to_string();
        self.tickets.insert(id.clone(), order.ticket);
        id
    }

    fn answer(&mut self, id: &str, result: ProbeResult, now: Instant) {
        let ticket = self.tickets[id].clone();
        self.state.probed(&ticket, result, now, &mut self.rng);
    }

    fn fail(&mut self, id: &str, kind: &str, times: usize, now: Instant) {
        let failure = match kind {
            "refused" => Failure::Refused,
            "unreachable" => Failure::Unreachable,
            "broke" => Failure::Broke,
            "reset" => Failure::Reset,
            "gateway" => Failure::Gateway,
            _ => panic!("no such failure: {kind}"),
        };
        let endpoint = self.state.members[id].endpoint.key;
        for _ in 0..times {
            self.state.report(Report { endpoint, failure, began: now }, now);
        }
    }
}

#[test]
fn a_new_endpoint_is_probed_at_once_and_then_used() {
    check(
        "
        0 put a
        5 ok a
        4000 tick
        5600 tick
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            5 ok a                   | a=up; probe passed
            4000 tick                | a=up
            5600 tick                | a=up; probe a"#]],
    );
}

#[test]
fn one_failed_probe_is_not_enough_three_are() {
    check(
        "
        0 reset a b
        1 ok a
        5600 tick
        5601 bad a
        6000 tick
        6001 ok a
        11600 tick
        11601 bad a
        12000 tick
        12001 bad a
        12400 tick
        12401 bad a
        12800 tick
        12801 ok a
        13200 tick
        13201 ok a
        ",
        expect![[r#"
            0 reset a b              | a=unproven b=unproven; probe a b
            1 ok a                   | a=up b=unproven; probe passed
            5600 tick                | a=up b=unproven; probe a
            5601 bad a               | a=up b=unproven
            6000 tick                | a=up b=unproven; probe a
            6001 ok a                | a=up b=unproven
            11600 tick               | a=up b=unproven; probe a
            11601 bad a              | a=up b=unproven
            12000 tick               | a=up b=unproven; probe a
            12001 bad a              | a=up b=unproven
            12400 tick               | a=up b=unproven; probe a
            12401 bad a              | a=failing b=unproven; probe: status 500
            12800 tick               | a=failing b=unproven; probe a
            12801 ok a               | a=failing b=unproven
            13200 tick               | a=failing b=unproven; probe a
            13201 ok a               | a=up b=unproven; probe passed"#]],
    );
}

#[test]
fn a_refused_request_takes_it_down_at_once_and_probes_bring_it_back_within_a_second() {
    check(
        "
        0 put a
        1 ok a
        1000 fail a refused
        1001 refused a
        1340 tick
        1341 ok a
        1680 tick
        1681 ok a
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            1000 fail a refused      | a=down; probe a; request: connection refused
            1001 refused a           | a=down
            1340 tick                | a=down; probe a
            1341 ok a                | a=down
            1680 tick                | a=down; probe a
            1681 ok a                | a=up; probe passed"#]],
    );
}

/// A reset may have been a time-out of its own, and says so little that only a probe decides; but that goes out at once.
#[test]
fn an_endpoint_that_resets_is_looked_at_at_once() {
    check(
        "
        0 reset a b
        1 ok a
        1 ok b
        1000 fail a reset
        1001 refused a
        1340 tick
        1341 ok a
        1680 tick
        1681 ok a
        ",
        expect![[r#"
            0 reset a b              | a=unproven b=unproven; probe a b
            1 ok a                   | a=up b=unproven; probe passed
            1 ok b                   | a=up b=up; probe passed
            1000 fail a reset        | a=up b=up; probe a
            1001 refused a           | a=down b=up; probe: connection refused
            1340 tick                | a=down b=up; probe a
            1341 ok a                | a=down b=up
            1680 tick                | a=down b=up; probe a
            1681 ok a                | a=up b=up; probe passed"#]],
    );
}

#[test]
fn three_connects_in_vain_take_it_down() {
    check(
        "
        0 put a
        1 ok a
        2 fail a unreachable 2
        3 fail a unreachable
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            2 fail a unreachable 2   | a=up
            3 fail a unreachable     | a=down; requests: cannot connect"#]],
    );
}

#[test]
fn connects_in_vain_count_only_in_a_row() {
    check(
        "
        0 put a
        1 ok a
        2 fail a unreachable 2
        3 reach a
        4 fail a unreachable 2
        5 reach a
        6 fail a unreachable 2
        7 fail a unreachable
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            2 fail a unreachable 2   | a=up
            3 reach a                | a=up
            4 fail a unreachable 2   | a=up
            5 reach a                | a=up
            6 fail a unreachable 2   | a=up
            7 fail a unreachable     | a=down; requests: cannot connect"#]],
    );
}

#[test]
fn failing_requests_eject_for_a_while_but_never_the_last() {
    check(
        "
        0 reset a b
        1 ok a
        1 ok b
        100 fail a broke 4
        102 ok a
        200 fail a broke
        300 fail b broke 9
        5300 tick
        5301 ok a
        ",
        expect![[r#"
            0 reset a b              | a=unproven b=unproven; probe a b
            1 ok a                   | a=up b=unproven; probe passed
            1 ok b                   | a=up b=up; probe passed
            100 fail a broke 4       | a=up b=up; probe a
            102 ok a                 | a=up b=up
            200 fail a broke         | a=ejected b=up; probe a; 5 failed requests within 10 s; ejected for 5 s
            300 fail b broke 9       | a=ejected b=up; probe b
            5300 tick                | a=unproven b=up; ejection over, not probed yet
            5301 ok a                | a=up b=up; probe passed"#]],
    );
}

#[test]
fn failures_in_a_row_eject_whatever_their_share() {
    let outlier = outlier::Policy { failures_min: None, in_a_row_max: Some(3), ..outlier::Policy::default() };
    check_under(
        Policy { outlier, ..Policy::default() },
        "
        0 reset a b
        1 ok a
        1 ok b
        100 fail a gateway 2
        101 answer a
        102 ok a
        103 fail a gateway 2
        200 fail a broke
        ",
        expect![[r#"
            0 reset a b              | a=unproven b=unproven; probe a b
            1 ok a                   | a=up b=unproven; probe passed
            1 ok b                   | a=up b=up; probe passed
            100 fail a gateway 2     | a=up b=up; probe a
            101 answer a             | a=up b=up
            102 ok a                 | a=up b=up
            103 fail a gateway 2     | a=up b=up
            200 fail a broke         | a=ejected b=up; probe a; 3 failed requests in a row; ejected for 5 s"#]],
    );
}

#[test]
fn an_endpoint_that_came_up_takes_its_share_step_by_step() {
    let window = Duration::from_secs(20);
    let mut state = State::new(Policy { slow_start: window, ..Policy::default() });
    let (start, mut rng) = (Instant::now(), fastrand::Rng::with_seed(1));
    let at = |ms| start + Duration::from_millis(ms);
    let records = vec![record("a", None)];
    state.apply(Change::Reset { revision: 1, records }, start);
    let order = state.due(start, usize::MAX).remove(0);
    state.probed(&order.ticket, ProbeResult::Healthy, start, &mut rng);
    let pool = state.take_table().expect("it changed").pools[0].clone();
    assert_eq!(pool.entries()[0].ramp, 1, "before anybody looks at all");
    let mut ramp = |ms| {
        state.tick(at(ms));
        let published = state.take_table().map(|t| t.pools[0].entries()[0].ramp);
        let next = state.members["a"].next_ramp(window).map(|next| (next - start).as_millis());
        (published, next)
    };
    assert_eq!(ramp(3999), (None, Some(4000)));
    assert_eq!(ramp(4000), (Some(2), Some(6000)));
    assert_eq!(ramp(19_999), (Some(9), Some(20_000)));
    assert_eq!(ramp(20_000), (Some(RAMP_FULL), None));
    assert_eq!(ramp(90_000), (None, None));
}

#[test]
fn a_draining_endpoint_leaves_rotation_and_is_not_probed() {
    check(
        "
        0 put a
        1 ok a
        2 drain a
        9000 tick
        9001 put a
        9002 ok a
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            2 drain a                | a=draining
            9000 tick                | a=draining
            9001 put a               | a=unproven; probe a
            9002 ok a                | a=up; probe passed"#]],
    );
}

#[test]
fn an_empty_reset_is_doubted_a_reset_with_records_is_not() {
    check(
        "
        0 reset a b
        1 ok a
        1 ok b
        2 reset
        5600 tick
        5601 refused a
        5602 ok b
        30001 tick
        30002 tick
        30003 put c
        30004 reset d
        ",
        expect![[r#"
            0 reset a b              | a=unproven b=unproven; probe a b
            1 ok a                   | a=up b=unproven; probe passed
            1 ok b                   | a=up b=up; probe passed
            2 reset                  | a=up b=up
            5600 tick                | a=up b=up; probe a b
            5601 refused a           | b=up; probe: connection refused
            5602 ok b                | b=up
            30001 tick               | b=up; probe b
            30002 tick               |
            30003 put c              | c=unproven; probe c
            30004 reset d            | d=unproven; probe d"#]],
    );
}

#[test]
fn a_new_url_is_a_new_endpoint_and_a_new_incarnation_is_looked_at() {
    check(
        "
        0 put a
        1 ok a
        200 reborn a
        201 ok a
        400 put a http://a:81
        401 put a https://a:81
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            200 reborn a             | a=up; probe a
            201 ok a                 | a=up
            400 put a http://a:81    | a=unproven; probe a
            401 put a https://a:81   | a=unusable"#]],
    );
}

#[test]
fn an_answer_that_came_too_late_says_nothing() {
    check(
        "
        0 put a
        1 ok a
        5600 tick
        5601 fail a refused
        5602 ok a
        5700 ok a
        ",
        expect![[r#"
            0 put a                  | a=unproven; probe a
            1 ok a                   | a=up; probe passed
            5600 tick                | a=up; probe a
            5601 fail a refused      | a=down; request: connection refused
            5602 ok a                | a=down
            5700 ok a                | a=down; probe a"#]],
    );
}

#[test]
fn load_and_key_survive_what_does_not_move_an_endpoint() {
    let (mut state, now) = (State::new(Policy::default()), Instant::now());
    let put = |record| Change::Events { revision: 1, events: vec![Event::Put(record)] };
    state.apply(put(record("a", None)), now);
    let first = state.take_table().expect("it changed").pools[0].entries()[0].endpoint.clone();
    let _held = first.begin();
    state.apply(put(Record { incarnation: 9, weight: 7, ..record("a", None) }), now);
    let pool = state.take_table().expect("it changed").pools[0].clone();
    assert!(Arc::ptr_eq(&pool.entries()[0].endpoint, &first));
    assert_eq!((pool.entries()[0].weight, pool.entries()[0].endpoint.in_flight()), (7, 1));
    assert!(state.take_table().is_none());
}

/// Those whose answers do not come must not keep the others from ever being asked.
#[test]
fn who_has_been_due_for_longest_is_probed_first() {
    let (mut state, mut now) = (State::new(Policy::default()), Instant::now());
    let mut rng = fastrand::Rng::with_seed(1);
    let put = |id| Event::Put(record(id, None));
    state.apply(Change::Events { revision: 1, events: ["a", "b", "c"].map(put).to_vec() }, now);
    let mut asked = Vec::new();
    for _ in 0..6 {
        let orders = state.due(now, 1);
        assert_eq!(orders.len(), 1);
        asked.push(orders[0].endpoint.id.to_string());
        // As a black hole does; then it is due again after 300 ms.
        now += Duration::from_secs(2);
        state.probed(&orders[0].ticket, ProbeResult::Unhealthy("no answer".into()), now, &mut rng);
    }
    asked[..3].sort();
    asked[3..].sort();
    assert_eq!(asked.join(" "), "a b c a b c");
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, bool),
    Gone(u8),
    Reset(Vec<u8>),
    Answer(u8, u8),
    Fail(u8, u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0u8..5;
    prop_oneof![
        2 => (id.clone(), any::<bool>()).prop_map(|(id, drains)| Op::Put(id, drains)),
        1 => id.clone().prop_map(Op::Gone),
        1 => prop::collection::vec(id.clone(), 1..5).prop_map(Op::Reset),
        4 => (id.clone(), 0u8..3).prop_map(|(id, kind)| Op::Answer(id, kind)),
        4 => (id, 0u8..4).prop_map(|(id, kind)| Op::Fail(id, kind)),
        2 => prop_oneof![Just(50), Just(400), Just(6000)].prop_map(Op::Wait),
    ]
}

/// All, one service, one version of it, a service that is not there.
fn routes() -> Routes {
    let selector = |service: Option<&str>, version: Option<&str>| Selector {
        service: service.map(Into::into),
        version: version.map(Into::into),
    };
    let selectors = [(None, None), (Some("s0"), None), (Some("s0"), Some("v0")), (Some("none"), None)];
    Routes::over(selectors.map(|(service, version)| selector(service, version)).to_vec())
}

/// An instance of two services, in one of two versions.
fn placed(id: u8) -> Record {
    Record {
        service: format!("s{}", id % 2),
        version: format!("v{}", id / 2 % 2),
        ..record(&format!("i{id}"), None)
    }
}

/// What is built piece by piece is what would be built from all members at once.
fn is_built_whole(state: &State, table: &Table) -> Result<(), proptest::test_runner::TestCaseError> {
    let text = |entries: Vec<Entry>| format!("{entries:?}");
    for (selector, pool) in table.routes.selectors().iter().zip(&table.pools) {
        let taken = state.members.values().filter(|m| selector.takes(&m.record.service, &m.record.version));
        prop_assert_eq!(text(pool.entries().to_vec()), text(taken.map(Member::entry).collect()));
    }
    let mut everybody: Vec<Entry> = table.entries().cloned().collect();
    everybody.sort_by(|a, b| a.endpoint.id.cmp(&b.endpoint.id));
    prop_assert_eq!(text(everybody), text(state.members.values().map(Member::entry).collect()));
    Ok(())
}

proptest! {
    /// Against the plain list of what is registered and drains: whatever probes and requests say, the pool
    /// holds exactly the registered, nobody who drains takes requests, and somebody does if anybody may.
    #[test]
    fn the_pool_is_what_is_registered(ops in prop::collection::vec(op(), 1..120)) {
        let mut state = State::new(Policy::default());
        state.lead(Arc::new(routes()));
        let mut model: BTreeMap<String, bool> = BTreeMap::new();
        let mut tickets: BTreeMap<String, Ticket> = BTreeMap::new();
        let (mut rng, mut now) = (fastrand::Rng::with_seed(1), Instant::now());
        let name = |id: u8| format!("i{id}");
        for (revision, op) in (1u64..).zip(ops) {
            match op {
                Op::Put(id, drains) => {
                    let intent = if drains { Intent::Drain } else { Intent::Serve };
                    let put = Event::Put(Record { intent, ..placed(id) });
                    state.apply(Change::Events { revision, events: vec![put] }, now);
                    model.insert(name(id), drains);
                }
                Op::Gone(id) => {
                    let events = vec![Event::Gone(name(id))];
                    state.apply(Change::Events { revision, events }, now);
                    model.remove(&name(id));
                }
                Op::Reset(ids) => {
                    let records = ids.iter().map(|&id| placed(id)).collect();
                    state.apply(Change::Reset { revision, records }, now);
                    model = ids.into_iter().map(|id| (name(id), false)).collect();
                }
                Op::Answer(id, kind) => {
                    let result = match kind {
                        0 => ProbeResult::Healthy,
                        1 => ProbeResult::Unhealthy("bad".into()),
                        _ => ProbeResult::Refused,
                    };
                    if let Some(ticket) = tickets.get(&name(id)) {
                        state.probed(ticket, result, now, &mut rng);
                    }
                }
                Op::Fail(id, kind) => {
                    let kinds = [Failure::Refused, Failure::Unreachable, Failure::Broke, Failure::Reset];
                    if let Some(member) = state.members.get(&name(id)) {
                        let endpoint = member.endpoint.key;
                        state.report(Report { endpoint, failure: kinds[usize::from(kind)], began: now }, now);
                    }
                }
                Op::Wait(ms) => now += Duration::from_millis(ms),
            }
            state.tick(now);
            for order in state.due(now, usize::MAX) {
                tickets.insert(order.endpoint.id.to_string(), order.ticket);
            }
            let table = state.table();
            is_built_whole(&state, &table)?;
            let pool = &table.pools[0];
            let ids: Vec<String> = pool.entries().iter().map(|e| e.endpoint.id.to_string()).collect();
            prop_assert_eq!(&ids, &model.keys().cloned().collect::<Vec<_>>());
            prop_assert!(pool.rotation().all(|e| !model[&*e.endpoint.id]));
            prop_assert_eq!(pool.rotation_len() > 0, model.values().any(|drains| !drains));
        }
    }
}
