//! The load and the backends, as cheap as can be: what they cost is paid by everybody alike.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

/// No answer takes as long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a small body.
pub(super) const SMALL: usize = 1 << 10;
/// Bytes of a large one.
pub(super) const LARGE: usize = 64 << 10;

/// What is asked for, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub what: &'static str,
    pub connections: usize,
    pub posts: bool,
    pub answer_bytes: usize,
    /// A connection for each request.
    pub closes: bool,
}

impl Work {
    fn request(&self) -> Vec<u8> {
        let path = if self.answer_bytes == LARGE { "/large" } else { "/small" };
        let close = if self.closes { "connection: close\r\n" } else { "" };
        match self.posts {
            false => format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{close}\r\n").into_bytes(),
            true => format!(
                "POST {path} HTTP/1.1\r\nhost: bench\r\n{close}content-length: {SMALL}\r\n\r\n{}",
                "x".repeat(SMALL)
            )
            .into_bytes(),
        }
    }
}

/// One connection to whoever is measured.
struct Caller {
    address: SocketAddr,
    request: Vec<u8>,
    answer_bytes: usize,
    closes: bool,
    stream: Option<TcpStream>,
    bytes: Vec<u8>,
}

impl Caller {
    fn new(address: SocketAddr, work: &Work) -> Caller {
        let (request, answer_bytes, closes) = (work.request(), work.answer_bytes, work.closes);
        Caller { address, request, answer_bytes, closes, stream: None, bytes: vec![0; 96 << 10] }
    }

    /// Asks once and reads all of the answer.
    async fn call(&mut self) -> Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(&self.request).await?;
        let (mut have, mut want) = (0, usize::MAX);
        while have < want {
            if have == self.bytes.len() {
                bail!("an answer of more than {have} bytes");
            }
            let n = stream.read(&mut self.bytes[have..]).await?;
            if n == 0 {
                bail!("the connection was closed within an answer");
            }
            have += n;
            if want == usize::MAX
                && let Some(head) = self.bytes[..have].windows(4).position(|w| w == b"\r\n\r\n")
            {
                if !self.bytes.starts_with(b"HTTP/1.1 200 ") {
                    bail!("answered {:?}", String::from_utf8_lossy(&self.bytes[..head.min(100)]));
                }
                want = head + 4 + self.answer_bytes;
            }
        }
        if !self.closes {
            self.stream = Some(stream);
        }
        Ok(())
    }
}

/// Asks once, on a connection of its own.
pub(super) async fn once(address: SocketAddr) -> Result<()> {
    resting(address).await.map(drop)
}

/// A connection that has served a request.
pub(super) async fn resting(address: SocketAddr) -> Result<TcpStream> {
    let work = Work { what: "", connections: 1, posts: false, answer_bytes: SMALL, closes: false };
    let mut caller = Caller::new(address, &work);
    tokio::time::timeout(PATIENCE, caller.call()).await.context("no answer")??;
    caller.stream.context("the connection was not kept")
}

/// What a window has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Requests answered.
    pub answered: u64,
    /// How long each took, in milliseconds; in no order.
    pub millis: Vec<f64>,
}

/// Every connection asks as soon as it has been answered, for so long; fails if any request does.
pub(super) async fn closed_loop(address: SocketAddr, work: &Work, window: Duration) -> Result<Seen> {
    let end = Instant::now() + window;
    let mut callers = JoinSet::new();
    for _ in 0..work.connections {
        let mut caller = Caller::new(address, work);
        callers.spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                caller.call().await?;
                answered += 1;
            }
            anyhow::Ok(Seen { answered, millis: Vec::new() })
        });
    }
    gather(callers, work.what, window).await
}

