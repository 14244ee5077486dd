//! Who runs a service, now and from now on: `cargo run -p flux --example discover -- hello`.

use flux::{Client, View};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let service = std::env::args().nth(1).unwrap_or_else(|| "hello".to_owned());
    let client = Client::connect(["http://127.0.0.1:8081", "http://127.0.0.1:8181"])?;

    // Once, and certain to be current.
    let now = client.list(Some(&service)).await?;
    println!("revision {}: {} instances of {service}", now.revision, now.value.len());

    // From now on: while the registry is away, the view stays as it is.
    let mut watch = client.watch(Some(&service));
    let mut view = View::default();
    loop {
        if view.apply(&watch.next().await) {
            let urls: Vec<&str> = view.instances().values().map(|i| i.url.as_str()).collect();
            println!("revision {}: {}", view.revision(), urls.join(" "));
        }
    }
}
