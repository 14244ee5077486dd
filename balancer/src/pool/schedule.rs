//! Whose turn it is: a round in which everybody has turns by weight, spread out. Pure.

/// Most turns a round has, unless there are more endpoints. Weights are scaled down to fit: with 1 000 endpoints each
/// still has its share within a few percent, and a pool stays small enough to rebuild on every change.
pub const TURNS_MAX: u64 = 4096;

/// Beyond so many steps the smooth order takes too long to work out, some milliseconds for every change.
const STEPS_MAX: u64 = 1 << 20;

/// The order of turns for `weights`, of which the first 65 535 count.
pub fn turns(weights: &[u32]) -> Vec<u16> {
    let weights = scaled(&weights[..weights.len().min(usize::from(u16::MAX))]);
    let total: u64 = weights.iter().sum();
    match weights.iter().all(|&w| w == 1) {
        true => (0..weights.len() as u16).collect(),
        false if total * weights.len() as u64 <= STEPS_MAX => smooth(&weights, total),
        false => strides(&weights),
    }
}

/// Smooth weighted round robin, as nginx has it: at each turn everyone gains its weight, the richest is taken and
/// pays the total.
fn smooth(weights: &[u64], total: u64) -> Vec<u16> {
    let mut credit = vec![0i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut best = 0;
            for i in 0..credit.len() {
                credit[i] += weights[i] as i64;
                if credit[i] > credit[best] {
                    best = i;
                }
            }
            credit[best] -= total as i64;
            best as u16
        })
        .collect()
}

/// Stride scheduling (Waldspurger and Weihl 1995): everyone's turns are equally far apart, the first after half of
/// that.
fn strides(weights: &[u64]) -> Vec<u16> {
    let turn = |i: usize, k: u64, w: u64| ((2 * k + 1) as f64 / (2 * w) as f64, i as u16);
    let each = weights.iter().enumerate();
    let mut turns: Vec<(f64, u16)> = each.flat_map(|(i, &w)| (0..w).map(move |k| turn(i, k, w))).collect();
    turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    turns.into_iter().map(|(_, i)| i).collect()
}

/// `weights` over their greatest common divisor, and no more in sum than [`TURNS_MAX`] unless there are
/// more endpoints than that. Nobody falls to nothing.
fn scaled(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut out: Vec<u64> = weights.iter().map(|&w| u64::from(w / divisor)).collect();
    let total: u64 = out.iter().sum();
    if total > TURNS_MAX {
        out.iter_mut().for_each(|w| *w = (*w * TURNS_MAX / total).max(1));
        let divisor = out.iter().fold(0, |a, &b| gcd(a, b as u32)).max(1);
        out.iter_mut().for_each(|w| *w /= u64::from(divisor));
    }
    out
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(turns(&[100, 100, 100]), [0, 1, 2]);
        assert_eq!(turns(&[7]), [0]);
        assert_eq!(turns(&[]), [0u16; 0]);
    }

    #[test]
    fn turns_of_a_heavy_endpoint_are_spread_out() {
        assert_eq!(turns(&[500, 100, 100]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(strides(&[4, 2, 1]), [0, 1, 0, 2, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn everyone_gets_its_share(weights in prop::collection::vec(1u32..=1000, 1..40)) {
            let turns = turns(&weights);
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            prop_assert!(turns.len() as u64 <= TURNS_MAX + weights.len() as u64);
            for (i, &w) in weights.iter().enumerate() {
                let has = turns.iter().filter(|&&t| usize::from(t) == i).count() as f64;
                let want = turns.len() as f64 * f64::from(w) / total as f64;
                prop_assert!(has >= 1.0 && (has - want).abs() <= 2.0 + want * 0.05, "{has} of {want}");
            }
        }

        #[test]
        fn equal_weights_are_exactly_fair(n in 1usize..200, w in 1u32..1000) {
            let order: Vec<u16> = (0..n as u16).collect();
            prop_assert_eq!(turns(&vec![w; n]), order);
        }

        /// Both orders give everybody as many turns.
        #[test]
        fn strides_are_as_fair(weights in prop::collection::vec(1u64..=50, 1..20)) {
            let sorted = |mut turns: Vec<u16>| { turns.sort_unstable(); turns };
            let total = weights.iter().sum();
            prop_assert_eq!(sorted(strides(&weights)), sorted(smooth(&weights, total)));
        }
    }
}
