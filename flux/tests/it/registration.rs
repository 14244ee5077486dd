//! Staying registered, and leaving.

use std::time::Duration;

use flux::{Client, Code, Instance, RegistrationState, ShutdownOptions, Status, Transport};
use tokio::time::Instant;

use crate::fake::{Catalog, Node};
use crate::middlebox::{Middlebox, Mode};
use crate::soon;

fn instance() -> Instance {
    Instance::new("pay", "h", 80).ttl(Duration::from_secs(3))
}

fn drain() -> ShutdownOptions {
    ShutdownOptions::default()
}

#[tokio::test]
async fn a_lost_lease_is_registered_again_as_a_new_incarnation() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let client = Client::connect([node.url()]).expect("a client");
    let registration = client.register(instance()).await.expect("registered");
    assert_eq!(registration.reg_rev(), 1);
    registration.set_status(Status::Maintenance).await.expect("set");
    catalog.expire("pay-h-80");
    let mut state = registration.state();
    soon("a new incarnation", state.wait_for(|s| *s == RegistrationState::Registered { reg_rev: 4 }))
        .await
        .expect("it lives");
    assert_eq!(registration.reg_rev(), 4);
    assert_eq!(registration.instance().status, Status::Maintenance, "what was set stays");
    registration.shutdown(drain()).await.expect("deregistered");
}

#[tokio::test]
async fn registering_waits_for_a_registry_that_is_not_there_yet() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let front = Middlebox::before(node.address, Mode::Refuse).await;
    let client = Client::builder([front.url.clone()])
        .call_timeout(Duration::from_millis(300))
        .build()
        .expect("a client");
    let registering = tokio::spawn(async move { client.register(instance()).await });
    tokio::time::timeout(Duration::from_millis(800), async {
        while !registering.is_finished() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect_err("it is still trying");
    front.set(Mode::Pass);
    let registration = soon("the registration", registering).await.expect("no panic").expect("registered");
    assert_eq!(catalog.ids(), ["pay-h-80"]);
    registration.abandon();
}

#[tokio::test]
async fn what_is_invalid_fails_at_once() {
    let client = Client::connect(["http://127.0.0.1:1"]).expect("a client");
    let error = client.register(instance().id("")).await.expect_err("no id");
    assert_eq!((error.code(), error.to_string().as_str()), (Code::InvalidArgument, "the instance has no id"));
}

#[tokio::test]
async fn shutting_down_announces_waits_and_deregisters_once() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let client = Client::connect([node.url()]).expect("a client");
    let registration = client.register(instance()).await.expect("registered");
    let begun = Instant::now();
    let (first, second) = tokio::join!(registration.shutdown(drain()), registration.shutdown(drain()));
    assert!(begun.elapsed() >= flux::DRAIN_MIN, "took {:?}", begun.elapsed());
    first.and(second).expect("deregistered");
    registration.shutdown(drain()).await.expect("a third time is nothing");
    assert_eq!(catalog.log(), ["register pay-h-80", "draining pay-h-80", "delete pay-h-80"]);
    assert_eq!(*registration.state().borrow(), RegistrationState::Stopped);
    let late = registration.set_status(Status::Up).await.expect_err("shut down");
    assert!(late.had_no_effect());
}

#[tokio::test]
async fn every_write_has_a_number_of_its_own_over_both_protocols() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        let client = Client::builder([node.url()]).transport(transport).build().expect("a client");
        let registration = client.register(instance()).await.expect("registered");
        registration.shutdown(drain()).await.expect("deregistered");
        let (clients, numbers): (Vec<_>, Vec<_>) = catalog.tickets().into_iter().unzip();
        assert_eq!(numbers, [1, 2, 3], "{transport}: register, draining, deregister");
        assert!(!clients[0].is_empty() && clients.iter().all(|client| *client == clients[0]), "{clients:?}");
    }
}

#[tokio::test]
async fn a_number_that_came_too_late_is_replaced() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let catalog = Catalog::new("c1");
        let node = Node::start(&catalog).await;
        // More than are replaced at once.
        node.set(|knobs| knobs.stale_registrations = 4);
        let client = Client::builder([node.url()]).transport(transport).build().expect("a client");
        let registration = soon("registered", client.register(instance())).await.expect("registered");
        let numbers: Vec<u64> = catalog.tickets().into_iter().map(|(_, number)| number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5], "{transport}");
        registration.abandon();
    }
}

#[tokio::test]
async fn shutting_down_takes_out_what_an_unanswered_registration_made() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let client =
        Client::builder([node.url()]).call_timeout(Duration::from_millis(500)).build().expect("a client");
    let registration = client.register(instance()).await.expect("registered");
    node.set(|knobs| knobs.mute_registrations = true);
    catalog.expire("pay-h-80");
    soon("an attempt that is not answered", async {
        while catalog.ids().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    soon("the end", registration.shutdown(drain())).await.expect("deregistered");
    assert_eq!(catalog.ids(), [""; 0]);
    let log = catalog.log();
    assert!(log.ends_with(&["draining pay-h-80".into(), "delete pay-h-80".into()]), "{log:?}");
}

#[tokio::test]
async fn shutting_down_is_bounded_when_the_registry_is_away() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let front = Middlebox::before(node.address, Mode::Pass).await;
    let client = Client::connect([front.url.clone()]).expect("a client");
    let registration = client.register(instance()).await.expect("registered");
    front.set(Mode::Swallow);
    let begun = Instant::now();
    let error = soon("the end", registration.shutdown(drain())).await.expect_err("nobody confirmed it");
    assert!(error.is_retryable());
    assert!(begun.elapsed() < Duration::from_secs(7), "took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_registry_that_comes_back_finds_the_beats_going_on() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let front = Middlebox::before(node.address, Mode::Pass).await;
    let metrics = prometheus::Registry::new();
    let client = Client::builder([front.url.clone()]).metrics(&metrics).build().expect("a client");
    let registration = client.register(instance()).await.expect("registered");
    front.set(Mode::Refuse);
    let mut state = registration.state();
    let lost = |state: &RegistrationState| matches!(state, RegistrationState::Lost { .. });
    soon("the lease to lapse", state.wait_for(lost)).await.expect("it lives");
    front.set(Mode::Pass);
    // The registry kept the lease, so the incarnation is the same.
    soon("the beats", state.wait_for(|s| *s == RegistrationState::Registered { reg_rev: 1 }))
        .await
        .expect("it lives");
    assert_eq!(catalog.log(), ["register pay-h-80"]);
    registration.abandon();
}
