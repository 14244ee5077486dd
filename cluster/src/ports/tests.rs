//! Ports as a table: what is wanted, what is taken, what comes out.

use std::collections::BTreeSet;

use super::{Error, Ports, Want, assign};

fn wants(ports: &[u16]) -> Vec<Want> {
    ports.iter().map(|port| Want { owner: format!("w{port}"), port: *port }).collect()
}

fn check(policy: Ports, wanted: &[u16], taken: &[u16], expected: Result<&[u16], Error>) {
    let got = assign(&wants(wanted), policy, &BTreeSet::new(), 32_768, |port| !taken.contains(&port));
    let got = got.map(|all| all.iter().map(|one| one.port).collect::<Vec<_>>());
    assert_eq!(got, expected.map(<[u16]>::to_vec), "{policy:?} {wanted:?} taken {taken:?}");
}

#[test]
fn a_taken_port_moves_past_those_that_others_want() {
    check(Ports::Default, &[8081, 8082, 9091], &[], Ok(&[8081, 8082, 9091]));
    check(Ports::Default, &[8081, 8082, 9091], &[8081], Ok(&[8083, 8082, 9091]));
    check(Ports::Default, &[8081, 8082, 8083], &[8081, 8084], Ok(&[8085, 8082, 8083]));
    check(Ports::Default, &[8081, 8082], &[8081, 8082], Ok(&[8083, 8084]));
}

#[test]
fn two_who_want_the_same_port_do_not_share_it() {
    check(Ports::Default, &[8080, 8080], &[], Ok(&[8080, 8081]));
}

#[test]
fn strict_refuses_and_names_who_wanted_which() {
    check(Ports::Strict, &[8081, 8082], &[], Ok(&[8081, 8082]));
    check(Ports::Strict, &[8081, 8082], &[8082], Err(Error::Taken { owner: "w8082".into(), port: 8082 }));
}

#[test]
fn free_ports_differ_and_stay_below_the_ephemeral_range() {
    let all =
        assign(&wants(&[8081; 30]), Ports::Free, &BTreeSet::from([15_000]), 32_768, |port| port % 2 == 0)
            .expect("half of twenty thousand are free");
    let ports: BTreeSet<u16> = all.iter().map(|one| one.port).collect();
    assert_eq!(ports.len(), 30);
    assert!(
        ports.iter().all(|port| port % 2 == 0 && (12_000..32_768).contains(port) && *port != 15_000),
        "{ports:?}"
    );
    check(Ports::Default, &[65_535], &[65_535], Err(Error::Exhausted { owner: "w65535".into() }));
}
