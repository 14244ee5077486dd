use super::*;
use crate::{
    catalog::{ServiceName, Spec},
    consensus::{Sealed, SoleMember},
};

const TTL: Duration = Duration::from_secs(10);

/// Long, so that how long the test itself takes makes no difference.
const ELECTION_MAX: Duration = Duration::from_secs(6);

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node that leads itself, and its keeper, whose ticks are the test's.
struct Alone {
    keeper: Keeper,
    term: u64,
    _dir: tempfile::TempDir,
}

impl Alone {
    async fn lead() -> Alone {
        let election_max = format!("--election-max-ms={}", ELECTION_MAX.as_millis());
        let SoleMember { consensus, hub, metrics, term, dir, .. } = SoleMember::lead(&[&election_max]).await;
        let (keeper, _queue) = Keeper::new(consensus, hub, metrics);
        let node = Alone { keeper, term, _dir: dir };
        // Armed while there is nothing: what registers later has its TTL and no grace.
        assert_eq!(node.tick(Duration::ZERO, Instant::now()), vec![]);
        node
    }

    async fn register(&self, id: &str) -> Beat {
        let service = ServiceName::new("web").expect("valid");
        let mut spec = Spec::new(instance(id), service, "http://127.0.0.1:1");
        spec.ttl_ms = TTL.as_millis() as u32;
        let command = Command::Register { spec: spec.into(), expected: None };
        let sealed = Sealed::new(Proposal { command, cause: Arc::default(), origin: None });
        let done = self.keeper.0.consensus.propose(sealed, Instant::now() + PATIENCE).await;
        let Outcome::Registered(record) = done.expect("it leads").outcome else { panic!("not registered") };
        (instance(id), Some(record.reg_rev))
    }

    /// A tick at `now`, which is so late.
    fn tick(&self, late: Duration, now: Instant) -> Vec<InstanceId> {
        let victims = self.keeper.0.look_after(self.term, late, now, true);
        victims.into_iter().map(|(id, _)| id).collect()
    }

    async fn renew(&self, beats: &[Beat]) -> Vec<bool> {
        let deadline = Instant::now() + PATIENCE;
        self.keeper.renew_here(beats, deadline).await.expect("it leads")
    }
}

fn instance(id: &str) -> InstanceId {
    InstanceId::new(id).expect("valid")
}

/// A disk that hangs holds up an expiry, and the heartbeat of whose lease it is for a while; nobody else's.
#[tokio::test]
async fn an_expiry_without_an_outcome_holds_up_no_other_heartbeat() {
    let node = Alone::lead().await;
    let beats = [node.register("hangs").await, node.register("lives").await];
    assert_eq!(node.renew(&beats).await, [true, true]);
    // Taken out to be proposed, and never proposed.
    let later = Instant::now() + TTL;
    let mut both = node.tick(Duration::ZERO, later);
    both.sort();
    assert_eq!(both, [instance("hangs"), instance("lives")]);
    assert_eq!(node.keeper.renew_now(&beats), None, "only the outcome can tell");
    let lives = [(instance("lives"), beats[1].1.expect("it was named"))];
    node.keeper.0.ledger().lessor.expiry_failed(&lives, later.into_std());
    assert_eq!(node.renew(&beats).await, [false, true], "it is told to register again, and is right then");
    // The lease of a new incarnation is another one.
    let again = node.register("hangs").await;
    assert_eq!(node.renew(&[again, beats[1].clone()]).await, [true, true]);
}

#[tokio::test]
async fn time_in_which_nobody_was_heard_does_not_count() {
    let node = Alone::lead().await;
    node.register("a").await;
    assert_eq!(node.tick(Duration::ZERO, Instant::now()), vec![]);
    // The lease was granted before this instant.
    let due = Instant::now() + TTL;
    assert_eq!(node.tick(STALL, due - TTL / 2), vec![], "a tick that is a little late is none that matters");
    let late = ELECTION_MAX / 2;
    assert_eq!(node.tick(late, due), vec![], "its deadline moves by the delay");
    // Longer than an election: as a new leader, with the grace of one.
    let armed = Instant::now();
    assert_eq!(node.tick(ELECTION_MAX + TICK, due + late), vec![]);
    let grace = TTL + TTL / 3 + ELECTION_MAX;
    assert_eq!(node.tick(Duration::ZERO, armed + grace - Duration::from_millis(1)), vec![]);
    assert_eq!(node.tick(Duration::ZERO, Instant::now() + grace), [instance("a")]);
}

