//! Following changes over connections that break.

use std::time::Duration;

use flux::{Client, Transport, Update, View, Watch};
use futures_util::future::join_all;
use proto::registry::v1 as wire;

use crate::fake::{Catalog, Node};
use crate::middlebox::{Middlebox, Mode};
use crate::soon;

/// A watch with everything it has told.
struct Holder {
    watch: Watch,
    view: View,
    resets: usize,
    /// Of every event, in the order told.
    revisions: Vec<u64>,
}

impl Holder {
    fn new(watch: Watch) -> Holder {
        Holder { watch, view: View::default(), resets: 0, revisions: Vec::new() }
    }

    /// Takes updates in until `done`.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&View) -> bool) {
        soon(what, async {
            while !done(&self.view) {
                let update = self.watch.next().await;
                match &update {
                    Update::Reset { .. } => self.resets += 1,
                    Update::Events { events, .. } => {
                        self.revisions.extend(events.iter().map(|event| event.revision))
                    }
                    Update::Progress { revision } => assert!(*revision >= self.view.revision()),
                }
                self.view.apply(&update);
            }
        })
        .await;
    }

    async fn until_holding(&mut self, catalog: &Catalog) {
        let (revision, ids) = (catalog.revision(), catalog.ids());
        let holds = |view: &View| view.revision() >= revision && view.instances().keys().eq(&ids);
        self.until("the watch to catch up", holds).await;
    }

    /// Waits for a transport without missing updates.
    async fn until_over(&mut self, transport: Transport) {
        let status = self.watch.status();
        let over = |_: &View| {
            let status = status.borrow();
            status.connected && status.transport == transport
        };
        self.until("the other protocol", over).await;
    }
}

#[tokio::test]
async fn a_cut_stream_resumes_without_a_gap_or_a_reset() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        let front = Middlebox::before(node.address, Mode::Pass).await;
        let client = Client::builder([front.url.clone()]).transport(transport).build().expect("a client");
        catalog.put("pay-1");
        let mut holder = Holder::new(client.watch(Some("pay")));
        holder.until_holding(&catalog).await;
        for round in 0..3 {
            front.set(Mode::Refuse);
            catalog.put(&format!("pay-{round}-a"));
            catalog.expire(&format!("pay-{round}-a"));
            catalog.put(&format!("pay-{round}-b"));
            front.set(Mode::Pass);
            holder.until_holding(&catalog).await;
        }
        assert_eq!(holder.resets, 1, "{transport}");
        assert_eq!(holder.revisions, (2..=10).collect::<Vec<_>>(), "{transport}");
    }
}

#[tokio::test]
async fn a_stream_gone_silent_is_left_for_another_node() {
    let catalog = Catalog::new("c1");
    let nodes = [Node::start(&catalog).await, Node::start(&catalog).await];
    let fronts = [
        Middlebox::before(nodes[0].address, Mode::Pass).await,
        Middlebox::before(nodes[1].address, Mode::Refuse).await,
    ];
    let client = Client::connect(fronts.iter().map(|front| front.url.clone())).expect("a client");
    catalog.put("pay-1");
    let mut holder = Holder::new(client.watch(None));
    holder.until_holding(&catalog).await;
    fronts[1].set(Mode::Pass);
    fronts[0].set(Mode::Swallow);
    catalog.put("pay-2");
    holder.until_holding(&catalog).await;
    assert_eq!((holder.resets, &holder.revisions[..]), (1, &[2][..]));
    assert_eq!(holder.watch.status().borrow().endpoint, fronts[1].url);
}

#[tokio::test]
async fn a_node_that_is_behind_is_never_believed() {
    let catalog = Catalog::new("c1");
    let (fresh, behind) = (Node::start(&catalog).await, Node::start(&catalog).await);
    let front = Middlebox::before(fresh.address, Mode::Pass).await;
    let back = Middlebox::before(behind.address, Mode::Refuse).await;
    let client = Client::connect([front.url.clone(), back.url.clone()]).expect("a client");
    catalog.put_five();
    let mut holder = Holder::new(client.watch(None));
    holder.until_holding(&catalog).await;
    behind.set(|knobs| knobs.stuck_at = Some(3));
    back.set(Mode::Pass);
    front.set(Mode::Refuse);
    let quiet = tokio::time::timeout(Duration::from_millis(1500), holder.watch.next()).await;
    assert!(quiet.is_err(), "a node behind was believed: {quiet:?}");
    behind.set(|knobs| knobs.stuck_at = None);
    catalog.put("pay-6");
    holder.until_holding(&catalog).await;
    assert_eq!((holder.resets, &holder.revisions[..]), (1, &[6][..]));
}

/// What a client has been answered is there: a watch of it does not begin before that, at whichever node.
#[tokio::test]
async fn a_watch_begins_with_what_the_client_knows() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let catalog = Catalog::new("c1");
        let (fresh, behind) = (Node::start(&catalog).await, Node::start(&catalog).await);
        behind.set(|knobs| knobs.stuck_at = Some(3));
        catalog.put_five();
        let client =
            Client::builder([fresh.url(), behind.url()]).transport(transport).build().expect("a client");
        let known = client.list(None).await.expect("the first node answers").revision;
        assert_eq!(known, 5);
        // Each begins at a node by chance.
        for _ in 0..12 {
            let mut watch = client.watch(None);
            let first = soon("a first update", watch.next()).await;
            assert!(matches!(first, Update::Reset { revision: 5, .. }), "{transport}: {first:?}");
        }
    }
}

