//! The SDK against a registry of a few lines, over real connections that can be cut, swallowed, or closed to
//! HTTP/2 alone. What the real registry does with these calls is tested where both meet.

mod cli;
mod fake;
mod middlebox;
mod pipeline;
mod registration;
mod transport;
mod watch;

use std::future::Future;
use std::time::Duration;

/// Far beyond anything a test waits for: only a broken one gets here.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for `future`, and fails with `what` if it does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}
