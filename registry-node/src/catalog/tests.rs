use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::envelope::{self, Kind};

/// Runs a script of one command a line and compares what each answered.
///
/// `register SERVICE/ID [if REV]`, `deregister ID [rev]`, `status ID STATUS [rev]`, `expire TERM ID@REV...`; a line
/// may end in `#CLIENT.SEQ`. Entries are of term 7.
fn check(script: &str, expected: Expect) {
    let mut catalog = Catalog::default();
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let applied = catalog.apply(7, &parse(line));
        out += &format!("{line:<32} rev={} {}", applied.revision, describe(&applied.outcome));
        for event in &applied.events {
            let spec = &event.record.spec;
            out += &format!(", {:?} {}/{}@{}", event.kind, spec.service, spec.id, event.record.reg_rev)
                .to_lowercase();
        }
        out += "\n";
    }
    expected.assert_eq(&out);
}

fn parse(line: &str) -> Proposal {
    let (words, origin) = match line.split_once('#') {
        Some((words, origin)) => (words, origin.split_once('.')),
        None => (line, None),
    };
    let words: Vec<&str> = words.split_whitespace().collect();
    let number = |word: &&str| word.parse().expect("a number");
    let command = match words[0] {
        "register" => {
            let (service, id) = words[1].split_once('/').expect("SERVICE/ID");
            Command::Register { spec: spec(service, id).into(), expected: words.get(3).map(number) }
        }
        "deregister" => Command::Deregister { id: id(words[1]), reg_rev: words.get(2).map(number) },
        "status" => {
            let status = match words[2] {
                "up" => Status::Up,
                "draining" => Status::Draining,
                _ => Status::Maintenance,
            };
            Command::SetStatus { id: id(words[1]), status, reg_rev: words.get(3).map(number) }
        }
        "expire" => {
            let victim = |word: &&str| word.split_once('@').map(|(name, rev)| (id(name), number(&rev)));
            Command::Expire {
                term: number(&words[1]),
                victims: words[2..].iter().filter_map(victim).collect(),
            }
        }
        other => panic!("{other} is no command"),
    };
    let origin = origin.map(|(client, seq)| Origin { client: client.into(), seq: number(&seq) });
    Proposal { command, cause: Arc::default(), origin }
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Registered(record) => format!("registered {}..{}", record.reg_rev, record.mod_rev),
        Outcome::StatusSet(record) => {
            format!("{:?} {}..{}", record.spec.status, record.reg_rev, record.mod_rev)
        }
        other => format!("{other:?}"),
    }
}

fn id(id: &str) -> InstanceId {
    InstanceId::new(id).expect("valid")
}

fn spec(service: &str, name: &str) -> Spec {
    Spec::new(id(name), ServiceName::new(service).expect("valid"), format!("http://{name}:80"))
}

