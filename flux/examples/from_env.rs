//! Registers what the environment describes:
//! `SERVICE_NAME=hello PORT=8082 REGISTRY_URL=http://127.0.0.1:8081 cargo run -p flux --example from_env`.

use flux::{Client, Instance, ShutdownOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let registration = Client::from_env()?.register(Instance::from_env()?).await?;
    println!("registered {}", registration.instance().id);
    tokio::signal::ctrl_c().await?;
    Ok(registration.shutdown(ShutdownOptions::default()).await?)
}
