use std::pin::Pin;
use std::task::Waker;

use super::*;
use crate::config::Limits;
use crate::pool::{Address, Endpoint};
use crate::proxy::buffer::Buffers;
use crate::proxy::upstream::Upstreams;

/// Takes whatever is written and may not be rid of it, as TLS does when the kernel takes no more.
#[derive(Default)]
struct Lagging {
    taken: Vec<u8>,
    stuck: bool,
}

impl AsyncWrite for Lagging {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.taken.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stuck { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Between two polls other requests write their heads where this one's stood.
#[tokio::test]
async fn a_head_leaves_with_the_first_poll_also_when_what_was_before_it_is_stuck() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let limits = Limits::default();
    let upstreams = Upstreams::new(&limits, Buffers::new(limits.buffer_bytes_max));
    let mut link = upstreams.connect(&Endpoint::new(1, "e", "s", address)).await.unwrap();
    let (mut output, mut stream) = (Output::default(), Lagging { stuck: true, ..Lagging::default() });
    let mut download = Download::new(Framing::Empty, false);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(download.poll(&mut cx, (&mut output, &mut stream), &mut link, b"its own").is_pending());
    stream.stuck = false;
    assert!(download.poll(&mut cx, (&mut output, &mut stream), &mut link, b"another's").is_ready());
    assert_eq!(String::from_utf8_lossy(&stream.taken), "its own");
}
