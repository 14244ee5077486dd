//! How much each client has of something that a node has only so much of. A client is an address: it is all that
//! a connection says of itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts by client. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One, given back in the end.
#[derive(Debug)]
pub struct Place {
    clients: Clients,
    /// None for a caller without an address, who is not counted.
    client: Option<IpAddr>,
}

impl Clients {
    /// One more of `client`; none if it has `max` already.
    pub fn enter(&self, client: Option<IpAddr>, max: usize) -> Option<Place> {
        if let Some(client) = client {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(client).or_default();
            if *count >= max {
                return None;
            }
            *count += 1;
        }
        Some(Place { clients: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_places_and_gives_them_back() {
        let clients = Clients::default();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Some(ip.parse().expect("an address")));
        let held = [clients.enter(one, 2), clients.enter(one, 2)];
        assert!(held.iter().all(Option::is_some));
        assert!(clients.enter(one, 2).is_none());
        assert!(clients.enter(other, 2).is_some());
        drop(held);
        assert!(clients.enter(one, 2).is_some());
        assert!(clients.0.lock().expect("no panic").is_empty(), "nobody is remembered");
    }
}
