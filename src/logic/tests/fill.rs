//! Numbers of slots, and the choice of a lane.

use bdsnap_logic::fill::edges;
use bdsnap_logic::fill::emptiest;
use bdsnap_logic::fill::place;
use bdsnap_logic::fill::slot;
use bdsnap_logic::fill::Fill;
use bdsnap_logic::fill::Gap;
use bdsnap_logic::fill::Returned;
use bdsnap_logic::fill::PORTION_SLOTS;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Remembers a few.
fn new() -> Returned<Vec<Gap>> {
    Returned::new(vec![Gap::default(); 32])
}

proptest! {
    /// A number is its portion and place, and no other's; numbers of one portion follow each other.
    #[test]
    fn numbers(portion in 0usize..1 << 10, at in 0..PORTION_SLOTS) {
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

proptest! {
    /// What is cut off is zeros, and what is left has none at its ends.
    #[test]
    fn zeros_at_the_edges(zeros: u64, ones: u64, len in 1u64..=64) {
        let zeros = zeros | ones;
        let is_zero = |n: u64| (zeros >> n) & 1 == 1;
        let (head, tail) = edges(zeros, len);
        prop_assert!((0..head).all(is_zero));
        prop_assert!((len - tail..len).all(is_zero));
        if head < len {
            prop_assert!(!is_zero(head) && !is_zero(len - tail - 1));
        } else {
            prop_assert_eq!((head, tail), (len, 0));
        }
    }

    /// What is given back comes out again, each slot once, and no other.
    #[test]
    fn given_back(steps in prop::collection::vec((any::<bool>(), 0u64..200, 1u64..9, 1u64..5), 0..300)) {
        let mut returned = new();
        let mut inside = BTreeSet::new();
        for (put, slot, len, least) in steps {
            let slots = || slot..slot + len;
            if put && slots().all(|s| !inside.contains(&s)) {
                if returned.put(slot, len) {
                    inside.extend(slots());
                }
            } else if let Some((first, got)) = returned.take(len, least) {
                prop_assert!((1..=len).contains(&got));
                for s in first..first + got {
                    prop_assert!(inside.remove(&s), "{s} was not there");
                }
            }
            prop_assert_eq!(returned.total(), inside.len() as u64);
        }
        // In runs as long as can be: then nothing is left.
        while let Some((first, got)) = returned.take(u64::MAX, 1) {
            prop_assert!(!inside.contains(&(first + got)), "the run goes on");
            for s in first..first + got {
                prop_assert!(inside.remove(&s));
            }
            prop_assert!(first == 0 || !inside.contains(&(first - 1)));
        }
        prop_assert!(inside.is_empty());
    }
}

#[test]
fn too_many_to_remember() {
    let mut returned = new();
    let kept = (0..1000).filter(|n| returned.put(n * 2, 1)).count() as u64;
    assert!((10..1000).contains(&kept));
    assert!(returned.is_crowded() && !new().is_crowded());
    assert_eq!(returned.total(), kept);
    // Between two of them there is always a place.
    assert!(returned.put(1, 1));
    assert_eq!(returned.total(), kept + 1);
    assert_eq!(returned.take(9, 4), None);
    assert_eq!(returned.take(9, 3), Some((0, 3)));
}

#[test]
fn impossible_numbers() {
    assert_eq!(slot(0, PORTION_SLOTS), None);
    assert_eq!(slot(1 << 10, 0), None);
    assert_eq!(place(u64::MAX), ((1 << 27) - 1, PORTION_SLOTS - 1));
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
