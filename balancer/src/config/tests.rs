use expect_test::{Expect, expect};

use super::*;

fn resolved(text: &str) -> Result<Config, Error> {
    resolve(Flags::default(), parse("config.yaml", text)?)
}

fn refused(text: &str, want: Expect) {
    want.assert_eq(&resolved(text).expect_err("it must be refused").to_string());
}

#[test]
fn the_original_file_is_understood() {
    let config = resolved(
        "
port: 8080
strategy: least_connections
serviceRegistryURL: http://localhost:8081/api/v1/services
serviceRegistryType: HTTP
healthCheckInterval: 1m30s
backendHealthPath: /actuator/health
healthCheckTimeout: 300ms
",
    )
    .expect("it is good");
    assert_eq!(config.listeners[0].address.to_string(), "0.0.0.0:8080");
    assert_eq!(config.picking.strategy, Strategy::LeastConnections);
    assert_eq!(config.registry, ["http://localhost:8081"]);
    assert_eq!(config.health.interval, Duration::from_secs(90));
    assert_eq!(config.health.health_path, "/actuator/health");
    assert_eq!(config.probe_timeout, Duration::from_millis(300));
}

#[test]
fn nothing_at_all_is_a_configuration() {
    for text in ["", "\n# only a comment\n", "port: 8080"] {
        let config = resolved(text).expect("it is good");
        assert_eq!(
            (config.listeners[0].address.port(), config.picking.strategy),
            (8080, Strategy::RoundRobin)
        );
        assert_eq!(config.probe_statuses, [200]);
        assert!(config.workers >= 2);
    }
}

#[test]
fn one_url_a_list_and_a_comma_list_name_registries() {
    let urls = |text: &str| resolved(text).expect("it is good").registry;
    assert_eq!(
        urls("serviceRegistryURL: localhost:9091\nserviceRegistryType: grpc"),
        ["http://localhost:9091"]
    );
    let two = ["http://a:1", "http://b:2"];
    assert_eq!(urls("serviceRegistryURL: http://a:1, http://b:2/"), two);
    assert_eq!(urls("serviceRegistryURL: [\"http://a:1\", \"b:2\"]"), two);
    assert_eq!(urls("serviceRegistryURL:\n  - a:1\n  - http://b:2"), two);
}

