//! Backup files: what is written is read, and nothing else is.

use proto::backup::{Encoder, Error, Summary, read};
use proto::registry::v1::{BackupHead, Instance, Provenance};

fn head() -> BackupHead {
    BackupHead {
        cluster_id: "c1".into(),
        revision: 12,
        index: 30,
        term: 2,
        taken_at_ms: 1_700_000_000_000,
        node_id: 3,
        version: "0.1.0".into(),
    }
}

fn instance(number: usize, url_bytes: usize) -> Instance {
    let changed = Provenance { by: "me".into(), why: "because".into(), at_ms: 7 };
    Instance {
        id: format!("i{number:06}"),
        service: "web".into(),
        url: "u".repeat(url_bytes),
        changed: Some(changed),
        ..Default::default()
    }
}

fn written(records: &[Instance]) -> Vec<u8> {
    let (mut encoder, mut bytes) = Encoder::begin(&head());
    for record in records {
        bytes.extend(encoder.record(record.clone()).unwrap_or_default());
    }
    bytes.extend(encoder.finish());
    bytes
}

fn read_all(bytes: &[u8]) -> Result<(Summary, Vec<Instance>), Error> {
    let mut records = Vec::new();
    let summary = read(bytes, |record| records.push(record))?;
    Ok((summary, records))
}

fn refusal(bytes: &[u8]) -> (u64, String) {
    match read_all(bytes) {
        Err(Error::Damaged { offset, what }) => (offset, what),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_is_written_is_read_also_if_it_is_nothing_or_much() {
    for count in [0, 1, 3, 2_000] {
        let records: Vec<Instance> = (0..count).map(|number| instance(number, 300)).collect();
        let bytes = written(&records);
        let (summary, found) = read_all(&bytes).expect("it is whole");
        assert_eq!(summary, Summary { head: head(), records: count as u64, bytes: bytes.len() as u64 });
        assert_eq!(found, records);
    }
}

/// The first bytes of format 1, for ever: the magic, the version, the head's frame.
#[test]
fn format_1_stays_as_it_is() {
    let bytes = written(&[instance(1, 1)]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("backup-1.hex").trim());
}

#[test]
fn no_flipped_byte_and_no_cut_is_accepted() {
    let bytes = written(&[instance(1, 3), instance(2, 3)]);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            let (offset, what) = refusal(&bad);
            assert!(
                offset <= at as u64 + 1 || what.contains("ends in the middle"),
                "byte {at}: {offset} {what}"
            );
        }
        let (offset, what) = refusal(&bytes[..at]);
        assert!(offset == at as u64 && what.contains("ends in the middle"), "cut at {at}: {offset} {what}");
    }
    let (offset, what) = refusal(&[&bytes[..], b"x"].concat());
    assert_eq!((offset, what.as_str()), (bytes.len() as u64, "something follows its end"));
}

/// Each frame by itself may be sound: the end still knows what belongs between.
#[test]
fn a_file_patched_together_is_refused() {
    let one = written(&[instance(1, 3)]);
    let mut twice = one.clone();
    let frame = |at: usize| {
        let length = one[at + 1..at + 5].try_into().expect("four bytes");
        9 + u32::from_le_bytes(length) as usize
    };
    let head_end = 12 + frame(12);
    let records = frame(head_end);
    twice.splice(head_end..head_end, one[head_end..head_end + records].to_vec());
    let (_, what) = refusal(&twice);
    assert!(what.contains("out of order"), "{what}");
    let without = [&one[..head_end], &one[head_end + records..]].concat();
    let (_, what) = refusal(&without);
    assert!(what.contains("of the whole"), "{what}");
}

#[test]
fn another_format_is_named() {
    let mut bytes = written(&[]);
    bytes[8] = 2;
    let (offset, what) = refusal(&bytes);
    assert_eq!((offset, what.as_str()), (8, "it is of format 2, and this program reads format 1"));
    let (offset, what) = refusal(b"SQLite format 3\0");
    assert_eq!((offset, what.as_str()), (0, "it does not begin as a backup of a registry does"));
}