/// The same over HTTP/2, which the proxy takes without being asked first: so many requests at once on each connection.
pub(super) async fn closed_loop_http2(
    address: SocketAddr,
    work: &Work,
    streams: usize,
    window: Duration,
) -> Result<Seen> {
    let end = Instant::now() + window;
    let mut callers = JoinSet::new();
    for _ in 0..work.connections {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.context("no HTTP/2")?;
        let connection = tokio::spawn(connection);
        let answer_bytes = work.answer_bytes;
        callers.spawn(async move {
            let each = (0..streams).map(|_| stream_loop(sender.clone(), address, answer_bytes, end));
            let answered = try_join_all(each).await?.into_iter().sum();
            connection.abort();
            anyhow::Ok(Seen { answered, millis: Vec::new() })
        });
    }
    gather(callers, work.what, window).await
}

async fn stream_loop(
    mut sender: hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    answer_bytes: usize,
    end: Instant,
) -> Result<u64> {
    let mut answered = 0;
    while Instant::now() < end {
        let request = hyper::Request::get(format!("http://{address}/small")).body(Empty::new())?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        if response.status() != hyper::StatusCode::OK {
            bail!("answered {}", response.status());
        }
        let body = response.into_body().collect().await?.to_bytes();
        if body.len() != answer_bytes {
            bail!("answered {} bytes instead of {answer_bytes}", body.len());
        }
        answered += 1;
    }
    Ok(answered)
}

/// Requests at a fixed rate over `connections`, whose turns are spread evenly; each waits for its turn, and its time
/// counts from there.
pub(super) async fn fixed_rate(
    address: SocketAddr,
    work: &Work,
    rate: u32,
    window: Duration,
) -> Result<Seen> {
    let between = Duration::from_secs(1) * u32::try_from(work.connections)? / rate;
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for nth in 0..work.connections {
        let mut caller = Caller::new(address, work);
        let first = begin + between * u32::try_from(nth)? / u32::try_from(work.connections)?;
        callers.spawn(async move {
            let (mut turn, mut seen) = (first, Seen::default());
            caller.call().await?;
            while turn < begin + window {
                tokio::time::sleep_until(turn).await;
                caller.call().await?;
                seen.answered += 1;
                seen.millis.push(turn.elapsed().as_secs_f64() * 1e3);
                turn += between;
            }
            Ok(seen)
        });
    }
    gather(callers, work.what, window).await
}

async fn gather(mut callers: JoinSet<Result<Seen>>, what: &str, window: Duration) -> Result<Seen> {
    let mut whole = Seen::default();
    let all = async {
        while let Some(seen) = callers.join_next().await {
            let seen = seen
                .context("a caller has panicked")?
                .with_context(|| format!("{what}: a request failed"))?;
            whole.answered += seen.answered;
            whole.millis.extend(seen.millis);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(window + PATIENCE, all).await.with_context(|| format!("{what}: no answer"))??;
    Ok(whole)
}

/// A backend in this process: it answers each request with a small or a large body. Ends when dropped.
#[derive(Debug)]
pub(super) struct Backend {
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Backend {
    pub async fn start() -> Result<Backend> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answer = |len: usize| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {len}\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n{}",
                "x".repeat(len)
            )
            .into_bytes()
        };
        let (small, large): (&'static [u8], &'static [u8]) = (answer(SMALL).leak(), answer(LARGE).leak());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream.set_nodelay(true));
                tokio::spawn(serve(stream, small, large));
            }
        });
        Ok(Backend { address, task: task.abort_handle() })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests come one at a time, and bodies are of [`SMALL`] bytes.
async fn serve(mut stream: TcpStream, small: &'static [u8], large: &'static [u8]) {
    let mut bytes = vec![0; 8 << 10];
    let mut have = 0;
    while let Ok(n @ 1..) = stream.read(&mut bytes[have..]).await {
        have += n;
        let Some(head) = bytes[..have].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let body = if bytes.starts_with(b"POST ") { SMALL } else { 0 };
        if have < head + 4 + body {
            continue;
        }
        let answer = if bytes[..head].windows(6).any(|w| w == b"/large") { large } else { small };
        have = 0;
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}
