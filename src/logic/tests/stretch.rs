//! When a store asks for more, and what it keeps back.

use bdsnap_logic::fill::Fill;
use bdsnap_logic::stretch::room;
use bdsnap_logic::stretch::Growth;
use bdsnap_logic::stretch::Rate;
use bdsnap_logic::stretch::Room;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// The rate after `slots` at each of `times`.
fn rate_of(times: impl Iterator<Item = u64>, slots: u64) -> Rate {
    let mut rate = Rate::default();
    times.for_each(|t| rate.add(t, slots));
    rate
}

#[test]
fn a_rate_is_measured_and_fades() {
    // 10 slots each millisecond for a second.
    let rate = rate_of((1..=1000).map(|t| t * MS), 10);
    let now = rate.at(SECOND);
    assert!((9_000..=10_500).contains(&now), "{now}");
    // Soon after it is known still; with time it fades, and never comes back by itself.
    assert!(rate.at(SECOND + 100 * MS) >= 9_000);
    let mut last = rate.at(SECOND + 300 * MS);
    for t in 4..100 {
        let next = rate.at(SECOND + t * 100 * MS);
        assert!(next <= last, "{t}: {next} after {last}");
        last = next;
    }
    assert!(last < 500, "{last}");
}

#[test]
fn what_is_given_back_is_no_rate() {
    // All is given back, but late: a window later than it was taken.
    let mut rate = Rate::default();
    let (step, slots) = (SECOND / 100, 1000);
    let mut late = 0;
    for n in 1..4000 {
        rate.add(n * step, slots);
        if n > 10 {
            rate.undo(slots);
        } else {
            late += slots;
        }
    }
    assert!(late > 0);
    // Only what is still out counts, and that was long ago.
    assert!(rate.at(4000 * step) <= slots, "{rate:?}");
}

#[test]
fn a_burst_is_known_at_once() {
    let mut rate = rate_of((1..=100).map(|t| t * SECOND), 1);
    let before = rate.at(100 * SECOND);
    assert!(before <= 2, "{before}");
    for t in 1..=10 {
        rate.add(100 * SECOND + t * 50 * MS, 5_000);
    }
    let after = rate.at(100 * SECOND + 500 * MS);
    assert!(after > 30_000, "{after}");
}

#[test]
fn it_asks_for_time_not_for_a_size() {
    let growth = Growth {
        room: 1 << 30,
        portion: 1000,
        spare: 100,
    };
    let fill = |used| Fill {
        used,
        total: 100_000,
    };
    // Little use: only the last few are low. Much use: soon.
    assert_eq!(growth.wanted(fill(50_000), 10), 0);
    assert_eq!(growth.wanted(fill(99_500), 10), 1000);
    assert_eq!(growth.wanted(fill(50_000), 10_000), 200_000);
    // Never beyond the limit, and nothing there.
    let near = Growth {
        room: 700,
        ..growth
    };
    assert_eq!(near.wanted(fill(99_500), 10_000), 700);
    let fixed = Growth { room: 0, ..growth };
    assert_eq!(fixed.wanted(fill(100_000), 10_000), 0);
    assert!(fixed.is_low(fill(50_000), 10_000));
    assert!(!fixed.is_low(fill(50_000), 10));
    assert_eq!(fixed.seconds_left(fill(50_000), 10_000), Some(5));
    assert_eq!(fixed.seconds_left(fill(50_000), 0), None);
}

proptest! {
    /// A store is empty for nobody while there is anything that he may have, and says "full" only
    /// where nothing can come and nothing is left.
    #[test]
    fn rooms(total in 0u64..10_000, used in 0u64..10_000, more in 0u64..20_000, spare in 0u64..5_000, urgent: bool, patient: bool) {
        let fill = Fill { used: used.min(total), total };
        let growth = Growth { room: more, portion: 10, spare };
        let reserve = growth.reserve(total);
        prop_assert!(reserve <= total / 4 && (reserve == 0 || more > 0));
        let free = total - fill.used;
        match room(fill, reserve, urgent, patient) {
            Room::Some(n) => prop_assert!(n > 0 && n <= free && (urgent || !patient || n + reserve <= free)),
            Room::Later => prop_assert!(patient && (free == 0 || !urgent)),
            Room::Full => prop_assert!(!patient && free == 0),
        }
    }

    /// What is wanted is wanted only when little is left, and is enough for a while.
    #[test]
    fn wants(total in 1u64..1 << 40, used in 0u64..1 << 40, more in 0u64..1 << 41, rate in 0u64..1 << 30) {
        let fill = Fill { used: used.min(total), total };
        let growth = Growth { room: more, portion: 1 << 16, spare: 1 << 14 };
        let wanted = growth.wanted(fill, rate);
        prop_assert!(wanted <= more);
        if wanted > 0 {
            prop_assert!(growth.is_low(fill, rate));
            prop_assert!(wanted >= (1 << 16).min(more));
        }
        if fill.used == total && more > 0 {
            prop_assert!(wanted > 0, "an empty store asks");
        }
    }
}
