//! The registry's own nodes: who they are, and how one joins, is promoted, leaves, or takes another's place.
//!
//! A replacement is four steps, each of which is skipped when it is done already: whatever stops it, the same
//! command goes on where it ended.

use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::show::MemberStatus;
use super::{Failed, Session, client};
use crate::{Answer, Client, Code, Error, Member, NodeStatus, Role};

/// How long a node may take to tell its status; it is shown as unreachable then.
const STATUS_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// Between two questions whether something has changed by now.
const AGAIN_EVERY: Duration = Duration::from_millis(250);

/// Progress is told this often at most.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Every node: its role, how far it is, and whether it serves. Exit code 4 if no leader answers.
    Status,
    /// Takes a node that was started with --join into the cluster, as a learner: it receives everything and has
    /// no vote yet.
    Join {
        /// The new node's REST URL, such as http://10.0.0.9:8081.
        url: String,
    },
    /// Gives a learner a vote, as soon as it has caught up.
    Promote {
        /// Its id or its name.
        node: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Takes a node out for good: its id is never used again. The leader hands over first. Refused if the nodes
    /// that remain would be no majority.
    Remove {
        /// Its id or its name.
        node: String,
        /// Even if too few of the remaining nodes answer now.
        #[arg(long)]
        force: bool,
    },
    /// Puts a node in another's place under load: joins NEW, waits until it has caught up, promotes it, removes
    /// OLD. Run it again to go on after an interruption.
    Replace {
        /// Id or name of the node that goes, dead or alive.
        old: String,
        /// The REST URL of the node that comes, started with --join under an id never used before.
        url: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Hands leadership over.
    Transfer {
        /// To whom, by id or name [default: whoever is most up to date].
        node: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Patience {
    /// How long the node may take to catch up, in seconds.
    #[arg(long, default_value = "300", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait_s: u64,
}

impl Patience {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.wait_s)
    }
}

pub(super) async fn run(session: &mut Session<'_>, command: &Command) -> Result<(), Failed> {
    let members = match command {
        Command::Status => return status(session).await,
        Command::Join { url } => join(session, url).await?,
        Command::Promote { node, patience } => {
            let id = known(&members(session).await?.value, node)?.id;
            promote(session, id, patience.limit()).await?
        }
        Command::Remove { node, force } => {
            let node = known(&members(session).await?.value, node)?.clone();
            remove(session, &node, *force).await?
        }
        Command::Replace { old, url, patience } => replace(session, old, url, patience.limit()).await?,
        Command::Transfer { node } => transfer(session, node.as_deref()).await?,
    };
    session.print(&session.output.members(&members))
}

async fn status(session: &mut Session<'_>) -> Result<(), Failed> {
    let answer = members(session).await?;
    let statuses = ask_all(session, answer.value).await;
    let has_leader = statuses.iter().any(leads);
    session.print(&session.output.cluster(&answer.cluster_id, &statuses))?;
    if has_leader { Ok(()) } else { Err(Failed::NoLeader) }
}

/// Adds the node at `url` as a learner, unless it is a member already.
async fn join(session: &mut Session<'_>, url: &str) -> Result<Answer<Vec<Member>>, Failed> {
    let node = newcomer(session, url).await?;
    let members = members(session).await?;
    if members.value.iter().any(|member| member.id == node.id) {
        session.say(&format!("node {} is a member already", node.id));
        return Ok(members);
    }
    session.client.add_learner(&node).await.map_err(|error| Failed::Call {
        what: format!("cannot add node {}", node.id),
        hint: match error.code() {
            Code::Precondition => {
                "another change of members may be under way: try again in a moment".to_owned()
            }
            _ => String::new(),
        },
        error,
    })
}

/// Why a change of members was given up.
enum GivenUp {
    /// Waiting does not help.
    Refused(Error),
    /// It did not, so far.
    Late(Error),
}

/// Asks for a change of members until it is granted, `limit` at most: what the leader does not grant yet, and who leads,
/// may be different in a moment.
async fn insist(
    session: &mut Session<'_>,
    limit: Duration,
    attempt: impl AsyncFn(&Client) -> Result<Answer<Vec<Member>>, Error>,
) -> Result<Answer<Vec<Member>>, GivenUp> {
    let deadline = Instant::now() + limit;
    let mut told = None;
    loop {
        let error = match attempt(&session.client).await {
            Ok(members) => return Ok(members),
            Err(error) => error,
        };
        if !matches!(error.code(), Code::Precondition | Code::Unavailable | Code::Timeout) {
            return Err(GivenUp::Refused(error));
        }
        if Instant::now() >= deadline {
            return Err(GivenUp::Late(error));
        }
        if told.is_none_or(|at: Instant| at.elapsed() >= TELL_EVERY) {
            session.say(&format!("waiting: {error}"));
            told = Some(Instant::now());
        }
        sleep(AGAIN_EVERY).await;
    }
}

/// Gives a member a vote, waiting up to `limit` until it has caught up.
async fn promote(session: &mut Session<'_>, id: u64, limit: Duration) -> Result<Answer<Vec<Member>>, Failed> {
    let promoted = insist(session, limit, async |client| client.promote(id).await).await;
    promoted.map_err(|given_up| match given_up {
        GivenUp::Refused(error) => Failed::call(format!("cannot promote node {id}"), error),
        GivenUp::Late(error) => Failed::TimedOut {
            what: format!("node {id} is not promoted after {}: {error}", humantime::format_duration(limit)),
            hint:
                "it stays a learner and goes on catching up: run the same command again, with more --wait-s; \
                   its log says what keeps it"
                    .to_owned(),
        },
    })
}

/// Takes a member out, after it has handed over what it leads.
async fn remove(
    session: &mut Session<'_>,
    node: &Member,
    force: bool,
) -> Result<Answer<Vec<Member>>, Failed> {
    let others: Vec<Member> =
        members(session).await?.value.into_iter().filter(|other| other.id != node.id).collect();
    let voters: Vec<Member> = others.into_iter().filter(|other| other.role != Role::Learner).collect();
    if node.role != Role::Learner {
        let names: Vec<String> = voters.iter().map(|voter| voter.id.to_string()).collect();
        let answering = ask_all(session, voters).await.iter().filter(|voter| voter.status.is_ok()).count();
        if !force && answering * 2 <= names.len() {
            return Err(Failed::Refused {
                what: format!(
                    "without node {} the voters are [{}], and {answering} of them answer: that is no majority",
                    node.id,
                    names.join(", ")
                ),
                hint: "start the others or replace them first: `registryctl cluster status` shows them; --force \
                       removes it all the same"
                    .to_owned(),
            });
        }
    }
    if leader(session).await == Some(node.id) {
        transfer(session, None).await?;
    }
    // Removing twice is removing once: who leads may have changed under the first attempt.
    let attempt = async |client: &Client| match client.remove_member(node.id).await {
        Ok(members) => Ok(members),
        Err(error) => match client.members().await {
            Ok(now) if now.value.iter().all(|member| member.id != node.id) => Ok(now),
            _ => Err(error),
        },
    };
    let removed = insist(session, session.timeout, attempt).await;
    removed.map_err(|(GivenUp::Refused(error) | GivenUp::Late(error))| Failed::Call {
        what: format!("cannot remove node {}", node.id),
        error,
        hint: "`registryctl cluster status` shows who is a member; the same command can be run again"
            .to_owned(),
    })
}

async fn transfer(session: &mut Session<'_>, to: Option<&str>) -> Result<Answer<Vec<Member>>, Failed> {
    let before = members(session).await?;
    let to = to.map(|to| known(&before.value, to).map(|member| member.id)).transpose()?;
    if to.is_some() && leader(session).await == to {
        session.say("it leads already");
        return Ok(before);
    }
    session.client.transfer_leadership(to).await.map_err(|error| Failed::Call {
        what: "cannot hand leadership over".to_owned(),
        error,
        hint: "`registryctl cluster status` shows who leads; only a voter that is up can take over"
            .to_owned(),
    })?;
    let deadline = Instant::now() + session.timeout;
    let leads = |members: &[Member]| members.iter().find(|m| m.role == Role::Leader).map(|m| m.id);
    let old = leads(&before.value);
    loop {
        let now = members(session).await?;
        match leads(&now.value) {
            Some(leader) if to.is_none_or(|to| to == leader) && Some(leader) != old => return Ok(now),
            Some(leader) if Instant::now() >= deadline => {
                return Err(Failed::TimedOut {
                    what: format!("leadership was given away, and node {leader} leads now"),
                    hint: "`registryctl cluster status` shows the nodes; the same command can be run again"
                        .to_owned(),
                });
            }
            None if Instant::now() >= deadline => return Err(Failed::NoLeader),
            _ => sleep(AGAIN_EVERY).await,
        }
    }
}

/// Puts the node at `url` in the place of `old`; whatever is done already is not done again.
async fn replace(
    session: &mut Session<'_>,
    old: &str,
    url: &str,
    limit: Duration,
) -> Result<Answer<Vec<Member>>, Failed> {
    let new = newcomer(session, url).await?;
    let before = members(session).await?;
    let votes = before.value.iter().any(|member| member.id == new.id && member.role != Role::Learner);
    let old = match known(&before.value, old) {
        Ok(old) => old.clone(),
        Err(_) if votes => {
            session.say(&format!("node {} votes and {old} is no member: nothing is left to do", new.id));
            return Ok(before);
        }
        Err(unknown) => return Err(unknown),
    };
    if old.id == new.id {
        return Err(Failed::Usage {
            what: format!("node {} cannot replace itself", old.id),
            hint: "a node that comes needs an id that was never used: `registry-node --id NEW --join HOST:PEER_PORT`"
                .to_owned(),
        });
    }
    let (new, old) = (new.id, &old);
    let stopped = |step: &str, failed: Failed| stopped(step, old.id, new, failed);
    if !votes {
        join(session, url).await.map_err(|failed| stopped("1/3, join", failed))?;
        session.say(&format!("1/3 node {new} is a member"));
        promote(session, new, limit).await.map_err(|failed| stopped("2/3, catch up", failed))?;
    }
    session.say(&format!("2/3 node {new} has caught up and votes"));
    let members = remove(session, old, false).await.map_err(|failed| stopped("3/3, remove", failed))?;
    session.say(&format!(
        "3/3 node {} is out: stop it and delete its directory, its id is never used again",
        old.id
    ));
    Ok(members)
}

/// The same failure, with how far the replacement is and what that means.
fn stopped(step: &str, old: u64, new: u64, failed: Failed) -> Failed {
    let stands = format!(
        "nothing is lost, and node {old} is still a member. Run the same command again to go on; to go back, \
         `registryctl cluster remove {new}`"
    );
    let at = |what: String| format!("stopped at step {step}: {what}");
    match failed {
        Failed::Call { what, error, hint } => {
            let hint = if hint.is_empty() { stands } else { format!("{hint}\n{stands}") };
            Failed::Call { what: at(what), error, hint }
        }
        Failed::TimedOut { what, .. } => Failed::TimedOut { what: at(what), hint: stands },
        Failed::Refused { what, hint } => {
            Failed::Refused { what: at(what), hint: format!("{hint}\n{stands}") }
        }
        other => other,
    }
}

/// What the node at `url` says of itself: it must be of this cluster.
async fn newcomer(session: &mut Session<'_>, url: &str) -> Result<Member, Failed> {
    let what = || format!("the new node at {url} does not say who it is");
    let hint = "start it first: `registry-node --id NEW --dir DIR --join HOST:PEER_PORT`, with an id never used before";
    let ask = async {
        let answer = client(std::slice::from_ref(&url.to_owned()), session.timeout)?.status().await?;
        Ok::<_, Error>(answer)
    };
    let answer = ask.await.map_err(|error| Failed::Call { what: what(), error, hint: hint.to_owned() })?;
    let Some(node) = answer.value.node else {
        return Err(Failed::Other(format!("{}: it is older than this program", what())));
    };
    let ours = members(session).await?.cluster_id;
    if answer.cluster_id != ours {
        return Err(Failed::Refused {
            what: format!(
                "node {} at {url} belongs to cluster {}, not to {ours}",
                node.id, answer.cluster_id
            ),
            hint: hint.to_owned(),
        });
    }
    Ok(node)
}

async fn members(session: &mut Session<'_>) -> Result<Answer<Vec<Member>>, Failed> {
    session.client.members().await.map_err(|error| Failed::call("cannot list the nodes", error))
}

/// The member with this id or name.
fn known<'a>(members: &'a [Member], node: &str) -> Result<&'a Member, Failed> {
    let id = node.parse().ok();
    let found = members.iter().find(|member| Some(member.id) == id || member.name == node);
    found.ok_or_else(|| {
        let names: Vec<String> =
            members.iter().map(|member| format!("{} ({})", member.id, member.name)).collect();
        Failed::NotFound {
            what: format!("{node:?} is no member"),
            hint: format!("members are {}", names.join(", ")),
        }
    })
}

/// Who leads, if a node knows.
async fn leader(session: &mut Session<'_>) -> Option<u64> {
    let members = session.client.members().await.ok()?.value;
    ask_all(session, members).await.iter().find(|status| leads(status)).map(|status| status.member.id)
}

fn leads(status: &MemberStatus) -> bool {
    matches!(&status.status, Ok((NodeStatus { role: Role::Leader, .. }, _)))
}

async fn ask_all(session: &Session<'_>, members: Vec<Member>) -> Vec<MemberStatus> {
    let timeout = STATUS_TIMEOUT_MAX.min(session.timeout);
    join_all(members.into_iter().map(|member| ask(member, timeout))).await
}

/// Asks one node for its own status.
async fn ask(member: Member, timeout: Duration) -> MemberStatus {
    let status = match client(std::slice::from_ref(&member.rest), timeout) {
        Ok(client) => client.status().await.map(|answer| (answer.value, answer.revision)),
        Err(error) => Err(error),
    };
    MemberStatus { member, status }
}
