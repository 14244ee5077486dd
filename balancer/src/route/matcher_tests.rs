use proptest::prelude::*;

use super::super::rules::{ValueRule, regex};
use super::*;

/// `[METHOD,...] [host]path [name=value] [?name=value]`, where a host or path may be left out as `-`, a path that ends in
/// `/**` is a prefix and one in tildes an expression.
fn rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    for word in text.split_whitespace() {
        let value = |v: &str| match v {
            "" => ValueRule::Present,
            v => ValueRule::Exact(v.to_owned()),
        };
        match word {
            "-" => {}
            w if w.starts_with('/') => rules.paths.push(match w.strip_suffix("/**") {
                Some(prefix) => PathRule::Prefix(prefix.to_owned()),
                None => PathRule::Exact(w.to_owned()),
            }),
            w if w.starts_with('~') => rules.paths.push(PathRule::Regex(regex(&w[1..]).expect("a good one"))),
            w if w.starts_with('?') => {
                let (name, v) = w[1..].split_once('=').expect("name=value");
                rules.query.push((name.to_owned(), value(v)));
            }
            w if w.contains('=') => {
                let (name, v) = w.split_once('=').expect("name=value");
                rules.fields.push((name.to_owned(), value(v)));
            }
            w if w.bytes().all(|b| b.is_ascii_uppercase()) => {
                rules.methods.push(w.parse().expect("a method"))
            }
            w => rules.hosts.push(Host::configured(w).expect("a host")),
        }
    }
    rules
}

/// One request: `METHOD host target name=value...`.
fn with_asked<R>(request: &str, then: impl FnOnce(&str, &Asked<'_>) -> R) -> R {
    let words: Vec<&str> = request.split_whitespace().collect();
    let method: http::Method = words[0].parse().expect("a method");
    let (path, query) = words[2].split_once('?').map_or((words[2], None), |(p, q)| (p, Some(q)));
    let fields: Vec<(&str, &str)> = words[3..].iter().filter_map(|w| w.split_once('=')).collect();
    let any_field = |name: &str, allows: &dyn Fn(&[u8]) -> bool| {
        fields.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && allows(v.as_bytes()))
    };
    then(path, &Asked { host: Some(words[1].as_bytes()), method: &method, query, any_field: &any_field })
}

fn check(table: &[&str], requests: &[(&str, Result<usize, Unmatched>)]) {
    let all: Vec<Rules> = table.iter().map(|t| rules(t)).collect();
    let matcher = Matcher::new(all.clone());
    for (request, want) in requests {
        let got = with_asked(request, |path, asked| matcher.find(path, asked));
        assert_eq!(got, *want, "{request}");
        let slow = with_asked(request, |path, asked| naive(&all, path, asked));
        assert_eq!(slow, *want, "{request}, one after the other");
    }
}

/// The rule in words, applied to every route.
fn naive(all: &[Rules], path: &str, asked: &Asked<'_>) -> Result<usize, Unmatched> {
    let read = path::read(path)?;
    let best = |path: &str| {
        let fitting = all
            .iter()
            .enumerate()
            .filter_map(|(n, r)| Some((specificity(r, path, asked)?, std::cmp::Reverse(n))));
        fitting.max().map(|(_, n)| n.0)
    };
    let found = best(&read.normal);
    match read.others.iter().all(|other| best(other) == found) {
        true => found.ok_or(Unmatched::None),
        false => Err(Unmatched::Ambiguous),
    }
}

type Specificity = ((u8, usize), (u8, usize), (bool, usize, usize));