#[tokio::test]
async fn a_node_that_lost_its_leader_is_left_for_one_that_has_it() {
    let catalog = Catalog::new("c1");
    let (cut_off, fresh) = (Node::start(&catalog).await, Node::start(&catalog).await);
    let front = Middlebox::before(fresh.address, Mode::Refuse).await;
    let client = Client::connect([cut_off.url(), front.url.clone()]).expect("a client");
    catalog.put("pay-1");
    let mut holder = Holder::new(client.watch(None));
    holder.until_holding(&catalog).await;
    cut_off.set(|knobs| (knobs.stuck_at, knobs.age_ms) = (Some(1), 10_000));
    front.set(Mode::Pass);
    catalog.put("pay-2");
    holder.until_holding(&catalog).await;
    assert_eq!(holder.resets, 1);
}

#[tokio::test]
async fn another_cluster_with_lower_revisions_replaces_what_is_held() {
    let (old, new) = (Catalog::new("c1"), Catalog::new("c2"));
    let (before, after) = (Node::start(&old).await, Node::start(&new).await);
    let front = Middlebox::before(before.address, Mode::Pass).await;
    let back = Middlebox::before(after.address, Mode::Refuse).await;
    old.put_five();
    new.put("pay-new");
    let client = Client::connect([front.url.clone(), back.url.clone()]).expect("a client");
    let mut holder = Holder::new(client.watch(None));
    holder.until_holding(&old).await;
    back.set(Mode::Pass);
    front.set(Mode::Refuse);
    holder.until("the new cluster", |view| view.instances().keys().eq(["pay-new"])).await;
    assert_eq!((holder.view.revision(), holder.resets), (1, 2));
}

#[tokio::test]
async fn a_watch_goes_on_over_rest_and_returns_to_grpc() {
    join_all([Mode::ResetHttp2, Mode::SwallowHttp2].map(|mode| async move {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        let front = Middlebox::before(node.address, Mode::Pass).await;
        let client = Client::connect([front.url.clone()]).expect("a client");
        catalog.put("pay-1");
        let mut holder = Holder::new(client.watch(Some("pay")));
        holder.until_holding(&catalog).await;
        holder.until_over(Transport::Grpc).await;
        front.set(mode);
        catalog.put("pay-2");
        holder.until_holding(&catalog).await;
        holder.until_over(Transport::Rest).await;
        catalog.put("pay-3");
        holder.until_holding(&catalog).await;
        front.set(Mode::Pass);
        catalog.put("pay-4");
        holder.until_over(Transport::Grpc).await;
        holder.until_holding(&catalog).await;
        assert_eq!((holder.resets, &holder.revisions[..]), (1, &[2, 3, 4][..]), "{mode:?}");
    }))
    .await;
}

#[tokio::test]
async fn while_nobody_answers_nothing_is_told() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let front = Middlebox::before(node.address, Mode::Pass).await;
    let client = Client::connect([front.url.clone()]).expect("a client");
    catalog.put("pay-1");
    let mut holder = Holder::new(client.watch(None));
    holder.until_holding(&catalog).await;
    front.set(Mode::Refuse);
    let mut status = holder.watch.status();
    soon("the end", status.wait_for(|status| !status.connected)).await.expect("the watch lives");
    while let Ok(update) = tokio::time::timeout(Duration::from_millis(700), holder.watch.next()).await {
        // What had arrived before the cut.
        assert!(matches!(update, Update::Progress { .. }), "{update:?}");
    }
    // Unavailable nodes say nothing either: 503 is not an empty list.
    node.set(|knobs| (knobs.unavailable, knobs.leader) = (true, Some(wire::Member::default())));
    front.set(Mode::Pass);
    let quiet = tokio::time::timeout(Duration::from_millis(700), holder.watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    node.set(|knobs| knobs.unavailable = false);
    catalog.put("pay-2");
    holder.until_holding(&catalog).await;
    assert_eq!(holder.resets, 1);
}

#[tokio::test]
async fn an_empty_registry_is_not_polled_in_a_spin() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let client = Client::builder([node.url()]).transport(Transport::Rest).build().expect("a client");
    let mut holder = Holder::new(client.watch(None));
    let first = soon("the first answer", holder.watch.next()).await;
    assert_eq!(first, Update::Reset { revision: 0, instances: vec![] });
    let before = node.knobs().answered;
    let second = tokio::time::timeout(Duration::from_secs(1), async {
        loop {
            assert_eq!(holder.watch.next().await, first, "nothing changed");
        }
    });
    second.await.expect_err("it goes on for ever");
    let polls = node.knobs().answered - before;
    assert!(polls <= 5, "polled {polls} times in a second");
    catalog.put("pay-1");
    holder.until_holding(&catalog).await;
}
