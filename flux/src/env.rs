//! What the environment says: the variables of the original SDK.

use crate::{Client, Error, Instance};

impl Client {
    /// A client of `REGISTRY_URL` (one URL, or several with commas), by `REGISTRY_TYPE` (`http` or `grpc`;
    /// absent: gRPC first, REST when it cannot connect).
    pub fn from_env() -> Result<Client, Error> {
        let urls = required("REGISTRY_URL")?;
        Client::connect(urls.split(',').map(str::trim))
    }
}

impl Instance {
    /// The instance that `SERVICE_NAME`, `HOSTNAME` and `PORT` describe, with the id
    /// `SERVICE_NAME-HOSTNAME-PORT`.
    pub fn from_env() -> Result<Instance, Error> {
        let port = required("PORT")?;
        let port = port.parse().map_err(|_| Error::invalid(format!("PORT is not a port: {port:?}")))?;
        Ok(Instance::new(required("SERVICE_NAME")?, required("HOSTNAME")?, port))
    }
}

fn required(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|_| Error::invalid(format!("environment variable {name} is not set")))
}
