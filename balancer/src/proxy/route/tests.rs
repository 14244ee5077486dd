use super::*;

fn routed(method: &str, path: &str) -> Routed {
    route(&method.parse().unwrap(), path)
}

#[test]
fn own_metrics_are_read_and_nothing_else() {
    assert_eq!(routed("GET", "/metrics"), Routed::OwnMetrics);
    assert_eq!(routed("HEAD", "/metrics"), Routed::OwnMetrics);
    assert_eq!(routed("POST", "/metrics"), Routed::Pool("/"));
    assert_eq!(routed("GET", "/metrics/"), Routed::Pool("/"));
    assert_eq!(routed("GET", "/api/metrics"), Routed::Pool("/"));
}

#[test]
fn everything_else_is_one_route() {
    assert_eq!(routed("GET", "/"), Routed::Pool("/"));
    assert_eq!(routed("BREW", "/any/path"), Routed::Pool("/"));
    assert_eq!(routed("OPTIONS", "*"), Routed::Pool("/"));
}

#[test]
fn a_tunnel_to_anywhere_is_not_offered() {
    assert_eq!(routed("CONNECT", "host:443"), Routed::Unsupported);
}
