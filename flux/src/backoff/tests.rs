use super::*;

#[test]
fn doubles_to_the_cap_and_jitters_within_the_upper_half() {
    let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
    let mut rng = fastrand::Rng::with_seed(1);
    for failures in [1, 2, 3, 6, 7, 40, u32::MAX] {
        let whole = match failures {
            1..=6 => 100 << (failures - 1),
            _ => 5000,
        };
        for _ in 0..50 {
            let wait = u64::try_from(backoff.wait(failures, &mut rng).as_millis()).expect("small");
            assert!((whole / 2..=whole).contains(&wait), "after {failures} failures: {wait} ms");
        }
    }
}