#[tokio::test]
async fn a_delay_is_added_once_and_no_more() {
    let node = Alone::lead().await;
    node.register("a").await;
    assert_eq!(node.tick(Duration::ZERO, Instant::now()), vec![]);
    let due = Instant::now() + TTL;
    let late = ELECTION_MAX / 2;
    assert_eq!(node.tick(late, due), vec![]);
    assert_eq!(node.tick(Duration::ZERO, due + late), [instance("a")]);
}

#[tokio::test]
async fn a_leader_arms_anew_what_an_earlier_term_had_taken_out() {
    let node = Alone::lead().await;
    let (id, reg_rev) = node.register("a").await;
    let victim = (id, reg_rev.expect("it was named"));
    assert_eq!(node.tick(Duration::ZERO, Instant::now()), vec![]);
    let due = Instant::now() + TTL;
    assert_eq!(node.tick(Duration::ZERO, due), [instance("a")]);
    let inner = &node.keeper.0;
    let tick = |now| inner.look_after(node.term + 1, Duration::ZERO, now, true);
    assert_eq!(tick(due), vec![], "it has the grace that a change of leaders takes");
    assert_eq!(tick(Instant::now() + TTL + TTL / 3 + ELECTION_MAX), [victim]);
}

#[test]
fn one_doubt_about_an_expiry_outlasts_every_later_refusal() {
    assert_eq!(after(false, true), After::Rearm);
    assert_eq!(after(false, false), After::Rearm);
    assert_eq!(after(true, true), After::Again);
    assert_eq!(after(true, false), After::Leave);
}

/// Heartbeats of one caller on their way to the leader, and where it hears of them.
fn forward(beats: usize) -> (Forward, oneshot::Receiver<Result<Vec<bool>, Error>>) {
    let beats = (0..beats).map(|number| (instance(&format!("i-{number}")), Some(1))).collect();
    let (reply, answer) = oneshot::channel();
    (Forward { beats, deadline: Instant::now() + PATIENCE, reply }, answer)
}

#[tokio::test]
async fn heartbeats_of_many_callers_go_to_the_leader_together() {
    let (sender, mut queue) = mpsc::channel(FORWARD_QUEUE);
    let mut answers = Vec::new();
    for _ in 0..FORWARD_MAX + 88 {
        let (forward, answer) = forward(1);
        sender.try_send(forward).expect("there is room");
        answers.push(answer);
    }
    assert_eq!(gather(&mut queue).await.map(|batch| batch.len()), Some(FORWARD_MAX));
    assert_eq!(gather(&mut queue).await.map(|batch| batch.len()), Some(88), "a few do not wait for more");
    drop(sender);
    assert!(gather(&mut queue).await.is_none());
}

#[test]
fn each_caller_hears_of_its_own_heartbeats() {
    let sizes = [2, 0, 3];
    let said = vec![true, false, false, true, true];
    let (batch, answers): (Vec<_>, Vec<_>) = sizes.into_iter().map(forward).unzip();
    share(batch, Ok(said));
    let mut heard =
        answers.into_iter().map(|mut answer| answer.try_recv().expect("answered").expect("renewed"));
    assert_eq!(heard.next(), Some(vec![true, false]));
    assert_eq!(heard.next(), Some(vec![]));
    assert_eq!(heard.next(), Some(vec![false, true, true]));
    let (batch, answers): (Vec<_>, Vec<_>) = sizes.into_iter().map(forward).unzip();
    share(batch, Err(Error::NoLeader));
    for mut answer in answers {
        assert!(matches!(answer.try_recv(), Ok(Err(Error::NoLeader))));
    }
}
