//! A client's side of one connection: requests and their bodies, one after the other.
//!
//! The caller owns the bytes and gives all that it has and that was not consumed yet. What it does with an event, and
//! when it asks for the next one, is its own business: nothing here waits.

use super::{Body, Lines, Malformed, Pieces, Request};

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    state: State,
    head_bytes_max: usize,
}

#[derive(Clone, Debug)]
enum State {
    Head(Lines),
    Body(Body),
    /// After a refusal, or a request that was the last: whatever comes is not looked at.
    Closed,
}

impl Default for State {
    fn default() -> State {
        State::Head(Lines::default())
    }
}

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// More bytes are needed.
    More,
    /// A head is complete: it is in the request given.
    Head,
    /// Data of the body: its places are in the pieces given, counted from the first byte given.
    Data,
    /// The body is complete, as is one that is empty.
    End,
    /// Nothing will come any more.
    Closed,
}

impl Requests {
    /// A connection of which nothing has come. A head is at most so long.
    pub fn new(head_bytes_max: usize) -> Requests {
        Requests { state: State::default(), head_bytes_max }
    }

    /// Looks at `bytes` and returns how many of them are done with, and what they mean. After an error, and after a
    /// request that does not keep its connection, the connection is closed: nothing is handed out any more.
    pub fn advance(
        &mut self,
        bytes: &[u8],
        request: &mut Request,
        pieces: &mut Pieces,
    ) -> Result<(usize, Event), Malformed> {
        let result = self.step(bytes, request, pieces);
        if result.is_err() {
            self.state = State::Closed;
        }
        result
    }

    /// The request has been answered. Returns whether another one may come: its body has been read, and it keeps its
    /// connection.
    pub fn finish(&mut self, request: &mut Request) -> bool {
        let ended = matches!(self.advance(&[], request, &mut Pieces::default()), Ok((0, Event::End)));
        ended && matches!(self.state, State::Head(_))
    }

    /// The body that is being read, from its head to its end.
    pub fn body(&self) -> Option<&Body> {
        match &self.state {
            State::Body(body) => Some(body),
            _ => None,
        }
    }

    fn step(
        &mut self,
        bytes: &[u8],
        request: &mut Request,
        pieces: &mut Pieces,
    ) -> Result<(usize, Event), Malformed> {
        pieces.clear();
        match &mut self.state {
            State::Closed => Ok((bytes.len(), Event::Closed)),
            State::Head(lines) => {
                let Some(place) = lines.scan(bytes, self.head_bytes_max)? else {
                    return Ok((0, Event::More));
                };
                request.parse(&bytes[place.clone()])?;
                self.state = State::Body(Body::new(request.framing));
                Ok((place.end, Event::Head))
            }
            State::Body(body) if body.is_done() => {
                self.state = match request.keep_alive {
                    true => State::default(),
                    false => State::Closed,
                };
                Ok((0, Event::End))
            }
            State::Body(body) => {
                let consumed = body.decode(bytes, pieces)?;
                match pieces.is_empty() && !body.is_done() {
                    true => Ok((consumed, Event::More)),
                    false => Ok((consumed, Event::Data)),
                }
            }
        }
    }
}
