//! One GET with a deadline. Each call has a connection of its own: what is asked about may just have died.

use std::{io, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Uri, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Answers beyond this are refused: status pages and metrics are smaller.
const BODY_BYTES_MAX: usize = 8 << 20;

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        self.status == 200
    }

    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Gets `url`, an `http://host:port/path`, or fails when `within` has passed.
pub(crate) async fn get(url: &str, within: Duration) -> io::Result<Answer> {
    tokio::time::timeout(within, exchange(url)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn exchange(url: &str) -> io::Result<Answer> {
    let uri: Uri = url.parse().map_err(invalid)?;
    let authority = uri.authority().ok_or(io::ErrorKind::InvalidInput)?.clone();
    let stream = TcpStream::connect(authority.as_str()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let request =
        Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new()).map_err(invalid)?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        let body =
            Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await.map_err(io::Error::other)?;
        Ok(Answer { status, body: body.to_bytes() })
    };
    // The connection ends by itself once the answer is whole and the sender dropped, so the answer decides.
    let mut connection = std::pin::pin!(connection);
    let mut ask = std::pin::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        ended = &mut connection => {
            ended.map_err(broken)?;
            ask.await
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn broken(error: hyper::Error) -> io::Error {
    io::Error::other(error)
}
