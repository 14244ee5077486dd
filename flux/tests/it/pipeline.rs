//! Calls that share a stream: what is said of a write that was sent, and when a node is left.

use std::time::Duration;

use flux::{Client, Code, Error, Instance, Pipeline, WriteOptions};
use futures_util::future::join_all;
use proto::registry::v1 as wire;
use tokio::sync::oneshot;

use crate::fake::{Catalog, Node};
use crate::middlebox::{Middlebox, Mode};
use crate::soon;

/// A refusal as the registry makes it.
fn refusal(code: &str) -> wire::CallError {
    wire::CallError {
        code: code.to_owned(),
        message: format!("refused: {code}"),
        retryable: !matches!(code, "PRECONDITION" | "STALE_SEQUENCE"),
        had_no_effect: !matches!(code, "UNKNOWN_OUTCOME" | "STALE_SEQUENCE"),
    }
}

fn pipeline<const N: usize>(nodes: [String; N], limit: Duration) -> Pipeline {
    Client::builder(nodes).call_timeout(limit).build().expect("a client").pipeline()
}

async fn register(pipeline: &Pipeline) -> Result<u64, Error> {
    let instance = Instance::new("pay", "h", 80);
    let answer = soon("an answer", pipeline.register(&instance, WriteOptions::default())).await?;
    Ok(answer.node_id)
}

/// Two nodes of one registry: the first is asked first.
async fn two(catalog: &Catalog) -> [Node; 2] {
    let nodes = [Node::start(catalog).await, Node::start(catalog).await];
    nodes[1].set(|knobs| knobs.id = 2);
    nodes
}

/// The first sending took effect and its stream broke: whatever is said of the second, nobody knows.
#[tokio::test]
async fn a_refusal_after_a_broken_stream_leaves_the_outcome_open() {
    let limit = Duration::from_secs(3);
    let codes = ["NOT_READY", "OVERLOADED", "DISK_FULL", "NO_LEADER", "PRECONDITION"];
    join_all(codes.map(|code| async move {
        let catalog = Catalog::new("c1");
        let nodes = two(&catalog).await;
        nodes[0].set(|knobs| knobs.breaking_pipelines = 1);
        nodes.iter().for_each(|node| node.set(|knobs| knobs.refusal = Some(refusal(code))));
        let pipeline = pipeline([nodes[0].url(), nodes[1].url()], limit);
        let error = register(&pipeline).await.expect_err(code);
        assert!(!error.had_no_effect(), "{code}: {error}");
        assert_eq!(error.is_retryable(), refusal(code).retryable, "{code}: {error}");
        assert!(error.to_string().contains(code), "{error}");
        assert_eq!(catalog.log(), ["register pay-h-80"], "{code}: it did have an effect");
        let tickets = catalog.tickets();
        assert!(tickets.len() > 1, "{code}: sent again");
        assert!(tickets.iter().all(|ticket| *ticket == tickets[0]), "{code}: under one number, {tickets:?}");
    }))
    .await;
}

/// So does an answer that says so itself.
#[tokio::test]
async fn a_refusal_after_an_unknown_outcome_leaves_it_open() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    node.set(|knobs| knobs.refusals = [refusal("UNKNOWN_OUTCOME"), refusal("PRECONDITION")].into());
    let pipeline = pipeline([node.url()], Duration::from_secs(10));
    let error = register(&pipeline).await.expect_err("refused");
    assert_eq!((error.code(), error.had_no_effect()), (Code::Precondition, false), "{error}");
    // And is forgotten with its call.
    node.set(|knobs| knobs.refusal = Some(refusal("PRECONDITION")));
    let error = register(&pipeline).await.expect_err("refused");
    assert_eq!((error.code(), error.had_no_effect()), (Code::Precondition, true), "{error}");
}

#[tokio::test]
async fn a_refusal_alone_had_no_effect() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    node.set(|knobs| knobs.refusal = Some(refusal("PRECONDITION")));
    let patient = pipeline([node.url()], Duration::from_secs(60));
    let error = register(&patient).await.expect_err("refused");
    assert_eq!(
        (error.code(), error.is_retryable(), error.had_no_effect()),
        (Code::Precondition, false, true)
    );
    assert_eq!(node.knobs().piped, 1, "it is not sent again");

    node.set(|knobs| knobs.refusal = Some(refusal("DISK_FULL")));
    let hasty = pipeline([node.url()], Duration::from_secs(3));
    let error = register(&hasty).await.expect_err("refused to the end");
    assert_eq!((error.code(), error.had_no_effect()), (Code::ResourceExhausted, true), "{error}");
    assert!(error.is_retryable() && error.to_string().contains("DISK_FULL"), "{error}");
    assert!(node.knobs().piped > 2, "it is sent again until its time is over");
    assert!(catalog.log().is_empty());
    // Heartbeats as well.
    let error = soon("an answer", hasty.heartbeat("pay-h-80", 1)).await.expect_err("refused to the end");
    assert_eq!((error.code(), error.had_no_effect()), (Code::ResourceExhausted, true), "{error}");
}

