use expect_test::expect;
use prometheus::{Encoder, TextEncoder};

use super::*;

/// The exposition is API: dashboards of the original query the first three.
#[test]
fn names_and_labels_are_those_promised() {
    let registry = Registry::new();
    let metrics = Metrics::new();
    metrics.expose(&registry).expect("the first client's");
    metrics.call(Operation::Register, Transport::Rest).done(true);
    metrics.call(Operation::List, Transport::Grpc).done(false);
    metrics.registrar_state.with_label_values(&["pay-1", "pay"]).set(1);
    metrics.watch_revision.with_label_values(&["pay"]).set(7);
    metrics.watch_connected.with_label_values(&["grpc"]).set(1);
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).expect("memory takes everything");
    let text = String::from_utf8(text).expect("the exposition is text");
    let timed = |line: &str| line.contains("_bucket{") || line.contains("_sum{");
    let shown: String = text.lines().filter(|line| !timed(line)).map(|line| format!("{line}\n")).collect();
    expect![[r##"
        # HELP flux_registrar_state 1 while the registration is acknowledged, else 0
        # TYPE flux_registrar_state gauge
        flux_registrar_state{instance_id="pay-1",service_name="pay"} 1
        # HELP flux_registry_call_duration_seconds Duration of calls to the registry, each attempt by itself
        # TYPE flux_registry_call_duration_seconds histogram
        flux_registry_call_duration_seconds_count{operation="get_healthy_services",protocol="grpc",status="failure"} 1
        flux_registry_call_duration_seconds_count{operation="register",protocol="http",status="success"} 1
        # HELP flux_registry_calls_total Calls to the registry, by outcome of each attempt
        # TYPE flux_registry_calls_total counter
        flux_registry_calls_total{operation="get_healthy_services",protocol="grpc",status="failure"} 1
        flux_registry_calls_total{operation="register",protocol="http",status="success"} 1
        # HELP flux_watch_connected Watches that are connected, by protocol
        # TYPE flux_watch_connected gauge
        flux_watch_connected{transport="grpc"} 1
        # HELP flux_watch_revision Revision that the watch holds
        # TYPE flux_watch_revision gauge
        flux_watch_revision{service="pay"} 7
    "##]].assert_eq(&shown);
}

#[test]
fn a_second_client_in_one_registry_is_refused_not_a_panic() {
    let registry = Registry::new();
    Metrics::new().expose(&registry).expect("the first client's");
    let error = Metrics::new().expose(&registry).expect_err("they are there already");
    assert!(error.to_string().contains("clone one client"), "{error}");
}
