//! What happens in a run, as data drawn from one seed: what each client does next ([`workload`]), which fault comes
//! when and hits whom ([`nemesis`]), which power cuts come ([`cuts`]). Pure: the run carries it out.

pub mod cuts;
pub mod nemesis;
#[cfg(test)]
mod tests;
pub mod workload;

/// A generator for one purpose of a run: the same seed and name always draw the same.
pub fn rng(seed: u64, name: &str) -> fastrand::Rng {
    // FNV-1a, so that purposes with similar names draw differently.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    fastrand::Rng::with_seed(seed ^ hash)
}