#[test]
fn flags_override_the_file() {
    let file = parse("f", "port: 1\nstrategy: sticky_sessions\nname: file").expect("it is good");
    let flags = Flags { port: Some(2), registry: Some(vec!["x:1".into()]), ..Flags::default() };
    let config = resolve(flags, file).expect("it is good");
    assert_eq!((config.listeners[0].address.port(), config.picking.strategy), (2, Strategy::StickySessions));
    assert_eq!((config.name.as_str(), config.registry[0].as_str()), ("file", "http://x:1"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    refused(
        "port: 8080\nstratgy: round_robin\n",
        expect![[r#"config.yaml:2:1: unknown key "stratgy", did you mean "strategy"?"#]],
    );
    refused(
        "port: 8080\nbanana: 1\n",
        expect![[
            r#"config.yaml:2:1: unknown key "banana"; known are port, strategy, serviceRegistryURL, serviceRegistryType, healthCheckInterval, backendHealthPath, healthCheckTimeout, host, listeners, admin, name, workers, stateDir, healthCheckRise, healthCheckFall, healthyStatuses, headerTimeout, keepAliveTimeout, connectTimeout, responseTimeout, bodyIdleTimeout, tunnelIdleTimeout, drainGrace, maxConnections, accessLog, healthCheckType, hashOn, hashBalanceFactor, stickySecret, zone, zoneHealthyMin, slowStart, outlierDetection, maxRequestsPerEndpoint, queue, tracing, debugHeaders, serverTiming, routes"#
        ]],
    );
    refused(
        "strategy: roundrobin\n",
        expect![[r#"config.yaml:1:11: unknown value "roundrobin", did you mean "round_robin"?"#]],
    );
    refused("port: 99999\n", expect!["config.yaml:1:7: invalid u16"]);
    refused(
        "healthCheckInterval: 5\n",
        expect![[r#"config.yaml:1:22: duration "5" has no unit; write it like 5s or 5ms"#]],
    );
    refused("healthCheckInterval: 0s\n", expect!["healthCheckInterval must be longer than 0"]);
    refused(
        "serviceRegistryType: soap\n",
        expect![[r#"config.yaml:1:22: serviceRegistryType is http or grpc, not "soap""#]],
    );
    refused(
        "serviceRegistryURL: ftp://x\n",
        expect![[r#""ftp://x" is not a registry URL; write http://host:port"#]],
    );
    refused("serviceRegistryURL: []\n", expect!["serviceRegistryURL names no registry"]);
    refused(
        "listeners: [{address: 127.0.0.1, tls: {certificates: []}}]\n",
        expect!["config.yaml:1:23: invalid socket address syntax"],
    );
    refused(
        "listeners:\n- address: 127.0.0.1:1\n  tls: {certificate: a}\n",
        expect![[r#"config.yaml:3:9: unknown key "certificate", did you mean "certificates"?"#]],
    );
    refused(
        "listeners: [{address: '127.0.0.1:1', tls: {certificates: []}}]\n",
        expect!["listeners: 127.0.0.1:1: tls needs a certificate"],
    );
    refused(
        "listeners: [{address: '127.0.0.1:1'}, {address: '127.0.0.1:1'}]\n",
        expect!["listeners: 127.0.0.1:1 is there twice"],
    );
    refused(
        "port: 1\nlisteners: [{address: '127.0.0.1:1'}]\n",
        expect!["listeners says where requests arrive, and so does port or host: leave one out"],
    );
    refused(
        "listeners: [{address: '127.0.0.1:1', proxyProtocolFrom: [10.0.0.1]}]\n",
        expect![
            "listeners: 127.0.0.1:1: proxyProtocolFrom says whose headers count, but proxyProtocol is not true"
        ],
    );
    refused("healthyStatuses: [700]\n", expect!["healthyStatuses must be from 100 to 599, not 700"]);
    refused("port: [\n", expect!["config.yaml:1:7: expected string scalar"]);
}

#[test]
fn who_gets_a_request_can_be_told() {
    let config = resolved(
        "
healthCheckType: GRPC
strategy: consistent_hash
hashOn: header:X-Cart
hashBalanceFactor: 125
stickySecret: [\"0123456789abcdef\", \"fedcba9876543210\"]
zone: a
zoneHealthyMin: 50
slowStart: 30s
maxRequestsPerEndpoint: 8
queue: {size: 20, timeout: 300ms}
outlierDetection:
  window: 30s
  failures: 0
  failureShare: 20
  consecutiveFailures: 7
  gatewayErrors: true
  baseEjection: 10s
  maxEjection: 5m
  maxEjected: 30
  panicThreshold: 40
",
    )
    .expect("it is good");
    assert_eq!(config.probe_method, Probe::Grpc);
    let picking = &config.picking;
    assert_eq!(picking.hash_on, picker::HashOn::Header("x-cart".into()));
    assert_eq!((picking.balance_percent, picking.requests_max, picking.queue.size), (125, 8, 20));
    assert!(picking.signer.is_some() && config.limits.gateway_failures);
    let (health, outlier) = (&config.health, &config.health.outlier);
    assert_eq!((health.slow_start, outlier.window), (Duration::from_secs(30), Duration::from_secs(30)));
    assert_eq!((outlier.failures_min, outlier.in_a_row_max), (None, Some(7)));
    assert_eq!((outlier.base, outlier.max), (Duration::from_secs(10), Duration::from_secs(300)));
    assert_eq!((outlier.ejected_max_percent, health.rules.panic_percent), (30, 40));
    assert_eq!(health.rules.zones.as_ref().map(|z| (&*z.own, z.fit_min_percent)), Some(("a", 50)));
}

#[test]
fn what_cannot_be_about_picking_is_refused() {
    refused(
        "hashOn: x-cart\n",
        expect![[r#"config.yaml:1:9: hashOn is clientIp, header:NAME or cookie:NAME, not "x-cart""#]],
    );
    refused(
        "healthCheckType: icmp\n",
        expect![[r#"config.yaml:1:18: healthCheckType is http, tcp or grpc, not "icmp""#]],
    );
    refused(
        "hashBalanceFactor: 80\n",
        expect!["hashBalanceFactor, unless it is 0, must be from 101 to 1000, not 80"],
    );
    refused(
        "stickySecret: short\n",
        expect!["stickySecret: a secret has at least 16 bytes, not 5; try: openssl rand -hex 32"],
    );
    refused(
        "queue: {size: 5}\n",
        expect!["queue needs maxRequestsPerEndpoint: without a limit nothing ever waits"],
    );
    refused(
        "outlierDetection: {panic: 5}\n",
        expect![[
            r#"config.yaml:1:20: unknown key "panic"; known are enabled, window, failures, failureShare, consecutiveFailures, gatewayErrors, baseEjection, maxEjection, maxEjected, panicThreshold"#
        ]],
    );
    refused(
        "outlierDetection: {window: 90s}\n",
        expect!["outlierDetection.window must be whole seconds from 1s to 60s"],
    );
}

#[test]
fn flags_parse() {
    let args = <Args as clap::Parser>::try_parse_from([
        "balancer",
        "--port",
        "8070",
        "--registry",
        "http://a:1,http://b:2",
        "--strategy",
        "least_connections",
    ])
    .expect("they are good");
    assert_eq!(args.flags.registry.as_deref().map(<[String]>::len), Some(2));
    <Args as clap::CommandFactory>::command().debug_assert();
}
