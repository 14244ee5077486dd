use super::*;
use ConnectError::{Local, Other, Refused};

#[test]
fn only_what_an_endpoint_did_is_held_against_it() {
    use nix::errno::Errno;
    let classified = |errno: Errno| classify(io::Error::from_raw_os_error(errno as i32));
    for ours in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL] {
        assert!(matches!(classified(ours), Local(_)), "{ours}");
    }
    assert!(matches!(classified(Errno::ECONNREFUSED), Refused));
    assert!(matches!(classified(Errno::EHOSTUNREACH), Other(_)));
}
