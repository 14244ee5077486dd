//! Programs written against the original work unmodified, through every node.

use prost::Message;
use proto::legacy as pb;
use serde_json::{Value, json};

use super::node::Cluster;
use super::wire::{call, grpc};

const SERVICE: &str = "serviceregistry.ServiceRegistry";

/// What the Go SDK sends, byte for byte.
fn go_sdk_json(id: &str, service: &str) -> String {
    format!(
        r#"{{"id":"{id}","serviceName":"{service}","host":"127.0.0.1","port":8082,"url":"http://127.0.0.1:8082","healthPath":"/health"}}"#
    )
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array()
        .expect("an array")
        .iter()
        .map(|instance| instance["id"].as_str().expect("an id"))
        .collect()
}

/// The SDK's copy of the proto names the list `instances`: same bytes.
#[derive(Clone, PartialEq, Message)]
struct SdkResponse {
    #[prost(message, repeated, tag = "1")]
    instances: Vec<pb::GrpcServiceInstance>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_and_grpc_through_every_node() {
    let cluster = Cluster::start(3, &[]).await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        rest(&node.rest, &format!("rest-{index}")).await;
        rest(&node.grpc, &format!("rest-on-grpc-port-{index}")).await;
        over_grpc(&node.grpc, &format!("grpc-{index}")).await;
        over_grpc(&node.rest, &format!("grpc-on-rest-port-{index}")).await;
    }
    let node = &cluster.nodes[0].rest;
    actuator(node).await;
    hostless_is_listed_over_grpc(node).await;
    draining_is_left_out(node).await;
    odd_ids(node).await;
    gauges_follow_the_catalog(node).await;
}

async fn rest(node: &str, name: &str) {
    let base = format!("{node}/api/v1/services");
    let (id, service, other) = (format!("{name}-id"), format!("{name}-service"), format!("{name}-other"));

    let registered = call("POST", &format!("{base}/register"), &go_sdk_json(&id, &service)).await;
    assert_eq!(registered.status, 201, "{:?}", registered.json());
    assert_eq!(registered.json()["serviceName"], json!(service));
    assert_eq!(call("POST", &format!("{base}/register"), &go_sdk_json(&other, "other")).await.status, 201);

    for field in ["id", "serviceName", "url", "healthPath"] {
        for value in [None, Some(json!("")), Some(Value::Null)] {
            let mut body: Value = serde_json::from_str(&go_sdk_json("x", "y")).expect("valid");
            match value {
                None => drop(body.as_object_mut().expect("an object").remove(field)),
                Some(value) => body[field] = value,
            }
            let refused = call("POST", &format!("{base}/register"), &body.to_string()).await;
            assert_eq!(refused.status, 400);
            let detail = refused.json()["detail"].as_str().expect("a detail").to_owned();
            assert!(detail.contains(field), "{field}: {detail}");
        }
    }

    let beat = call("POST", &format!("{base}/heartbeat/{id}"), "").await;
    assert_eq!((beat.status, beat.body.len()), (200, 0));
    assert_eq!(call("POST", &format!("{base}/heartbeat/unknown"), "").await.status, 404);

    let list = call("GET", &base, "").await;
    assert_eq!(list.status, 200);
    let list = list.json();
    assert!(ids(&list).contains(&id.as_str()) && ids(&list).contains(&other.as_str()), "{list}");
    let instance = list.as_array().expect("an array").iter().find(|instance| instance["id"] == json!(id));
    assert_eq!(
        *instance.expect("it is listed"),
        json!({
            "id": id, "serviceName": service, "host": "127.0.0.1", "port": 8082, "url": "http://127.0.0.1:8082",
            "healthPath": "/health", "lastHeartbeat": null, "alive": true,
        })
    );
    let healthy = call("GET", &format!("{base}/{service}/healthy"), "").await;
    assert_eq!((healthy.status, ids(&healthy.json())), (200, vec![id.as_str()]));
    let none = call("GET", &format!("{base}/no-such-service/healthy"), "").await;
    assert_eq!((none.status, &none.body[..]), (200, &b"[]"[..]));

    for id in [&id, &other, &id] {
        assert_eq!(call("DELETE", &format!("{base}/deregister/{id}"), "").await.status, 204);
    }
    assert_eq!(call("POST", &format!("{base}/heartbeat/{id}"), "").await.status, 404);
    assert!(!ids(&call("GET", &base, "").await.json()).contains(&id.as_str()));
}