fn specificity(rules: &Rules, path: &str, asked: &Asked<'_>) -> Option<Specificity> {
    let name = String::from_utf8_lossy(asked.host.unwrap_or_default()).to_lowercase();
    let name = name.split(':').next().unwrap_or_default().trim_end_matches('.').to_owned();
    let host = rules.hosts.iter().filter_map(|h| match h {
        Host::Exact(want) => (*want == name).then_some((2, want.len())),
        Host::Under(want) => name
            .strip_suffix(want.as_str())?
            .strip_suffix('.')
            .filter(|l| !l.is_empty())
            .map(|_| (1, want.len())),
    });
    let host = if rules.hosts.is_empty() { Some((0, 0)) } else { host.max() };
    let way = rules.paths.iter().filter_map(|p| match p {
        PathRule::Exact(want) => (want == path).then_some((3, 0)),
        PathRule::Regex(r) => r.is_match(path.as_bytes()).then_some((2, 0)),
        PathRule::Prefix(want) => {
            let rest = path.strip_prefix(want.as_str())?;
            let fits = if rest.is_empty() { path.starts_with('/') } else { rest.starts_with('/') };
            fits.then_some((1, want.len()))
        }
    });
    let way = if rules.paths.is_empty() { Some((0, 0)) } else { way.max() };
    rules.allow(asked).then_some(((host?), (way?), rules.rank()))
}

#[test]
fn the_most_specific_route_wins_whatever_the_order() {
    check(
        &[
            "/**",
            "shop.example.com /orders/**",
            "shop.example.com /orders/new",
            "*.example.com /orders/**",
            "*.shop.example.com /**",
            "/orders/**",
            "~/orders/[0-9]+",
            "POST /orders/**",
            "/orders/** x-beta=1",
            "/orders/** ?debug=",
        ],
        &[
            ("GET a /", Ok(0)),
            ("GET a /x", Ok(0)),
            ("GET shop.example.com /orders/new", Ok(2)),
            ("GET SHOP.example.com.:8080 /orders/new/", Ok(1)),
            ("GET shop.example.com /other", Ok(0)),
            ("GET eu.example.com /orders", Ok(3)),
            ("GET eu.shop.example.com /orders", Ok(4)),
            ("GET example.com /orders", Ok(5)),
            ("GET a /ordersx", Ok(0)),
            ("GET a /orders/17", Ok(6)),
            ("GET a /orders/17x", Ok(5)),
            ("POST a /orders/x", Ok(7)),
            ("POST a /orders/x x-beta=1", Ok(7)),
            ("GET a /orders/x x-beta=1", Ok(8)),
            ("GET a /orders/x x-beta=2", Ok(5)),
            ("GET a /orders/x?debug=1", Ok(9)),
            ("GET a /orders/x?d%65bug", Ok(9)),
            ("GET a /orders/x?debugger=1", Ok(5)),
        ],
    );
}

#[test]
fn no_spelling_gets_around_a_route() {
    check(
        &["/**", "/admin/**", "/files/**"],
        &[
            ("GET a /%61dmin", Ok(1)),
            ("GET a //admin//x", Ok(1)),
            ("GET a /files/../admin", Ok(1)),
            ("GET a /adm%69n/%2e/x", Ok(1)),
            ("GET a /admin/..%2f", Err(Unmatched::Misread(Misread::Dots))),
            ("GET a /files/..%2fadmin", Err(Unmatched::Misread(Misread::Dots))),
            ("GET a /files/..;/admin", Err(Unmatched::Misread(Misread::Dots))),
            ("GET a /files/..\\admin", Err(Unmatched::Misread(Misread::Dots))),
            ("GET a /../admin", Err(Unmatched::Misread(Misread::Above))),
            ("GET a /admin%00", Err(Unmatched::Misread(Misread::Byte))),
            ("GET a /admin%2fx", Err(Unmatched::Ambiguous)),
            ("GET a /%2fadmin", Err(Unmatched::Ambiguous)),
            ("GET a /%252fadmin", Err(Unmatched::Ambiguous)),
            ("GET a /%2561dmin", Err(Unmatched::Ambiguous)),
            ("GET a /admin;x=1", Err(Unmatched::Ambiguous)),
            ("GET a /admin\\x", Err(Unmatched::Ambiguous)),
            ("GET a /files/group%2Fname;v=1", Ok(2)),
            ("GET a /files/100%25", Ok(2)),
        ],
    );
}

