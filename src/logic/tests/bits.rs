// SPDX-License-Identifier: GPL-2.0
//! Bitmaps in atomic words, against a list of booleans.

use bdsnap_logic::bits;
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

/// Words in the bitmap.
const WORDS: usize = 4;

/// What is done to the bitmap.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Set a range.
    Set(usize, usize),
    /// Clear a range.
    Clear(usize, usize),
}

/// A bit, mostly of the bitmap.
fn bit() -> impl Strategy<Value = usize> {
    prop_oneof![
        12 => 0..WORDS * 64 + 70,
        4 => (0..WORDS + 1).prop_map(|word| word * 64),
        1 => any::<usize>(),
    ]
}

/// Some operation.
fn op() -> impl Strategy<Value = Op> {
    let range = || (bit(), bit());
    prop_oneof![
        range().prop_map(|(from, to)| Op::Set(from, to)),
        range().prop_map(|(from, to)| Op::Clear(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bitmap_is_a_list(ops in prop::collection::vec(op(), 0..12), from in bit(), to in bit()) {
        let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let mut model = [false; WORDS * 64];
        for op in ops {
            let (from, to, value) = match op {
                Op::Set(from, to) => (from, to, true),
                Op::Clear(from, to) => (from, to, false),
            };
            if value {
                bits::set_range(&words, from, to);
            } else {
                bits::clear_range(&words, from, to);
            }
            for (index, bit) in model.iter_mut().enumerate() {
                if from <= index && index < to {
                    *bit = value;
                }
            }
        }
        for (index, &bit) in model.iter().enumerate() {
            prop_assert_eq!(bits::test(&words, index), bit);
        }
        prop_assert!(!bits::test(&words, from.max(WORDS * 64)));

        let inside = || (from..to.min(WORDS * 64)).filter(|&index| index < WORDS * 64);
        prop_assert_eq!(bits::count(&words, from, to), inside().filter(|&n| model[n]).count());
        prop_assert_eq!(bits::first_set(&words, from, to), inside().find(|&n| model[n]));
        let past = Some(from.max(WORDS * 64)).filter(|&n| n < to);
        prop_assert_eq!(bits::first_clear(&words, from, to), inside().find(|&n| !model[n]).or(past));
    }
}

#[test]
fn an_empty_bitmap_is_clear() {
    bits::set_range(&[], 0, usize::MAX);
    assert_eq!(bits::first_set(&[], 0, usize::MAX), None);
    assert_eq!(bits::first_clear(&[], 5, usize::MAX), Some(5));
    assert_eq!(bits::first_clear(&[], 5, 5), None);
    assert_eq!(bits::count(&[], 0, usize::MAX), 0);
}
