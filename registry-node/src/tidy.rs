//! Which folder may name which library: the map in README.md, held by a test.

use std::{fs, path::Path};

/// A library's crate name, and the only places that may name it.
const HOMES: [(&str, &[&str]); 6] = [
    ("openraft", &["consensus/"]),
    ("sled", &["storage/"]),
    ("axum", &["api/"]),
    ("tonic", &["api/", "consensus/"]),
    ("bincode", &["envelope.rs"]),
    ("prometheus", &["metrics.rs", "api/"]),
];

#[test]
fn every_library_stays_in_its_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut strays = Vec::new();
    visit(&root, &mut |path, text| {
        let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
        for (library, homes) in HOMES {
            let at_home = homes.iter().any(|home| name.starts_with(home));
            if !at_home && text.lines().any(|line| names(line, library)) {
                strays.push(format!("{name} names {library}, which belongs to {homes:?}"));
            }
        }
    });
    assert!(strays.is_empty(), "{strays:#?}");
}

/// The pure cores: no clock, no task, no socket, no wire.
#[test]
fn the_cores_are_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let impure = ["tokio", "Instant::now()", "SystemTime", "fastrand", "proto", "HashMap", "HashSet"];
    // Only what is replicated must not depend on the order of a hash map.
    for (core, impure) in
        [("catalog", &impure[..]), ("lease/lessor", &impure[..5]), ("watch/history", &impure[..])]
    {
        let mut strays = Vec::new();
        let mut look = |path: &Path, text: &str| {
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            strays.extend(
                lines
                    .filter(|line| impure.iter().any(|word| names(line, word)))
                    .map(|line| format!("{path:?}: {line}")),
            );
        };
        match root.join(core) {
            folder if core == "catalog" => visit(&folder, &mut look),
            file => {
                let file = file.with_extension("rs");
                look(&file, &fs::read_to_string(&file).expect("readable"));
            }
        }
        assert!(strays.is_empty(), "{strays:#?}");
    }
}

/// The wall clock may jump: it stamps what people read, and nothing else asks it. The kernel stamps files with it;
/// there only a difference counts.
#[test]
fn the_wall_clock_is_for_people() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let clocks = ["SystemTime", "UNIX_EPOCH", "chrono", "CLOCK_REALTIME", "wall_ms"];
    let mut readers = Vec::new();
    visit(&root, &mut |path, text| {
        let readings = text.lines().filter(|line| !line.trim_start().starts_with("use "));
        let readings = readings.filter(|line| clocks.iter().any(|clock| line.contains(clock)));
        let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
        readers.extend(readings.map(|line| format!("{name}: {}", line.trim())));
    });
    let allowed = [
        // Provenance: who, why, and when.
        "consensus/mod.rs: let at_ms = crate::scope::wall_ms();",
        // When a backup was taken.
        "api/convert.rs: taken_at_ms: SystemTime::UNIX_EPOCH.elapsed()",
    ];
    let own = |reader: &String| ["storage/disk.rs:", "scope.rs:"].iter().any(|file| reader.starts_with(file));
    readers.retain(|reader| !own(reader) && !allowed.iter().any(|allowed| reader.starts_with(allowed)));
    assert!(readers.is_empty(), "{readers:#?}");
}

/// Every invariant is listed in README.md with a place that exists.
#[test]
fn every_invariant_names_where_it_is_checked() {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(room.join("README.md")).expect("readable");
    let ids = [("S", 9), ("D", 5), ("E", 7), ("W", 12)];
    for id in
        ids.iter().flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")))
    {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {id} |")));
        let row = row.unwrap_or_else(|| panic!("{id} is not listed"));
        let place = row.split('|').nth(3).unwrap_or_default();
        let paths: Vec<&str> = place.split('`').skip(1).step_by(2).collect();
        assert!(!paths.is_empty(), "{id} names no place");
        for path in paths {
            let there = room.join(path).exists() || room.join("..").join(path).exists();
            assert!(there, "{id} names {path}, which does not exist");
        }
    }
}

/// Whether `line` uses the crate or item, not merely a word that contains its name, a comment or a string.
fn names(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + word.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"' || c == '.')
            && (after.starts_with("::")
                || word.ends_with(')')
                || (word.starts_with(char::is_uppercase) && !after.starts_with(char::is_alphanumeric)))
    })
}

fn visit(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|e| e == "rs")
            && !path.ends_with("tidy.rs")
            && !path.ends_with("tests.rs")
        {
            look(&path, &fs::read_to_string(&path).expect("readable"));
        }
    }
}
