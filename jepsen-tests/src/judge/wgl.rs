//! A search for linearizability of one register, by values and times alone.
//!
//! Wing and Gong's algorithm with Lowe's cache of visited configurations (G. Lowe, "Testing for linearizability",
//! CCPE 2017, section 4): calls and returns in one list by time; take a call that the state allows, go on from the
//! front; at a return that was not taken go back. Exponential at worst, so it has a budget and may answer
//! [`Answer::Unknown`]; the caller counts that as a failure.

use std::collections::HashSet;

/// The state of a register: a value, or nothing.
pub type Value = Option<u64>;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts a value.
    Write(u64),
    /// Puts `to` where `from` was.
    Swap {
        /// What must be there.
        from: Value,
        /// What is there then.
        to: u64,
    },
    /// Takes the value out; `found` says whether there was one, if that is known.
    Remove {
        /// Nothing if the outcome is unknown.
        found: Option<bool>,
    },
    /// Saw this.
    Read(Value),
}

impl Action {
    /// The state after the action, or nothing if it cannot happen in `state`.
    fn apply(self, state: Value) -> Option<Value> {
        match self {
            Self::Write(value) => Some(Some(value)),
            Self::Swap { from, to } => (state == from).then_some(Some(to)),
            Self::Remove { found } => found.is_none_or(|found| found == state.is_some()).then_some(None),
            Self::Read(value) => (state == value).then_some(state),
        }
    }
}

/// A call of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it did, or would have done.
    pub action: Action,
    /// When it began.
    pub invoked: u64,
    /// When it ended; nothing if its outcome is unknown: it may take effect at any time later, or never.
    pub returned: Option<u64>,
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is an order.
    Linearizable,
    /// There is none.
    Illegal,
    /// The budget ran out first.
    Unknown,
}

/// Looks for an order of `operations` that respects real time and explains every outcome, from an empty register.
/// Tries at most `steps_max` steps, so that a verdict does not depend on the machine.
pub fn search(operations: &[Operation], steps_max: u64) -> Answer {
    let mut list = List::new(operations);
    let mut taken = Taken::new(operations.len());
    let mut visited: HashSet<(Taken, Value)> = HashSet::new();
    let mut path: Vec<(usize, Value)> = Vec::new();
    let mut state: Value = None;
    let mut at = list.first();
    for _ in 0..steps_max {
        if list.returns == 0 {
            return Answer::Linearizable;
        }
        let entry = list.entries[at];
        if entry.is_call {
            let allowed = operations[entry.operation].action.apply(state).filter(|next| {
                let mut with = taken.clone();
                with.set(entry.operation, true);
                visited.insert((with, *next))
            });
            if let Some(next) = allowed {
                path.push((at, state));
                taken.set(entry.operation, true);
                state = next;
                list.take(at);
                at = list.first();
            } else {
                at = list.next[at];
            }
        } else {
            let Some((call, before)) = path.pop() else { return Answer::Illegal };
            taken.set(list.entries[call].operation, false);
            state = before;
            list.give_back(call);
            at = list.next[call];
        }
    }
    Answer::Unknown
}

/// Which operations are in the order so far.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Taken(Box<[u64]>);

impl Taken {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)].into())
    }

    fn set(&mut self, at: usize, on: bool) {
        let bit = 1 << (at % 64);
        if on {
            self.0[at / 64] |= bit;
        } else {
            self.0[at / 64] &= !bit;
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    operation: usize,
    is_call: bool,
}

/// Calls and returns by time, doubly linked, so that taking one out and putting it back is O(1). The last place is the
/// sentinel: before the first and after the last.
struct List {
    entries: Vec<Entry>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// Of each operation, where its return is.
    return_of: Vec<Option<usize>>,
    /// Returns still in the list. While there is one, a walk from any entry meets it before the sentinel.
    returns: usize,
}

impl List {
    fn new(operations: &[Operation]) -> Self {
        // At the same instant calls come first: they may have been concurrent.
        let mut timed: Vec<(u64, bool, usize)> = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            timed.push((operation.invoked, false, at));
            timed.extend(operation.returned.map(|returned| (returned, true, at)));
        }
        timed.sort_unstable();
        let count = timed.len();
        let mut return_of = vec![None; operations.len()];
        let mut entries = Vec::with_capacity(count);
        for (at, (_, is_return, operation)) in timed.into_iter().enumerate() {
            entries.push(Entry { operation, is_call: !is_return });
            if is_return {
                return_of[operation] = Some(at);
            }
        }
        let next = (0..=count).map(|at| if at == count { 0 } else { at + 1 }).collect();
        let prev = (0..=count).map(|at| if at == 0 { count } else { at - 1 }).collect();
        let returns = return_of.iter().flatten().count();
        Self { entries, next, prev, return_of, returns }
    }

    fn first(&self) -> usize {
        self.next[self.entries.len()]
    }

    fn take(&mut self, call: usize) {
        self.unlink(call);
        if let Some(at) = self.return_of[self.entries[call].operation] {
            self.unlink(at);
            self.returns -= 1;
        }
    }

    /// Undoes the last [`Self::take`]: places come back in the opposite order.
    fn give_back(&mut self, call: usize) {
        if let Some(at) = self.return_of[self.entries[call].operation] {
            self.link(at);
            self.returns += 1;
        }
        self.link(call);
    }

    fn unlink(&mut self, at: usize) {
        self.next[self.prev[at]] = self.next[at];
        self.prev[self.next[at]] = self.prev[at];
    }

    fn link(&mut self, at: usize) {
        self.next[self.prev[at]] = at;
        self.prev[self.next[at]] = at;
    }
}
