use super::*;

#[test]
fn a_prefix_is_stripped_or_replaced_and_the_rest_stays_as_sent() {
    let strip = Rewrite { prefix: Some((1, String::new())), host: None };
    let replace = Rewrite { prefix: Some((2, "/v2".into())), host: None };
    for (rewrite, target, want) in [
        (&strip, "/api/a%20b?x=/api", "/a%20b?x=/api"),
        (&strip, "/api", "/"),
        (&strip, "/api/", "/"),
        (&strip, "/api?q", "/?q"),
        (&strip, "/x/../api/b", "/b"),
        (&replace, "/api/v1/x", "/v2/x"),
        (&replace, "/api/v1", "/v2"),
        (&replace, "/api/v1/", "/v2/"),
    ] {
        assert_eq!(rewrite.target(target).as_deref(), Some(want), "{target}");
    }
    assert_eq!(strip.target("*"), None);
    assert_eq!(Rewrite::default().target("/x"), None);
}

#[test]
fn a_redirect_keeps_what_it_does_not_name() {
    let redirect = |scheme: Option<&str>, host: Option<&str>, path| Redirect {
        status: StatusCode::FOUND,
        scheme: scheme.map(str::to_owned),
        host: host.map(str::to_owned),
        path,
    };
    let location = |r: Redirect| r.location("http", "a.example:8080", "/x/y%20?q=1");
    assert_eq!(location(redirect(Some("https"), None, RedirectPath::Kept)), "https://a.example/x/y%20?q=1");
    assert_eq!(
        location(redirect(Some("http"), None, RedirectPath::Kept)),
        "http://a.example:8080/x/y%20?q=1"
    );
    assert_eq!(location(redirect(None, Some("b:81"), RedirectPath::Kept)), "http://b:81/x/y%20?q=1");
    assert_eq!(
        location(redirect(None, None, RedirectPath::Whole("/z".into()))),
        "http://a.example:8080/z?q=1"
    );
    assert_eq!(location(redirect(None, Some("b"), RedirectPath::Whole("/z?r".into()))), "http://b/z?r");
    assert_eq!(
        location(redirect(None, Some("b"), RedirectPath::Prefix(1, "/w".into()))),
        "http://b/w/y%20?q=1"
    );
    assert_eq!(
        redirect(None, None, RedirectPath::Prefix(1, String::new())).location("http", "b", "/x"),
        "http://b/"
    );
}

#[test]
fn edits_drop_and_write() {
    let mut edits = Edits::default();
    assert!(edits.is_empty());
    edits.set("X-One", "1");
    edits.add("X-Two", "2");
    edits.remove("Cookie");
    assert!(edits.drops(b"x-one") && edits.drops(b"COOKIE") && !edits.drops(b"x-two"));
    assert_eq!(edits.written(), b"X-One: 1\r\nX-Two: 2\r\n");
}
