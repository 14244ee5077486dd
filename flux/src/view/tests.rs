use proptest::prelude::*;

use super::*;
use crate::Event;

fn instance(id: u8, revision: u64) -> Arc<Instance> {
    let mut instance = Instance::new("pay", "host", 80).id(format!("pay-{id}"));
    instance.mod_rev = revision;
    Arc::new(instance)
}

/// The naive model: the whole history, replayed from its beginning for every question.
fn replay(history: &[Event], upto: u64) -> BTreeMap<String, Arc<Instance>> {
    let mut held = BTreeMap::new();
    for event in history.iter().filter(|event| event.revision <= upto) {
        match event.kind {
            EventKind::Put => held.insert(event.instance.id.clone(), Arc::clone(&event.instance)),
            EventKind::Delete | EventKind::Expire => held.remove(&event.instance.id),
        };
    }
    held
}

fn histories() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec((0u8..5, 0u8..4, any::<bool>()), 0..60).prop_map(|steps| {
        let mut revision = 0;
        let mut event = |(id, kind, joins): (u8, u8, bool)| {
            // Several events may share a revision, as when leases run out together.
            revision += u64::from(revision == 0 || !joins);
            let kind = match kind {
                0 => EventKind::Delete,
                1 => EventKind::Expire,
                _ => EventKind::Put,
            };
            Event { revision, kind, instance: instance(id, revision) }
        };
        steps.into_iter().map(&mut event).collect()
    })
}

proptest! {
    /// However the history is cut into updates, repeated, or replaced by a snapshot in its middle: at every
    /// revision the view holds what the whole history up to there amounts to.
    #[test]
    fn a_view_is_the_history_up_to_its_revision(
        history in histories(),
        cuts in prop::collection::vec((0u8..4, 1u64..6), 1..40),
    ) {
        let end = history.last().map_or(0, |event| event.revision);
        let mut view = View::default();
        for (kind, step) in cuts {
            let revision = (view.revision() + step).min(end);
            let between = |from: u64| {
                history.iter().filter(|e| e.revision > from && e.revision <= revision).cloned().collect()
            };
            let update = match kind {
                0 => Update::Reset { revision, instances: replay(&history, revision).into_values().collect() },
                // From the beginning: the view must pass over what it holds.
                1 => Update::Events { revision, events: between(0) },
                _ => Update::Events { revision, events: between(view.revision()) },
            };
            let before = view.instances().clone();
            let changed = view.apply(&update);
            prop_assert!(changed || before == *view.instances(), "an unreported change by {:?}", update);
            prop_assert_eq!(view.revision(), revision);
            prop_assert_eq!(view.instances(), &replay(&history, revision));
            let once = view.clone();
            view.apply(&update);
            prop_assert_eq!(&view, &once, "twice is once");
        }
    }
}

#[test]
fn progress_moves_the_revision_forward_only() {
    let mut view = View::default();
    view.apply(&Update::Reset { revision: 7, instances: vec![instance(1, 5)] });
    assert!(!view.apply(&Update::Progress { revision: 9 }));
    assert!(!view.apply(&Update::Progress { revision: 8 }));
    assert_eq!((view.revision(), view.instances().len()), (9, 1));
}

#[test]
fn another_registry_with_lower_revisions_replaces_everything() {
    let mut view = View::default();
    view.apply(&Update::Reset { revision: 700, instances: vec![instance(1, 5)] });
    assert!(view.apply(&Update::Reset { revision: 2, instances: vec![instance(2, 2)] }));
    assert_eq!((view.revision(), view.instances().contains_key("pay-1")), (2, false));
}
