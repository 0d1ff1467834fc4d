//! A tiny generator of pseudo-random numbers (xorshift64*), so that every
//! run can be repeated from the seed it prints.

/// The generator. Two with the same seed give the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// Spreads the bits of `x` over the whole word (the finaliser of splitmix64).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// A generator for this seed; any value will do.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed).max(1))
    }

    /// The seed given, or one from the clock; printed either way.
    pub fn seed(given: Option<u64>) -> u64 {
        let seed = given.unwrap_or_else(|| mix(crate::sys::realtime_ns()) % 1_000_000_000);
        println!(
            "{}: seed {seed} (repeat with --seed {seed})",
            crate::program()
        );
        seed
    }

    /// The next number, all 64 bits of it.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `n - 1`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            0
        } else {
            ((u128::from(self.word()) * u128::from(n)) >> 64) as u64
        }
    }

    /// A number from `lo` to `hi`, both included.
    pub fn between(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.below((hi - lo).saturating_add(1))
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number from `lo` to `hi`, small ones as often as large ones: each
    /// power of two gets the same share.
    pub fn log_between(&mut self, lo: u64, hi: u64) -> u64 {
        let lo = lo.max(1);
        let bits = (hi.max(lo) / lo).ilog2();
        let base = lo << self.between(0, u64::from(bits));
        self.between(base, (base * 2 - 1).min(hi))
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Fills `buf` with pseudo-random bytes.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold() {
        let mut r = Rng::new(7);
        for _ in 0..10_000 {
            assert!(r.below(3) < 3);
            assert!((5..=9).contains(&r.between(5, 9)));
            assert!((512..=4 << 20).contains(&r.log_between(512, 4 << 20)));
            assert_eq!(r.log_between(512, 512), 512);
        }
        assert_eq!(r.below(0), 0);
    }

    #[test]
    fn log_between_reaches_both_ends_of_the_scale() {
        let mut r = Rng::new(1);
        let mut seen = [0u32; 64];
        for _ in 0..10_000 {
            seen[r.log_between(512, 4 << 20).ilog2() as usize] += 1;
        }
        for n in &seen[9..=22] {
            assert!(*n > 100, "{seen:?}");
        }
    }

    #[test]
    fn same_seed_same_numbers() {
        let (mut a, mut b) = (Rng::new(42), Rng::new(42));
        for _ in 0..100 {
            assert_eq!(a.word(), b.word());
        }
    }
}
