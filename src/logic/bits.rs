// SPDX-License-Identifier: GPL-2.0
//! Bitmaps in slices of atomic words, without locks.
//!
//! Bit `n` is bit `n % 64` of word `n / 64`. A bit past the end of the slice reads as clear, and
//! to set or clear it does nothing. Setting and clearing are releases, looking is an acquire: who
//! sees a bit set also sees what was done before it was set. An operation on several words is not
//! atomic as a whole.

use core::ops::Range;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Release;

/// Bits in a word.
const WORD: usize = u64::BITS as usize;

/// Whether `bit` is set.
pub fn test(words: &[AtomicU64], bit: usize) -> bool {
    match words.get(bit / WORD) {
        Some(word) => word.load(Acquire) & (1u64.wrapping_shl((bit % WORD) as u32)) != 0,
        None => false,
    }
}

/// Sets the bits `from..to`.
pub fn set_range(words: &[AtomicU64], from: usize, to: usize) {
    for (word, _, mask) in masked(words, from, to) {
        word.fetch_or(mask, Release);
    }
}

/// Clears the bits `from..to`.
pub fn clear_range(words: &[AtomicU64], from: usize, to: usize) {
    for (word, _, mask) in masked(words, from, to) {
        word.fetch_and(!mask, Release);
    }
}

/// The first bit of `from..to` that is clear. One past the end of the slice counts as clear.
pub fn first_clear(words: &[AtomicU64], from: usize, to: usize) -> Option<usize> {
    for (word, base, mask) in masked(words, from, to) {
        let clear = !word.load(Acquire) & mask;
        if clear != 0 {
            return Some(base.saturating_add(clear.trailing_zeros() as usize));
        }
    }
    let past = from.max(words.len().saturating_mul(WORD));
    (past < to).then_some(past)
}

/// The first bit of `from..to` that is set.
pub fn first_set(words: &[AtomicU64], from: usize, to: usize) -> Option<usize> {
    for (word, base, mask) in masked(words, from, to) {
        let set = word.load(Acquire) & mask;
        if set != 0 {
            return Some(base.saturating_add(set.trailing_zeros() as usize));
        }
    }
    None
}

/// How many bits of `from..to` are set.
pub fn count(words: &[AtomicU64], from: usize, to: usize) -> usize {
    masked(words, from, to)
        .map(|(word, _, mask)| (word.load(Acquire) & mask).count_ones() as usize)
        .fold(0, usize::saturating_add)
}

/// The words that hold the bits `from..to`, each with the number of its bit 0 and with the mask of
/// the bits that are meant.
fn masked(
    words: &[AtomicU64],
    from: usize,
    to: usize,
) -> impl Iterator<Item = (&AtomicU64, usize, u64)> {
    let Range { start, end } = word_range(words.len(), from, to);
    words
        .get(start..end)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(move |(index, word)| {
            let base = start.saturating_add(index).saturating_mul(WORD);
            let below = low_bits(from.saturating_sub(base));
            (word, base, low_bits(to.saturating_sub(base)) & !below)
        })
}

/// The indices of the words that hold the bits `from..to` of a bitmap of `words` words.
fn word_range(words: usize, from: usize, to: usize) -> Range<usize> {
    if from >= to {
        return 0..0;
    }
    let start = (from / WORD).min(words);
    let end = to.div_ceil(WORD).min(words);
    start..end
}

/// A word with its lowest `bits` bits set, at most all of them.
fn low_bits(bits: usize) -> u64 {
    if bits >= WORD {
        u64::MAX
    } else {
        1u64.wrapping_shl(bits as u32).wrapping_sub(1)
    }
}
