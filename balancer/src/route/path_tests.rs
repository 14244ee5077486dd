use proptest::prelude::*;

use super::*;

fn normal(path: &str) -> String {
    read(path).expect("it can be read").normal.into_owned()
}

#[test]
fn spellings_of_one_path_have_one_form() {
    for (path, form) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/%61/%7E%2d", "/a/~-"),
        ("/a%20b%c3%bc", "/a%20b%C3%BC"),
        ("//a///b//", "/a/b/"),
        ("/a/./b/.", "/a/b/"),
        ("/a/b/../c", "/a/c"),
        ("/a/b/..", "/a/"),
        ("/a/%2e%2E/c", "/c"),
        ("/a/..", "/"),
        ("/.well-known/x..y/...", "/.well-known/x..y/..."),
        ("/%40x/%3a%24%7b", "/@x/:${"),
        ("/100%/%zz/%4", "/100%25/%25zz/%254"),
        ("*", "*"),
    ] {
        assert_eq!(normal(path), form, "{path}");
    }
}

#[test]
fn what_hides_dot_segments_is_not_read() {
    for path in [
        "/admin/..%2f",
        "/a/..%2Fadmin",
        "/a/%2e%2e%2fadmin",
        "/a/..%5cadmin",
        "/a/..\\admin",
        "/a/..;/admin",
        "/a/..%3b/admin",
        "/a/%252e%252e/admin",
        "/a/%252e%252e%252fadmin",
        "/a/.;x/b",
        "/a//../b",
        "/a\\..\\b",
        // What is gone back over is read in several ways.
        "/x/;/../admin",
        "/x/%3b/../admin",
        "/x/%2f/../admin",
        "/admin%2Fy/../public/x",
        "/admin%252Fy/../public/x",
        "/a\\b/../c",
        "/a%5cb/../c",
    ] {
        assert_eq!(read(path), Err(Misread::Dots), "{path}");
    }
    for path in ["/..", "/../a", "/a/../..", "/%2e%2e/a", "/./../a"] {
        assert_eq!(read(path), Err(Misread::Above), "{path}");
    }
    for path in ["/a%00", "/admin%2500", "/%c0%aeadmin", "/%C0%AF"] {
        assert_eq!(read(path), Err(Misread::Byte), "{path}");
    }
}

#[test]
fn other_readings_are_told() {
    let others = |path: &str| read(path).expect("it can be read").others;
    assert_eq!(others("/a/b%20c"), [""; 0]);
    assert_eq!(others("/a%2fb"), ["/a/b"]);
    assert_eq!(others("/a%252fb"), ["/a%2fb", "/a/b"]);
    assert_eq!(others("/a;v=1/b"), ["/a/b"]);
    assert_eq!(others("/a\\b"), ["/a/b"]);
    assert_eq!(others("/%2fa"), ["/a"]);
    assert_eq!(others("/a%3bx/b"), ["/a;x/b", "/a/b"]);
}

#[test]
fn what_is_left_of_a_path_stays_as_it_was_sent() {
    for (path, segments, left) in [
        ("/api/a%20b", 1, "/a%20b"),
        ("/api/%61/", 1, "/%61/"),
        ("/api", 1, ""),
        ("/api/", 1, "/"),
        ("//api//x", 1, "/x"),
        ("/y/../api/v1/x%2Fy", 2, "/x%2Fy"),
        ("/a/b", 0, "/a/b"),
    ] {
        assert_eq!(rest(path, segments), left, "{path}");
    }
}

#[test]
fn configured_paths_are_plain() {
    assert_eq!(configured("/a/b"), Ok("/a/b".into()));
    assert_eq!(configured("/m%c3%BCller und"), Ok("/m%C3%BCller%20und".into()));
    assert_eq!(configured("/müller"), configured("/m%c3%bcller"));
    for bad in ["", "a", "/a?b", "/a#b", "/a//b", "/a/../b", "/a/.", "/a%2fb", "/a;b", "/a\\b", "/%00"] {
        assert!(configured(bad).is_err(), "{bad}");
    }
}

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "/", "/", "/", "a", "b", ".", "..", "%2e", "%2f", "%252e", "%25", "%2F", ";", "\\", "%5c", "%61",
        "%c3", "%", "x",
    ])
}

proptest! {
    /// Whatever comes: the form is stable, and its own only one. What is cut off a path is what its form says.
    #[test]
    fn the_form_is_stable(pieces in prop::collection::vec(piece(), 0..12)) {
        let path = format!("/{}", pieces.concat());
        if let Ok(read_once) = read(&path) {
            let again = read(&read_once.normal);
            prop_assert_eq!(again.as_ref().map(|p| &p.normal), Ok(&read_once.normal));
            prop_assert_eq!(again.map(|p| p.others), Ok(read_once.others));
            prop_assert!(!read_once.normal.contains("//"));
            prop_assert!(read_once.normal.split('/').all(|s| s != "." && s != ".."));
            let left = rest(&path, 1);
            let whole = format!("{}{left}", read_once.normal.match_indices('/').nth(1).map_or(&*read_once.normal, |(at, _)| &read_once.normal[..at]));
            prop_assert_eq!(read(&whole).map(|p| p.normal.into_owned()), Ok(read_once.normal.into_owned()));
        }
    }
}