#[test]
fn without_a_route_there_is_none() {
    check(
        &["x.example /a/**"],
        &[("GET y /a", Err(Unmatched::None)), ("GET x.example /b", Err(Unmatched::None))],
    );
    check(&[], &[("GET y /a", Err(Unmatched::None))]);
    check(&["-"], &[("OPTIONS y *", Ok(0))]);
    check(&["/**"], &[("OPTIONS y *", Err(Unmatched::None))]);
}

#[test]
fn routes_that_never_match_are_named() {
    let shadowed = |table: &[&str]| Matcher::new(table.iter().map(|t| rules(t)).collect()).shadowed();
    assert_eq!(shadowed(&["/a/**", "/a/**"]), [(1, 0)]);
    assert_eq!(shadowed(&["/a/** GET", "/a/** GET", "/a/** GET POST"]), [(1, 0)]);
    assert_eq!(shadowed(&["/a/** GET POST", "/a/** GET x=1", "/a/** POST"]), [(2, 0)]);
    assert_eq!(shadowed(&["h /a/**", "h /a/** /b", "h g /a/**"]), []);
    assert_eq!(shadowed(&["~/a+", "~/a+", "~/a*"]), [(1, 0)]);
    assert_eq!(shadowed(&["-", "-"]), [(1, 0)]);
    assert_eq!(shadowed(&["/a/** x=1", "/a/** y=1", "/a/** x="]), []);
}

#[test]
fn a_long_path_costs_no_more_than_the_longest_prefix() {
    let matcher = Matcher::new(vec![rules("/a/b/**"), rules("/**")]);
    let long = format!("GET h {}", "/a".repeat(30_000));
    assert_eq!(with_asked(&long, |path, asked| matcher.find(path, asked)), Ok(1));
    let borders: Vec<usize> = matcher.any.borders("/a/b/c/d/e").collect();
    assert_eq!(borders, [4, 2, 0]);
}

fn rule() -> impl Strategy<Value = String> {
    let hosts = prop::sample::select(vec!["-", "a.x", "*.x", "*.a.x", "b.x a.x"]);
    let paths = prop::sample::select(vec![
        "-",
        "/**",
        "/p/**",
        "/p/q/**",
        "/p/q",
        "/p",
        "~/p.*",
        "~/p/q|/r",
        "/r/** /p",
        "/p/%2541/**",
    ]);
    let methods = prop::sample::select(vec!["-", "-", "GET", "GET POST", "PUT"]);
    let more = prop::sample::select(vec!["-", "-", "h=1", "h=", "h=1 g=2", "?k=1", "?k= h=1"]);
    (hosts, paths, methods, more).prop_map(|(h, p, m, x)| format!("{h} {p} {m} {x}"))
}

fn request() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec!["GET", "POST", "PUT"]);
    let host = prop::sample::select(vec!["a.x", "b.x", "c.a.x", "x", "A.X.:80", "[::1]:80"]);
    let piece =
        prop::sample::select(vec!["/", "/", "p", "q", "r", "..", ".", "%70", "%2f", ";v", "%2541", "s"]);
    let query = prop::sample::select(vec!["", "?k=1", "?k=2&k=1", "?x&k"]);
    let fields = prop::sample::select(vec!["", "h=1", "h=2 H=1", "h=1 g=2"]);
    (method, host, prop::collection::vec(piece, 0..8), query, fields)
        .prop_map(|(m, h, p, q, f)| format!("{m} {h} /{}{q} {f}", p.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// The compiled table says what looking at every route says.
    #[test]
    fn the_table_agrees_with_looking_at_every_route(
        table in prop::collection::vec(rule(), 0..10),
        requests in prop::collection::vec(request(), 1..12),
    ) {
        let all: Vec<Rules> = table.iter().map(|t| rules(t)).collect();
        let matcher = Matcher::new(all.clone());
        let shadowed = matcher.shadowed();
        for request in requests {
            let (fast, slow) = with_asked(&request, |p, a| (matcher.find(p, a), naive(&all, p, a)));
            prop_assert_eq!(fast, slow, "{} in {:?}", request, table);
            if let Ok(found) = fast {
                prop_assert!(shadowed.iter().all(|(dead, _)| *dead != found), "{} is said to be dead in {:?}", found, table);
            }
        }
    }
}