async fn over_grpc(node: &str, name: &str) {
    let (id, service) = (format!("{name}-id"), format!("{name}-service"));
    let instance = |id: &str, service: &str| pb::GrpcServiceInstance {
        id: id.to_owned(),
        service_name: service.to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 8082,
        url: "http://127.0.0.1:8082".to_owned(),
        health_path: "/health".to_owned(),
    };
    let register =
        |id: &str, service: &str| pb::RegisterServiceRequest { instance: Some(instance(id, service)) };

    assert_eq!(
        answer(node, "RegisterService", register(&id, &service)).await,
        (true, "Service registered successfully".to_owned())
    );
    let (status, _) =
        grpc(node, &format!("{SERVICE}/RegisterService"), &register("", &service).encode_to_vec()).await;
    assert_eq!(status, 3, "INVALID_ARGUMENT");

    let beat = |id: &str| pb::SendHeartbeatRequest { instance_id: id.to_owned() };
    assert_eq!(answer(node, "SendHeartbeat", beat(&id)).await, (true, "Heartbeat received.".to_owned()));
    assert!(!answer(node, "SendHeartbeat", beat("unknown")).await.0);

    // Field 1 filters, and both spellings of the answer read the same bytes.
    let request = pb::GetHealthyServicesRequest { instance_name: service.clone() };
    let (status, bytes) =
        grpc(node, &format!("{SERVICE}/GetHealthyServices"), &request.encode_to_vec()).await;
    assert_eq!(status, 0);
    let balancer = pb::GetHealthyServicesResponse::decode(bytes.clone()).expect("the balancer's spelling");
    let sdk = SdkResponse::decode(bytes).expect("the SDK's spelling");
    assert_eq!(balancer.services, vec![instance(&id, &service)]);
    assert_eq!(sdk.instances, balancer.services);
    let (_, all) = grpc(node, &format!("{SERVICE}/GetHealthyServices"), &[]).await;
    let all = SdkResponse::decode(all).expect("all services");
    assert!(all.instances.iter().any(|instance| instance.id == id));

    let gone = |id: &str| pb::DeregisterServiceRequest { instance_id: id.to_owned() };
    for _ in 0..2 {
        let expected = (true, "Service deregistered successfully".to_owned());
        assert_eq!(answer(node, "DeregisterService", gone(&id)).await, expected);
    }
    assert!(!answer(node, "SendHeartbeat", beat(&id)).await.0);
}

async fn answer(node: &str, call: &str, request: impl Message) -> (bool, String) {
    let (status, bytes) = grpc(node, &format!("{SERVICE}/{call}"), &request.encode_to_vec()).await;
    assert_eq!(status, 0, "{call}");
    let answer = pb::ServiceRegistryResponse::decode(bytes).expect("an answer");
    (answer.success, answer.message)
}

async fn actuator(node: &str) {
    for path in ["health", "info", "prometheus"] {
        assert_eq!(call("GET", &format!("{node}/actuator/{path}"), "").await.status, 200, "{path}");
    }
    for method in ["GET", "POST"] {
        assert_eq!(call(method, &format!("{node}/actuator/shutdown"), "").await.status, 404);
    }
}

async fn hostless_is_listed_over_grpc(node: &str) {
    let body = r#"{"id":"hostless","serviceName":"h","host":null,"url":"http://h:1","healthPath":"/h","unknown":{"a":[1]}}"#;
    let registered = call("POST", &format!("{node}/api/v1/services/register"), body).await;
    assert_eq!((registered.status, &registered.json()["port"]), (201, &json!(0)));
    let (status, bytes) = grpc(node, &format!("{SERVICE}/GetHealthyServices"), &[]).await;
    let list = SdkResponse::decode(bytes).expect("a list");
    assert!(
        status == 0
            && list.instances.iter().any(|instance| instance.id == "hostless" && instance.host.is_empty())
    );
}

async fn draining_is_left_out(node: &str) {
    let path = format!("{node}/v1/instances/hostless/status");
    for (status, listed) in [("DRAINING", false), ("MAINTENANCE", false), ("UP", true)] {
        assert_eq!(call("PUT", &path, &json!({ "status": status }).to_string()).await.status, 200);
        let list = call("GET", &format!("{node}/api/v1/services/h/healthy"), "").await;
        assert_eq!(ids(&list.json()).len(), usize::from(listed), "{status}");
    }
}

async fn odd_ids(node: &str) {
    let id = "a/b c?d#e%f+ä";
    let base = format!("{node}/api/v1/services");
    let body =
        json!({ "id": id, "serviceName": "odd/one", "url": "http://h:1", "healthPath": "/h" }).to_string();
    assert_eq!(call("POST", &format!("{base}/register"), &body).await.status, 201);
    assert!(answer(node, "SendHeartbeat", pb::SendHeartbeatRequest { instance_id: id.to_owned() }).await.0);
    let encoded = "a%2Fb%20c%3Fd%23e%25f+%C3%A4";
    assert_eq!(call("POST", &format!("{base}/heartbeat/{encoded}"), "").await.status, 200);
    let list = call("GET", &format!("{base}/odd%2Fone/healthy"), "").await;
    assert_eq!(ids(&list.json()), vec![id]);
    let got = call("GET", &format!("{node}/v1/instances/{encoded}"), "").await;
    assert_eq!(got.json()["instance"]["id"], json!(id));
    assert_eq!(call("DELETE", &format!("{base}/deregister/{encoded}"), "").await.status, 204);
    assert!(!answer(node, "SendHeartbeat", pb::SendHeartbeatRequest { instance_id: id.to_owned() }).await.0);
}

async fn gauges_follow_the_catalog(node: &str) {
    let series = r#"service_registry_instance_alive{instance_id="gauge-1",service_name="gauge"} 1"#;
    let body = go_sdk_json("gauge-1", "gauge");
    assert_eq!(call("POST", &format!("{node}/api/v1/services/register"), &body).await.status, 201);
    for path in ["metrics", "actuator/prometheus"] {
        let text =
            String::from_utf8(call("GET", &format!("{node}/{path}"), "").await.body.to_vec()).expect("text");
        assert!(text.contains(series), "{text}");
        assert!(text.contains("\nservice_registry_registered_services_total 2\n"), "{text}");
        assert!(text.contains("\nservice_registry_registered_services 2\n"), "{text}");
    }
    assert_eq!(call("DELETE", &format!("{node}/api/v1/services/deregister/gauge-1"), "").await.status, 204);
    let text =
        String::from_utf8(call("GET", &format!("{node}/metrics"), "").await.body.to_vec()).expect("text");
    assert!(!text.contains("gauge-1"), "{text}");
}
