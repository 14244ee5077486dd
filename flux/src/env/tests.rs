use expect_test::{Expect, expect};

use super::*;

fn check(vars: &str, want: Expect) {
    let lookup = |name: &str| -> Option<String> {
        let var = vars.split_whitespace().find_map(|var| var.strip_prefix(name)?.strip_prefix('='));
        var.map(str::to_owned)
    };
    let env = Env(lookup);
    let client = match client(&env) {
        Ok(_) => "a client".to_owned(),
        Err(error) => error.to_string(),
    };
    let instance = match instance(&env) {
        Ok(i) => format!("{} at {} {:?}", i.id, i.url, i.metadata),
        Err(error) => error.to_string(),
    };
    want.assert_eq(&format!("{client}\n{instance}\n"));
}

#[test]
fn the_originals_variables_describe_client_and_instance() {
    check(
        "SERVICE_NAME=pay PORT=8082 METRICS_PORT=9092 HOSTNAME=h1 REGISTRY_URL=http://a:8081,http://b:8081 \
         REGISTRY_TYPE=GRPC",
        expect![[r#"
            a client
            pay-h1-8082 at http://h1:8082 {"metrics_port": "9092"}
        "#]],
    );
    check(
        "SERVICE_NAME=pay PORT=8082 HOSTNAME=h1 REGISTRY_URL=http://a:8081/api/v1/services REGISTRY_TYPE=http",
        expect![[r#"
            a client
            pay-h1-8082 at http://h1:8082 {}
        "#]],
    );
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    check(
        "PORT=8082 SERVICE_NAME= HOSTNAME=h1",
        expect![[r#"
            REGISTRY_URL is not set: set it as in REGISTRY_URL=http://127.0.0.1:8081
            SERVICE_NAME is not set: set it as in SERVICE_NAME=hello
        "#]],
    );
    check(
        "PORT=web SERVICE_NAME=pay REGISTRY_URL=http://a:8081 REGISTRY_TYPE=zookeeper",
        expect![[r#"
            REGISTRY_TYPE is "zookeeper", not http or grpc
            PORT is "web", not 1 to 65535
        "#]],
    );
}

#[test]
fn without_a_hostname_the_machine_is_asked() {
    let env = Env(|name: &str| match name {
        "SERVICE_NAME" => Some("pay".to_owned()),
        "PORT" => Some("80".to_owned()),
        _ => None,
    });
    let host = instance(&env).expect("the machine has a name").host;
    assert_eq!(Some(host), machine());
}
