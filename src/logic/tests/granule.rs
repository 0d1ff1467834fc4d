// SPDX-License-Identifier: GPL-2.0
//! The chain of versions, against full copies of the origin: random histories.

mod history;

use history::decode;
use history::play;
use history::KINDS;
use proptest::prelude::*;

proptest! {
    // 20 000 of 150 events on average: three million steps.
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_image_stays_as_it_was(
        ops in prop::collection::vec((0..KINDS, 0..60usize, 0..60usize, 1..=255u8), 1..300),
    ) {
        play(ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// What the fuzz target does with its bytes.
    #[test]
    fn any_bytes_are_a_history(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        play(decode(&bytes));
    }
}
