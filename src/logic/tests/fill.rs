//! Numbers of slots, and the choice of a lane.

use bdsnap_logic::fill::emptiest;
use bdsnap_logic::fill::place;
use bdsnap_logic::fill::slot;
use bdsnap_logic::fill::Fill;
use bdsnap_logic::fill::PORTION_SLOTS;
use proptest::prelude::*;

proptest! {
    /// A number is its portion and place, and no other's; numbers of one portion follow each other.
    #[test]
    fn numbers(portion in 0usize..1 << 24, at in 0..PORTION_SLOTS) {
        let number = slot(portion, at).unwrap();
        prop_assert_eq!(place(number), (portion, at));
        if let Some(next) = slot(portion, at + 1) {
            prop_assert_eq!(next, number + 1);
        } else {
            prop_assert_eq!(at + 1, PORTION_SLOTS);
        }
    }

    /// All is used before nothing is found, and lanes are never further apart than one step.
    #[test]
    fn side_by_side(totals in prop::collection::vec(0u64..500, 0..6), step in 1u64..40) {
        let mut lanes: Vec<Fill> = totals.iter().map(|&total| Fill { used: 0, total }).collect();
        while let Some(index) = emptiest(lanes.iter().copied()) {
            let lane = &mut lanes[index];
            prop_assert!(lane.used < lane.total);
            lane.used += step.min(lane.total - lane.used);
            let part = |f: &Fill| f.used as f64 / f.total as f64;
            let real: Vec<&Fill> = lanes.iter().filter(|l| l.total > 0).collect();
            for a in &real {
                for b in &real {
                    let ahead = part(a) - part(b);
                    prop_assert!(ahead <= step as f64 / a.total as f64 + 1e-9, "{a:?} {b:?}");
                }
            }
        }
        prop_assert!(lanes.iter().all(|l| l.used == l.total));
    }
}

#[test]
fn impossible_numbers() {
    assert_eq!(slot(0, PORTION_SLOTS), None);
    assert_eq!(slot(1 << 24, 0), None);
    assert_eq!(place(u64::MAX), ((1 << 24) - 1, PORTION_SLOTS - 1));
}

#[test]
fn the_first_of_equals() {
    let fill = |used, total| Fill { used, total };
    assert_eq!(emptiest([fill(0, 5), fill(0, 9)].into_iter()), Some(0));
    assert_eq!(emptiest([fill(1, 5), fill(1, 9)].into_iter()), Some(1));
    assert_eq!(emptiest([fill(5, 5), fill(0, 0)].into_iter()), None);
    let huge = fill(u64::MAX - 1, u64::MAX);
    assert_eq!(emptiest([huge, fill(1, u64::MAX)].into_iter()), Some(1));
}