#[test]
fn every_change_is_one_revision_with_its_events() {
    check(
        "
        register web/a
        register web/b
        status a draining
        status a draining
        register web/a
        register api/a
        deregister b
        deregister b
        ",
        expect![[r#"
            register web/a                   rev=1 registered 1..1, put web/a@1
            register web/b                   rev=2 registered 2..2, put web/b@2
            status a draining                rev=3 Draining 1..3, put web/a@1
            status a draining                rev=3 Draining 1..3
            register web/a                   rev=4 registered 4..4, put web/a@4
            register api/a                   rev=5 registered 5..5, delete web/a@4, put api/a@5
            deregister b                     rev=6 Deregistered { found: true }, delete web/b@2
            deregister b                     rev=6 Deregistered { found: false }
        "#]],
    );
}

#[test]
fn a_predecessor_cannot_touch_its_successor() {
    check(
        "
        register web/a
        register web/a
        deregister a 1
        status a draining 1
        expire 7 a@1
        deregister a 2
        ",
        expect![[r#"
            register web/a                   rev=1 registered 1..1, put web/a@1
            register web/a                   rev=2 registered 2..2, put web/a@2
            deregister a 1                   rev=2 Refused(Superseded { current: 2 })
            status a draining 1              rev=2 Refused(Superseded { current: 2 })
            expire 7 a@1                     rev=2 Expired { ids: [] }
            deregister a 2                   rev=3 Deregistered { found: true }, delete web/a@2
        "#]],
    );
}

#[test]
fn an_expiry_is_of_its_term_and_one_revision() {
    check(
        "
        register web/a
        register web/b
        expire 6 a@1 b@2
        expire 7 b@2 a@1 gone@9 b@2
        ",
        expect![[r#"
            register web/a                   rev=1 registered 1..1, put web/a@1
            register web/b                   rev=2 registered 2..2, put web/b@2
            expire 6 a@1 b@2                 rev=2 Refused(StaleTerm)
            expire 7 b@2 a@1 gone@9 b@2      rev=3 Expired { ids: ["b", "a"] }, expire web/b@2, expire web/a@1
        "#]],
    );
}

#[test]
fn preconditions_are_on_the_last_change() {
    check(
        "
        register web/a if 0
        register web/a if 0
        status a draining
        register web/a if 1
        register web/a if 2
        register web/b if 2
        status b up
        ",
        expect![[r#"
            register web/a if 0              rev=1 registered 1..1, put web/a@1
            register web/a if 0              rev=1 Refused(Precondition { current: Some(1) })
            status a draining                rev=2 Draining 1..2, put web/a@1
            register web/a if 1              rev=2 Refused(Precondition { current: Some(2) })
            register web/a if 2              rev=3 registered 3..3, put web/a@3
            register web/b if 2              rev=3 Refused(Precondition { current: None })
            status b up                      rev=3 Refused(NotFound)
        "#]],
    );
}

#[test]
fn a_repeated_command_answers_as_the_first_time_and_changes_nothing() {
    check(
        "
        register web/a #c.1
        deregister a #c.2
        register web/a #c.1
        deregister a #c.2
        register web/b #c.1
        deregister a #d.2
        ",
        expect![[r#"
            register web/a #c.1              rev=1 registered 1..1, put web/a@1
            deregister a #c.2                rev=2 Deregistered { found: true }, delete web/a@1
            register web/a #c.1              rev=2 registered 1..1
            deregister a #c.2                rev=2 Deregistered { found: true }
            register web/b #c.1              rev=2 Refused(SequenceReused)
            deregister a #d.2                rev=2 Deregistered { found: false }
        "#]],
    );
}

#[test]
fn what_was_forgotten_is_refused_and_clients_are_bounded() {
    let mut catalog = Catalog::default();
    let register =
        |seq: u64| Proposal { origin: Some(Origin { client: "c".into(), seq }), ..parse("register web/a") };
    (1..=sessions::OUTCOMES_MAX as u64 + 1).for_each(|seq| drop(catalog.apply(7, &register(seq))));
    assert_eq!(catalog.apply(7, &register(1)).outcome, Outcome::Refused(Refusal::StaleSequence));
    assert!(matches!(catalog.apply(7, &register(2)).outcome, Outcome::Registered(_)));
    for client in 0..sessions::CLIENTS_MAX {
        catalog.apply(7, &parse(&format!("register web/a #other-{client}.1")));
    }
    assert_eq!(catalog.sessions.iter().count(), sessions::CLIENTS_MAX);
    let revision = catalog.revision();
    assert_eq!(catalog.apply(7, &register(2)).revision, revision + 1, "the idle client was forgotten");
}

#[test]
fn feature_level_only_rises_and_takes_no_revision() {
    let mut catalog = Catalog::default();
    let mut raise = |level| {
        let command = Command::SetFeatureLevel { level };
        catalog.apply(7, &Proposal { command, cause: Arc::default(), origin: None })
    };
    assert_eq!(raise(3).outcome, Outcome::FeatureLevel(3));
    assert_eq!(raise(2).outcome, Outcome::FeatureLevel(3));
    assert_eq!((catalog.revision(), catalog.feature_level()), (0, 3));
}

#[test]
fn wrong_specs_are_refused_by_field() {
    let limits = crate::config::Limits::default();
    let check = |change: &dyn Fn(&mut Spec), expected: &str| {
        let mut spec = spec("web", "a");
        change(&mut spec);
        let found =
            spec.validate(&limits).map_or_else(|invalid| invalid.to_string(), |()| "valid".to_owned());
        assert_eq!(found, expected);
    };
    check(&|_| (), "valid");
    check(&|spec| spec.url = "HTTPS://[::1]:8443/a?b#c".into(), "valid");
    check(&|spec| spec.url = "".into(), "url is empty");
    check(&|spec| spec.url = "web:80".into(), "url has no scheme; http:// or https:// is expected");
    check(&|spec| spec.url = "ftp://web".into(), "url is neither http nor https");
    check(&|spec| spec.url = "http:///path".into(), "url names no host");
    check(&|spec| spec.url = "http://a\r\nX: y".into(), "url contains white space or a control character");
    check(&|spec| spec.host = "a b".into(), "host contains white space or a control character");
    check(
        &|spec| spec.health_path = "/a\n".into(),
        "health_path contains white space or a control character",
    );
    check(&|spec| spec.ttl_ms = 2_999, "ttl_ms is 2999; 3000 to 3600000 are allowed");
    check(&|spec| spec.weight = 1_001, "weight is 1001; 1 to 1000 are allowed");
    check(&|spec| spec.tags = vec!["x".repeat(16 << 10)], "instance has 16447 bytes; 16384 are allowed");
    check(
        &|spec| spec.metadata = (0..65).map(|key| (key.to_string(), String::new())).collect(),
        "metadata has 65 keys; 64 are allowed",
    );
    assert_eq!(InstanceId::new("").expect_err("empty").to_string(), "id is empty");
    assert_eq!(
        ServiceName::new("a\0").expect_err("control").to_string(),
        "service contains a control character"
    );
    InstanceId::new("ä/ ?#%".repeat(36)).expect("252 bytes of anything printable");
    InstanceId::new("x".repeat(257)).expect_err("one byte too many");
}

// ---- codec ----

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.as_bytes().chunks(96).map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect()
}

fn sample() -> Proposal {
    let mut spec = spec("web", "a");
    spec.tags = vec!["t".to_owned()];
    spec.metadata = [("k".to_owned(), "v".to_owned())].into_iter().collect();
    spec.status = Status::Draining;
    Proposal {
        command: Command::Register { spec: spec.into(), expected: Some(4) },
        cause: Arc::new(Provenance { by: "me".into(), why: "test".into(), at_ms: 1 }),
        origin: Some(Origin { client: "c".into(), seq: 2 }),
    }
}

#[test]
fn bytes_of_version_1_are_frozen() {
    let others = ["deregister a 1", "status a maintenance 2", "expire 7 a@1 b@2"];
    let level = Proposal { command: Command::SetFeatureLevel { level: 2 }, ..parse(others[0]) };
    let mut catalog = Catalog::default();
    let mut outcomes: Vec<Outcome> = Vec::new();
    let script = "register web/a #c.1
        register web/a if 9
        status a draining
        status zz up
        deregister a 9
        expire 1 a@1
        expire 7 a@1
        deregister a";
    for line in script.lines() {
        outcomes.push(catalog.apply(7, &parse(line.trim())).outcome);
    }
    outcomes.extend([Outcome::FeatureLevel(2), Outcome::Refused(Refusal::StaleSequence)]);
    catalog.apply(7, &sample());
    catalog.apply(7, &Proposal { origin: None, ..parse("register web/b") });

    let mut frozen = hex(&encode_proposal(&sample()));
    for proposal in others.map(parse).iter().chain([&level]) {
        frozen += "\n";
        frozen += &hex(&encode_proposal(proposal));
    }
    for outcome in &outcomes {
        frozen += "\n";
        frozen += &hex(&encode_outcome(outcome));
    }
    let golden = include_str!("golden_v1.txt");
    let (messages, chunk) = golden.rsplit_once("\n\n").expect("the snapshot comes last");
    assert_eq!(frozen.trim_end(), messages);
    // Nothing writes such a chunk any more; it is read for ever.
    assert_eq!(Catalog::from_chunks([unhex(chunk)]).expect("version 1 is read"), catalog);

    catalog.retire_node(4);
    let chunks: Vec<String> = catalog.to_chunks().iter().map(|chunk| hex(chunk)).collect();
    expect_test::expect_file!["golden_v2.txt"].assert_eq(&chunks.join("\n"));
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

#[test]
fn the_hash_is_frozen() {
    let mut catalog = Catalog::default();
    catalog.apply(7, &sample());
    catalog.apply(7, &parse("register web/b"));
    catalog.retire_node(4);
    expect!["22811381f1960122"].assert_eq(&format!("{:016x}", catalog.hash()));
}

/// The hash of everything, by going through everything.
fn hash_from_scratch(catalog: &Catalog) -> u64 {
    let mut sum = codec::mix(catalog.revision());
    let mut add = |part: u64| sum = sum.wrapping_add(part);
    add(codec::chain(&[codec::tag::FEATURE_LEVEL, catalog.feature_level().into()]));
    catalog.records().for_each(|record| add(SpecHash::of(&record.spec).record_hash(record)));
    for (client, session) in catalog.sessions.iter() {
        let name = codec::name_hash(client);
        add(codec::chain(&[codec::tag::CLIENT, name, session.used, session.forgotten]));
        for (seq, done) in &session.outcomes {
            let done = codec::chain(&[done.digest, codec::outcome_hash(&done.outcome, None)]);
            add(codec::chain(&[codec::tag::OUTCOME, name, *seq, done]));
        }
    }
    let (floor, nodes) = catalog.retired.parts();
    let (id, revision) = floor.unwrap_or_default();
    add(codec::chain(&[codec::tag::RETIRED_FLOOR, id, revision]));
    nodes.for_each(|(id, revision)| add(codec::chain(&[codec::tag::RETIRED, id, revision])));
    codec::mix(sum)
}

/// Forgotten outcomes, forgotten clients and given-up node ids leave the hash as they came.
#[test]
fn the_hash_keeps_up_beyond_every_bound() {
    let mut catalog = Catalog::default();
    for number in 0..(sessions::CLIENTS_MAX + 40) {
        catalog.apply(7, &parse(&format!("register web/{} #client-{number}.1", number % 7)));
    }
    for seq in 2..(sessions::OUTCOMES_MAX + 9) {
        catalog.apply(7, &parse(&format!("status 3 draining #client-900.{seq}")));
    }
    (1..=retired::RETIRED_MAX as u64 + 5).for_each(|id| catalog.retire_node(2 * id));
    assert_eq!(catalog.hash(), hash_from_scratch(&catalog));
    let back = Catalog::from_chunks(catalog.to_chunks()).expect("our own bytes");
    assert_eq!((back.hash(), &back), (catalog.hash(), &catalog));
}

/// Two catalogs that differ in any one thing differ in their hash.
#[test]
fn the_hash_covers_everything() {
    let base = || {
        let mut catalog = Catalog::default();
        catalog.apply(7, &parse("register web/a #c.1"));
        catalog.apply(7, &parse("register web/b"));
        catalog
    };
    let level = Proposal { command: Command::SetFeatureLevel { level: 2 }, ..parse("deregister a") };
    let mut hashes = vec![base().hash()];
    let changes: [&dyn Fn(&mut Catalog); 7] = [
        &|catalog| drop(catalog.apply(7, &parse("status a draining"))),
        &|catalog| drop(catalog.apply(7, &parse("register web/b"))),
        &|catalog| drop(catalog.apply(7, &parse("deregister zz #c.2"))),
        &|catalog| drop(catalog.apply(7, &parse("deregister zz #c.3"))),
        &|catalog| drop(catalog.apply(7, &level)),
        &|catalog| catalog.retire_node(4),
        &|catalog| catalog.retire_node(5),
    ];
    for change in changes {
        let mut catalog = base();
        change(&mut catalog);
        hashes.push(catalog.hash());
    }
    let all = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), all);
}

#[test]
fn a_removed_nodes_id_is_spent_for_ever() {
    let mut catalog = Catalog::default();
    catalog.apply(7, &parse("register web/a"));
    catalog.retire_node(4);
    catalog.apply(7, &parse("register web/b"));
    catalog.retire_node(4);
    assert_eq!([3, 4, 5].map(|id| catalog.retired_node(id)), [None, Some(1), None]);
    // Too many to remember each: then the low ones are spent together, never free again.
    (1..=retired::RETIRED_MAX as u64).for_each(|id| catalog.retire_node(10 * id));
    assert_eq!([3, 4, 5, 10].map(|id| catalog.retired_node(id)), [Some(1), Some(1), None, Some(2)]);
    let mut back = Catalog::from_chunks(catalog.to_chunks()).expect("our own bytes");
    assert_eq!([3, 4, 5, 10].map(|id| back.retired_node(id)), [Some(1), Some(1), None, Some(2)]);
    back.retire_node(20_000);
    assert_eq!([9, 10, 11].map(|id| back.retired_node(id)), [Some(2), Some(2), None], "the floor has risen");
}

#[test]
fn a_snapshot_is_believed_only_whole() {
    let mut catalog = Catalog::default();
    for number in 0..2_000 {
        catalog.apply(7, &parse(&format!("register web/{number} #client-{}.{number}", number % 20)));
    }
    let chunks = catalog.to_chunks();
    assert!(chunks.len() > 5 && chunks.iter().all(|chunk| chunk.len() <= 7 << 10));
    assert_eq!(Catalog::from_chunks(&chunks).expect("it is whole"), catalog);

    let missing =
        |index: usize| chunks.iter().enumerate().filter(move |(at, _)| *at != index).map(|(_, chunk)| chunk);
    assert!(matches!(Catalog::from_chunks(missing(0)), Err(RestoreError::Header { found: 0 })));
    for index in 1..chunks.len() {
        Catalog::from_chunks(missing(index)).expect_err("a missing chunk was not noticed");
    }
    let twice = chunks.iter().chain([&chunks[0]]);
    assert!(matches!(Catalog::from_chunks(twice), Err(RestoreError::Header { found: 2 })));
    assert!(matches!(Catalog::from_chunks(Vec::<Vec<u8>>::new()), Err(RestoreError::Header { found: 0 })));
}

// ---- properties ----

fn command() -> impl Strategy<Value = Command> {
    let name = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let service = prop::sample::select(vec!["web", "api"]);
    let revision = || prop::option::of(0u64..12);
    let status = prop::sample::select(vec![Status::Up, Status::Draining, Status::Maintenance]);
    prop_oneof![
        4 => (service, name(), revision(), prop::bool::weighted(0.7)).prop_map(|(service, name, expected, always)| {
            let expected = expected.filter(|_| !always);
            Command::Register { spec: spec(service, name).into(), expected }
        }),
        2 => (name(), revision()).prop_map(|(name, reg_rev)| Command::Deregister { id: id(name), reg_rev }),
        2 => (name(), status, revision()).prop_map(|(name, status, reg_rev)| Command::SetStatus { id: id(name), status, reg_rev }),
        2 => (6u64..8, prop::collection::vec((name(), 0u64..12), 0..4)).prop_map(|(term, victims)| {
            Command::Expire { term, victims: victims.into_iter().map(|(name, rev)| (id(name), rev)).collect() }
        }),
        1 => (0u32..3).prop_map(|level| Command::SetFeatureLevel { level }),
    ]
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let origin = prop::option::of((prop::sample::select(vec!["x", "y"]), 1u64..20));
    (command(), origin).prop_map(|(command, origin)| Proposal {
        command,
        cause: Arc::default(),
        origin: origin.map(|(client, seq)| Origin { client: client.into(), seq }),
    })
}

/// What the catalog means, said again without indices: (id) → (service, status, reg_rev, mod_rev).
#[derive(Default)]
struct Naive {
    revision: u64,
    records: BTreeMap<String, (String, Status, u64, u64)>,
    answered: BTreeMap<(String, u64), (Command, Outcome)>,
}

impl Naive {
    /// Whether the command changes something.
    fn apply(&mut self, command: &Command) -> bool {
        let next = self.revision + 1;
        let holds = |naive: &Naive, id: &InstanceId, reg_rev: &Option<u64>| {
            naive
                .records
                .get(id.as_str())
                .is_some_and(|record| reg_rev.is_none_or(|reg_rev| reg_rev == record.2))
        };
        let changed = match command {
            Command::Register { spec, expected } => {
                let current = self.records.get(spec.id.as_str()).map_or(0, |record| record.3);
                let allowed = expected.is_none_or(|expected| expected == current);
                if allowed {
                    let record = (spec.service.to_string(), spec.status, next, next);
                    self.records.insert(spec.id.to_string(), record);
                }
                allowed
            }
            Command::Deregister { id, reg_rev } => {
                holds(self, id, reg_rev) && self.records.remove(id.as_str()).is_some()
            }
            Command::SetStatus { id, status, reg_rev } => {
                let allowed = holds(self, id, reg_rev) && self.records[id.as_str()].1 != *status;
                if allowed && let Some(record) = self.records.get_mut(id.as_str()) {
                    (record.1, record.3) = (*status, next);
                }
                allowed
            }
            Command::Expire { term, victims } => {
                let before = self.records.len();
                for (id, reg_rev) in victims {
                    if *term == 7 && holds(self, id, &Some(*reg_rev)) {
                        self.records.remove(id.as_str());
                    }
                }
                self.records.len() < before
            }
            Command::SetFeatureLevel { .. } => false,
        };
        self.revision += u64::from(changed);
        changed
    }
}

/// What it says, but for what the clock of some node said.
fn timeless(said: impl std::fmt::Debug) -> String {
    let said = format!("{said:?}");
    let mut parts = said.split("at_ms: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// What a watcher of everything holds.
fn follow(view: &mut BTreeMap<InstanceId, Arc<Record>>, events: &[Event]) {
    for event in events {
        match event.kind {
            EventKind::Put => drop(view.insert(event.record.spec.id.clone(), event.record.clone())),
            EventKind::Delete | EventKind::Expire => drop(view.remove(&event.record.spec.id)),
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_the_naive_model_and_with_its_twin(proposals in prop::collection::vec(proposal(), 1..60)) {
        let (mut catalog, mut twin, mut naive) = (Catalog::default(), Catalog::default(), Naive::default());
        let mut view = BTreeMap::new();
        for proposal in &proposals {
            let before = catalog.revision();
            let applied = catalog.apply(7, proposal);
            prop_assert_eq!(&applied, &twin.apply(7, &decode_proposal(&encode_proposal(proposal)).expect("our own bytes")));
            let key = proposal.origin.as_ref().map(|origin| (origin.client.to_string(), origin.seq));
            let changed = match key.as_ref().and_then(|key| naive.answered.get(key)) {
                Some((command, outcome)) => {
                    let reused = Outcome::Refused(Refusal::SequenceReused);
                    prop_assert_eq!(&applied.outcome, if *command == proposal.command { outcome } else { &reused });
                    false
                }
                None => naive.apply(&proposal.command),
            };
            if let Some(key) = key {
                naive.answered.entry(key).or_insert((proposal.command.clone(), applied.outcome.clone()));
            }
            prop_assert_eq!(applied.revision, naive.revision);
            prop_assert_eq!(applied.revision, before + u64::from(changed));
            prop_assert_eq!(changed, !applied.events.is_empty());
            prop_assert!(applied.events.iter().all(|event| event.revision == applied.revision));
            follow(&mut view, &applied.events);
            prop_assert!(view.values().eq(catalog.records()));
            prop_assert_eq!(catalog.hash(), hash_from_scratch(&catalog));
            prop_assert_eq!(catalog.hash(), twin.hash());
        }
        let flat: BTreeMap<_, _> = catalog.records().map(|record| {
            let spec = &record.spec;
            (spec.id.to_string(), (spec.service.to_string(), spec.status, record.reg_rev, record.mod_rev))
        }).collect();
        prop_assert_eq!(&flat, &naive.records);
        for (name, instances, up) in catalog.services() {
            let members = catalog.list(Some(&name));
            prop_assert_eq!(members.len(), instances);
            prop_assert_eq!(flat.values().filter(|record| record.0 == name.as_str()).count(), instances);
            prop_assert_eq!(members.iter().filter(|record| record.spec.status == Status::Up).count(), up);
        }
        prop_assert_eq!(&Catalog::from_chunks(catalog.to_chunks()).expect("our own bytes"), &catalog);
    }

    /// Nodes stamp what they take with clocks that may show anything, run backwards, or jump: no answer, no revision
    /// and no record is another for that.
    #[test]
    fn what_the_clocks_show_decides_nothing(stamped in prop::collection::vec((proposal(), any::<u64>()), 1..60)) {
        let (mut catalog, mut other) = (Catalog::default(), Catalog::default());
        for (proposal, at_ms) in stamped {
            let cause = Provenance { at_ms, ..Provenance::clone(&proposal.cause) }.into();
            let applied = catalog.apply(7, &proposal);
            prop_assert_eq!(timeless(applied), timeless(other.apply(7, &Proposal { cause, ..proposal })));
            prop_assert_eq!(timeless(catalog.list(None)), timeless(other.list(None)));
            prop_assert_eq!(catalog.services(), other.services());
        }
    }

    #[test]
    fn nothing_read_panics(bytes: Vec<u8>, flip in any::<prop::sample::Index>(), bit in 0u8..8) {
        let _ = decode_proposal(&envelope::seal_bytes(Kind::COMMAND, 1, &bytes));
        let _ = decode_outcome(&envelope::seal_bytes(Kind::OUTCOME, 1, &bytes));
        let _ = Catalog::from_chunks([envelope::seal_bytes(Kind::RECORDS, 2, &bytes)]);
        let (_, payload) = envelope::open(&encode_proposal(&sample()), Kind::COMMAND).map(|(v, p)| (v, p.to_vec())).expect("ours");
        let mut damaged = payload;
        let at = flip.index(damaged.len());
        damaged[at] ^= 1 << bit;
        let _ = decode_proposal(&envelope::seal_bytes(Kind::COMMAND, 1, &damaged));
    }

    #[test]
    fn outcomes_survive_the_wire(proposals in prop::collection::vec(proposal(), 1..20)) {
        let mut catalog = Catalog::default();
        for proposal in &proposals {
            let outcome = catalog.apply(7, proposal).outcome;
            prop_assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome));
        }
    }
}
