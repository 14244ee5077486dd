use expect_test::{Expect, expect};

use crate::config::{Config, Flags, parse, resolve};

fn config(text: &str) -> Result<Config, crate::config::Error> {
    resolve(Flags::default(), parse("c.yaml", text)?)
}

fn lines(text: &str, want: Expect) {
    let config = config(text).expect("it is good");
    let warnings = config.warnings.iter().map(|w| format!("warning: {w}"));
    want.assert_eq(&config.route_lines.iter().cloned().chain(warnings).collect::<Vec<_>>().join("\n"));
}

fn refused(text: &str, want: Expect) {
    want.assert_eq(&config(text).expect_err("it must be refused").to_string());
}

/// One route with these lines.
fn refused_route(lines: &str, want: Expect) {
    let body: String =
        lines.lines().map(|l| format!("    {}\n", l.strip_prefix("        ").unwrap_or(l))).collect();
    refused(&format!("routes:\n  - name: r\n{body}"), want);
}

#[test]
fn what_routes_come_to_is_told() {
    lines(
        r#"
routes:
  - name: orders
    match:
      host: [shop.example.com, "*.shop.example.com"]
      path: /orders
      method: [GET, POST]
      headers: { X-Beta: 1, X-Any: { present: true } }
      query: { debug: { regex: "[0-9]+" } }
    split:
      - { service: orders, version: v1, weight: 90 }
      - { service: orders, version: v2, weight: 10 }
    strategy: least_request
    timeouts: { response: 5s, bodyIdle: 10s, total: 1m }
    retry: { attempts: 2, on: connect }
    rateLimit: { requests: 100, per: 1s, header: X-Api-Key }
    rewrite: { stripPrefix: true, host: orders.internal:8080 }
    requestHeaders: { set: { X-Env: prod }, remove: [X-Debug] }
    responseHeaders: { add: { X-Served: "yes" } }
  - match: { path: [{ exact: /old }, { regex: "/o[0-9]+" }] }
    redirect: { to: "https://new.example.com/x?y=1", status: 301 }
  - match: { path: /up }
    respond: { status: 204 }
  - service: "*"
  - name: dead
    match: { path: /up/ }
    service: web
"#,
        expect![[r#"
            orders: GET POST shop.example.com/ *.shop.example.com/ /orders x-any x-beta=1 ?debug~[0-9]+ -> orders v1 (90) + orders v2 (10), least_request, 100 requests in 1s per x-api-key
            /old: =/old ~/o[0-9]+ -> redirect 301
            /up: /up -> respond 204
            /: everything -> all services, round_robin
            dead: /up -> web, round_robin
            warning: route "dead" never takes a request: "/up" takes them all"#]],
    );
}

#[test]
fn a_file_without_routes_leads_everywhere() {
    let routes = config("port: 1").expect("it is good").routes;
    assert!(!routes.are_many() && routes.all().len() == 1 && &*routes.get(0).name == "/");
    let routes = config("routes: []").expect("it is good").routes;
    assert!(routes.are_many() && &*routes.get(routes.nowhere()).name == "none");
}

#[test]
fn unknown_keys_are_named_however_deep() {
    refused(
        "routes:\n  - nmae: x\n    service: a\n",
        expect![[
            r#"c.yaml:2:5: unknown key "nmae"; known are name, match, service, version, split, redirect, respond, rewrite, requestHeaders, responseHeaders, strategy, timeouts, retry, rateLimit"#
        ]],
    );
    refused(
        "routes:\n  - match:\n      pth: /x\n    service: a\n",
        expect![[r#"c.yaml:3:7: unknown key "pth", did you mean "path"?"#]],
    );
    refused(
        "routes:\n  - match:\n      path:\n        exat: /x\n    service: a\n",
        expect![[r#"c.yaml:4:9: unknown key "exat", did you mean "exact"?"#]],
    );
    refused(
        "routes:\n  - split:\n      - service: a\n        wieght: 1\n",
        expect![[r#"c.yaml:4:9: unknown key "wieght", did you mean "weight"?"#]],
    );
    refused(
        "routes:\n  - service: a\n    strategy: least_requests\n",
        expect![[r#"c.yaml:3:15: unknown value "least_requests", did you mean "least_request"?"#]],
    );
    refused(
        "routes:\n  - service: a\n    retry:\n      on: [conect]\n",
        expect![[r#"c.yaml:4:12: unknown value "conect", did you mean "connect"?"#]],
    );
    refused(
        "routes:\n  - service: a\n    timeouts: { response: 5 }\n",
        expect![[r#"c.yaml:3:27: duration "5" has no unit; write it like 5s or 5ms"#]],
    );
    refused("routes:\n  - service: [a]\n", expect!["c.yaml:2:14: expected string scalar"]);
    refused(
        "routes:\n  - rateLimit: { per: 1s }\n    service: a\n",
        expect!["c.yaml:2:18: missing field `requests`"],
    );
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    refused_route(
        "match: { path: /a }",
        expect![[
            r#"c.yaml:2:5: a route says what becomes of its requests: service ("*" for all instances), split, redirect or respond"#
        ]],
    );
    refused_route(
        "service: a\nredirect: { scheme: https }",
        expect!["c.yaml:2:5: a route has only one of service, split, redirect and respond"],
    );
    refused_route(
        "version: v1\nrespond: { status: 200 }",
        expect!["c.yaml:3:14: version says which instances of a service; name the service, too"],
    );
    refused_route(
        "split:\n  - service: a\n  - service: a\n",
        expect![[r#"c.yaml:5:18: "a" stands twice in one split; add its weights up"#]],
    );
    refused_route(
        "split: [{ service: a, weight: 0 }, { service: b, weight: 0 }]",
        expect!["c.yaml:3:12: all weights are 0, so nobody would take a request; give one a weight"],
    );
    refused_route("split: []", expect!["c.yaml:3:12: an empty list; leave the key out to take all"]);
    refused_route(
        "match: { path: { regex: \"/a(\" } }\nservice: a",
        expect![[r#"c.yaml:3:20: regex "/a(": unclosed group"#]],
    );
    refused_route(
        "match: { path: a }\nservice: a",
        expect![[r#"c.yaml:3:20: path "a": a path begins with a slash"#]],
    );
    refused_route(
        "match: { path: \"/a/../b\" }\nservice: a",
        expect![[
            r#"c.yaml:3:20: path "/a/../b": a path is written without repeated slashes and dot segments, which are resolved before"#
        ]],
    );
    refused_route(
        "match: { path: \"/a%2fb\" }\nservice: a",
        expect![[
            r#"c.yaml:3:20: path "/a%2fb": a path cannot have ; or \ or an encoded slash or percent sign, which servers read differently"#
        ]],
    );
    refused_route(
        "match: { host: \"a.*.com\" }\nservice: a",
        expect![[
            r#"c.yaml:3:20: host "a.*.com": a wildcard stands for whole labels in front: *.example.com"#
        ]],
    );
    refused_route(
        "match: { host: \"a.com:80\" }\nservice: a",
        expect![[r#"c.yaml:3:20: host "a.com:80": a host is matched without its port"#]],
    );
    refused_route(
        "match: { host: [] }\nservice: a",
        expect!["c.yaml:3:20: an empty list; leave the key out to take all"],
    );
    refused_route(
        "match: { method: get }\nservice: a",
        expect![[r#"c.yaml:3:22: methods are told apart by case; did you mean "GET"?"#]],
    );
    refused_route(
        "match: { headers: { \"x y\": 1 } }\nservice: a",
        expect![[r#"c.yaml:3:23: "x y" is no header's name"#]],
    );
    refused_route(
        "match: { headers: { Host: a } }\nservice: a",
        expect!["c.yaml:3:23: the host is matched by the key host"],
    );
    refused_route(
        "match: { headers: { X: 1.0 } }\nservice: a",
        expect!["c.yaml:3:28: 1 can be written in many ways; put it into quotes"],
    );
    refused_route(
        "service: a\nrewrite: { stripPrefix: true }",
        expect![
            "c.yaml:4:14: stripPrefix replaces the prefix that match.path names, and only prefixes of as many segments"
        ],
    );
    refused_route(
        "match: { path: [/a, /b/c] }\nservice: a\nrewrite: { replacePrefix: /x }",
        expect![
            "c.yaml:5:31: replacePrefix replaces the prefix that match.path names, and only prefixes of as many segments"
        ],
    );
    refused_route(
        "service: a\nrequestHeaders: { set: { Connection: close } }",
        expect![
            "c.yaml:4:28: connection belongs to the connection or says where a request comes from; a route cannot change it"
        ],
    );
    refused_route(
        "service: a\nrequestHeaders: { set: { Host: b } }",
        expect!["c.yaml:4:28: the host is changed by rewrite.host"],
    );
    refused_route(
        "service: a\nresponseHeaders: { add: { X: \"a\\r\\nb\" } }",
        expect!["c.yaml:4:29: X: a header's value is one line of plain text, without space around it"],
    );
    refused_route(
        "service: a\ntimeouts: { total: 0s }",
        expect!["c.yaml:4:24: total must be longer than 0; leave it out for the default"],
    );
    refused_route(
        "service: a\nretry: { attempts: 0 }",
        expect!["c.yaml:4:24: attempts must be from 1 (no further one) to 10, not 0"],
    );
    refused_route(
        "service: a\nrateLimit: { requests: 0 }",
        expect!["c.yaml:4:28: requests must be at least 1; to refuse all requests use respond"],
    );
    refused_route(
        "service: a\nrateLimit: { requests: 1, per: 48h }",
        expect!["c.yaml:4:36: per must be longer than 0 and at most 24h"],
    );
    refused_route(
        "service: a\nrateLimit: { requests: 1, by: header }",
        expect!["c.yaml:4:16: by: header needs the key header, its name"],
    );
    refused_route(
        "redirect: { status: 200, scheme: https }",
        expect!["c.yaml:3:25: a redirect has status 301, 302, 303, 307 or 308, not 200"],
    );
    refused_route(
        "redirect: { status: 301 }",
        expect!["c.yaml:3:15: a redirect says where: to, or some of scheme, host, path and prefix"],
    );
    refused_route(
        "redirect: { to: /x }",
        expect![[r#"c.yaml:3:21: "/x" is not a URL; write https://host/path"#]],
    );
    refused_route(
        "redirect: { scheme: ftp }",
        expect![[r#"c.yaml:3:25: scheme is http or https, not "ftp""#]],
    );
    refused_route(
        "redirect: { scheme: https }\nstrategy: random",
        expect!["c.yaml:4:15: strategy says nothing where no backend is asked"],
    );
    refused_route("respond: { status: 99 }", expect!["c.yaml:3:24: status must be from 200 to 599, not 99"]);
    refused_route(
        "respond: { status: 204, body: x }",
        expect!["c.yaml:3:14: a response of status 204 has no body"],
    );
    refused(
        "routes:\n  - match: { path: /a, method: GET }\n    service: a\n  - match: { path: /a }\n    service: b\n",
        expect![[
            r#"c.yaml:4:5: two routes are called "/a"; give this one another name, which is its label in metrics"#
        ]],
    );
    refused(
        "routes:\n  - name: none\n    service: a\n",
        expect![[r#"c.yaml:2:11: name "none" must have 1 to 128 printable bytes and not be "none""#]],
    );
}
