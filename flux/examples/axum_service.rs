//! A web service that registers itself: `cargo run -p flux --example axum_service`, then
//! `cargo registryctl instances hello`. Ctrl-C leaves without failing a request.

use axum::{Router, routing::get};
use flux::{Client, Instance, ShutdownOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let app = Router::new()
        .route("/", get(move || async move { format!("hello from {port}\n") }))
        .route("/health", get(|| async { "ok" }));

    // The listener is bound, so requests may come as soon as the registry knows.
    let client = Client::connect(["http://127.0.0.1:8081", "http://127.0.0.1:8181"])?;
    let hello = Instance::new("hello", "127.0.0.1", port).health_path("/health");
    let registration = client.register(hello).await?;
    println!("registered {} at revision {}", registration.instance().id, registration.reg_rev());

    let leave = async move {
        let _ = tokio::signal::ctrl_c().await;
        // Balancers stop sending first, then the server stops taking.
        if let Err(error) = registration.shutdown(ShutdownOptions::default()).await {
            eprintln!("not deregistered, the lease will expire: {error}");
        }
    };
    Ok(axum::serve(listener, app).with_graceful_shutdown(leave).await?)
}
