//! What the environment says: the variables of the original SDK. The only reader of the environment.

use crate::{Client, Error, Instance, Transport};

#[cfg(test)]
mod tests;

impl Client {
    /// A client of `REGISTRY_URL`, one URL or several with commas. `REGISTRY_TYPE=http` speaks REST only; `grpc`,
    /// or none, is [`Transport::Auto`]. The client is named after `SERVICE_NAME`.
    pub fn from_env() -> Result<Client, Error> {
        client(&Env(process))
    }
}

impl Instance {
    /// The instance that `SERVICE_NAME`, `HOSTNAME` (or else the machine's own name) and `PORT` describe: its id
    /// is `SERVICE_NAME-HOSTNAME-PORT`, its URL `http://HOSTNAME:PORT`. `METRICS_PORT` goes into the metadata as
    /// `metrics_port`.
    pub fn from_env() -> Result<Instance, Error> {
        instance(&Env(process))
    }
}

fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A source of variables. An empty one counts as absent.
struct Env<F>(F);

impl<F: Fn(&str) -> Option<String>> Env<F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str, example: &str) -> Result<String, Error> {
        let missing = || Error::invalid(format!("{name} is not set: set it as in {name}={example}"));
        self.get(name).ok_or_else(missing)
    }
}

fn client<F: Fn(&str) -> Option<String>>(env: &Env<F>) -> Result<Client, Error> {
    let urls = env.required("REGISTRY_URL", "http://127.0.0.1:8081")?;
    let transport = match env.get("REGISTRY_TYPE").map(|kind| kind.to_ascii_lowercase()).as_deref() {
        None | Some("grpc") => Transport::Auto,
        Some("http") => Transport::Rest,
        Some(other) => return Err(Error::invalid(format!("REGISTRY_TYPE is {other:?}, not http or grpc"))),
    };
    let name = env.get("SERVICE_NAME").unwrap_or_else(|| "flux".to_owned());
    Client::builder([urls]).transport(transport).name(name).build()
}

fn instance<F: Fn(&str) -> Option<String>>(env: &Env<F>) -> Result<Instance, Error> {
    let service = env.required("SERVICE_NAME", "hello")?;
    let port = env.required("PORT", "8082")?;
    let port: u16 = port.parse().map_err(|_| Error::invalid(format!("PORT is {port:?}, not 1 to 65535")))?;
    let host = match env.get("HOSTNAME").or_else(machine) {
        Some(host) => host,
        None => env.required("HOSTNAME", "10.0.0.1")?,
    };
    let instance = Instance::new(service, host, port);
    Ok(match env.get("METRICS_PORT") {
        Some(metrics_port) => instance.meta("metrics_port", metrics_port),
        None => instance,
    })
}

/// The machine's name, as the kernel knows it: shells set `HOSTNAME` without exporting it.
fn machine() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
