//! Numbers writes so that each may be repeated: pure bookkeeping.
//!
//! The registry remembers the last outcomes of each client that numbers its writes, so few of one client's may be
//! open at once. A pipeline is therefore several clients, its lanes; one that has few writes open uses one.

use std::collections::BTreeSet;

/// Outcomes that the registry remembers of one client: a number must not be further behind the newest.
const WINDOW: u64 = 32;

/// Lanes of one pipeline, so 512 writes may be open. The registry remembers 1 024 clients.
const LANES: usize = 16;

/// All lanes of a pipeline.
#[derive(Debug)]
pub struct Lanes {
    identity: String,
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    next: u64,
    /// Numbers whose answers are not known yet.
    open: BTreeSet<u64>,
}

/// One number of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    lane: usize,
    number: u64,
}

impl Lanes {
    /// Lanes of a pipeline called `identity`, which nobody else is called.
    pub fn new(identity: String) -> Lanes {
        let lane = || Lane { next: 1, open: BTreeSet::new() };
        Lanes { identity, lanes: std::iter::repeat_with(lane).take(LANES).collect() }
    }

    /// Whether another write may be numbered.
    pub fn has_room(&self) -> bool {
        self.lanes.iter().any(Lane::has_room)
    }

    /// Writes a client's name and a number that was never used into a request. There must be room.
    pub fn number(&mut self, client: &mut String, seq: &mut u64) -> Ticket {
        let lane = self.lanes.iter().position(Lane::has_room).expect("the caller looked for room");
        let number = self.lanes[lane].next;
        self.lanes[lane].next += 1;
        self.lanes[lane].open.insert(number);
        (*client, *seq) = (format!("{}.{lane}", self.identity), number);
        Ticket { lane, number }
    }

    /// The write is answered, or given up on: it is never sent again.
    pub fn done(&mut self, ticket: Ticket) {
        self.lanes[ticket.lane].open.remove(&ticket.number);
    }
}

impl Lane {
    fn has_room(&self) -> bool {
        self.open.first().is_none_or(|oldest| self.next - oldest < WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is answered when, a write that may be sent again is among the last that its lane has numbered.
        #[test]
        fn an_open_number_is_never_far_behind(answered in prop::collection::vec(0usize..64, 1..2_000)) {
            let mut lanes = Lanes::new("me".to_owned());
            let mut open: Vec<(Ticket, String, u64)> = Vec::new();
            let mut newest = std::collections::BTreeMap::new();
            for pick in answered {
                if pick < open.len() {
                    lanes.done(open.swap_remove(pick).0);
                }
                if !lanes.has_room() {
                    continue;
                }
                let (mut client, mut seq) = (String::new(), 0);
                let ticket = lanes.number(&mut client, &mut seq);
                let before = newest.insert(client.clone(), seq).unwrap_or(0);
                prop_assert_eq!(seq, before + 1, "numbers rise, and none is used twice");
                open.push((ticket, client, seq));
                for (_, client, seq) in &open {
                    prop_assert!(newest[client] - seq < WINDOW);
                }
            }
        }
    }

    #[test]
    fn few_writes_use_one_lane_and_many_have_an_end() {
        let mut lanes = Lanes::new("me".to_owned());
        let mut tickets = Vec::new();
        while lanes.has_room() {
            let (mut client, mut seq) = (String::new(), 0);
            tickets.push(lanes.number(&mut client, &mut seq));
            let lane = (tickets.len() - 1) / WINDOW as usize;
            assert_eq!(client, format!("me.{lane}"));
        }
        assert_eq!(tickets.len(), LANES * WINDOW as usize);
        lanes.done(tickets[40]);
        assert!(!lanes.has_room(), "the oldest of its lane is open");
        lanes.done(tickets[32]);
        assert!(lanes.has_room());
    }
}