#[tokio::test]
async fn what_passes_is_waited_for() {
    let catalog = Catalog::new("c1");
    let nodes = two(&catalog).await;
    let codes = ["OVERLOADED", "NOT_READY", "UNKNOWN_OUTCOME"];
    nodes.iter().for_each(|node| node.set(|knobs| knobs.refusals = codes.map(refusal).into()));
    let pipeline = pipeline([nodes[0].url(), nodes[1].url()], Duration::from_secs(15));
    register(&pipeline).await.expect("it is carried out in the end");
    let tickets = catalog.tickets();
    assert!(tickets.len() > 2 && tickets.iter().all(|ticket| *ticket == tickets[0]), "{tickets:?}");

    // A node that cannot serve is left for one that can.
    let catalog = Catalog::new("c2");
    let nodes = two(&catalog).await;
    nodes[0].set(|knobs| knobs.refusal = Some(refusal("NO_LEADER")));
    let pipeline = self::pipeline([nodes[0].url(), nodes[1].url()], Duration::from_secs(15));
    assert_eq!(register(&pipeline).await.expect("the other serves"), 2);
    assert!(nodes[0].knobs().piped > 0, "it was asked first");
}

/// One that stays full is left after some tries, for one that may have room.
#[tokio::test]
async fn a_node_that_stays_full_is_left() {
    for code in ["OVERLOADED", "DISK_FULL"] {
        let catalog = Catalog::new("c1");
        let nodes = two(&catalog).await;
        nodes[0].set(|knobs| knobs.refusal = Some(refusal(code)));
        let pipeline = pipeline([nodes[0].url(), nodes[1].url()], Duration::from_secs(15));
        assert_eq!(register(&pipeline).await.expect("the other has room"), 2, "{code}");
        assert!(nodes[0].knobs().piped > 1, "{code}: it may pass, so it is tried again here first");
    }
}

/// A client's reason goes with every write of its pipelines that gives none.
#[tokio::test]
async fn a_pipeline_gives_its_clients_reason() {
    let catalog = Catalog::new("c1");
    let node = Node::start(&catalog).await;
    let client = Client::connect([node.url()]).expect("a client");
    let pipeline = client.because("deploy 7").pipeline();
    register(&pipeline).await.expect("registered");
    let own = WriteOptions { why: "by hand".to_owned(), ..Default::default() };
    soon("an answer", pipeline.register(&Instance::new("pay", "h", 80), own)).await.expect("registered");
    soon("an answer", pipeline.set_status("pay-h-80", flux::Status::Draining, None)).await.expect("marked");
    soon("an answer", pipeline.deregister("pay-h-80", None)).await.expect("gone");
    assert_eq!(catalog.reasons(), ["deploy 7", "by hand", "deploy 7", "deploy 7"]);
    register(&client.pipeline()).await.expect("registered");
    assert_eq!(catalog.reasons().last().map(String::as_str), Some(""));
}

/// A node that takes calls and does not answer them, other calls aside, costs at most half of a call's limit.
#[tokio::test]
async fn a_node_that_keeps_a_call_is_left_within_the_limit() {
    let catalog = Catalog::new("c1");
    let nodes = two(&catalog).await;
    nodes[0].set(|knobs| knobs.mute_registrations = true);
    let pipeline = pipeline([nodes[0].url(), nodes[1].url()], Duration::from_secs(1));
    let (stop, mut stopped) = oneshot::channel::<()>();
    let beats = pipeline.clone();
    let traffic = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            let _ = beats.heartbeat("pay-h-80", 0).await; // the stream breaks off under it
        }
    });
    let node = soon("the other node", async {
        loop {
            // On a slow machine the second half may be too short as well; the next call begins at the other.
            if let Ok(node) = register(&pipeline).await {
                break node;
            }
        }
    })
    .await;
    assert_eq!(node, 2);
    stop.send(()).expect("the traffic goes on");
    traffic.await.expect("it ends");
}

#[tokio::test]
async fn a_node_that_gives_no_stream_is_left_within_the_limit() {
    let catalog = Catalog::new("c1");
    let nodes = two(&catalog).await;
    let front = Middlebox::before(nodes[0].address, Mode::Swallow).await;
    let pipeline = pipeline([front.url.clone(), nodes[1].url()], Duration::from_millis(900));
    let node = soon("the other node", async {
        loop {
            match register(&pipeline).await {
                Ok(node) => break node,
                Err(error) => assert!(error.had_no_effect() || nodes[1].knobs().piped > 0, "{error}"),
            }
        }
    })
    .await;
    assert_eq!(node, 2);
}

/// The call's time ends while the second of two mute nodes is asked: the next call begins at the third.
#[tokio::test]
async fn a_node_that_gave_no_stream_by_the_deadline_is_asked_last() {
    let catalog = Catalog::new("c1");
    let nodes = two(&catalog).await;
    let mute = [
        Middlebox::before(nodes[0].address, Mode::Swallow).await,
        Middlebox::before(nodes[0].address, Mode::Swallow).await,
    ];
    let limit = Duration::from_millis(600);
    soon("a call that begins at the third", async {
        loop {
            let pipeline = pipeline([mute[0].url.clone(), mute[1].url.clone(), nodes[1].url()], limit);
            if register(&pipeline).await.is_ok() {
                continue; // the third answered already: not what is asked here
            }
            let before = mute.each_ref().map(Middlebox::connections);
            if register(&pipeline).await.is_ok() && mute.each_ref().map(Middlebox::connections) == before {
                break;
            }
            // Once more: a stall of this machine has let the nodes' rest pass by.
        }
    })
    .await;
}
