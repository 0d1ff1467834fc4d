// SPDX-License-Identifier: GPL-2.0
//! The order of gates: larger before smaller, and all else as it was.

use bdsnap_logic::order::as_met;
use bdsnap_logic::units::Span;
use proptest::prelude::*;

/// A disk, a start and a length there.
type Place = (u8, u64, u64);

fn ordered(mut list: Vec<Place>) -> Vec<Place> {
    as_met(&mut list, |p| (p.0, Span::of_len(p.1, p.2).expect("span")));
    list
}

/// Whether a bio for `b` also meets `a`, before it.
fn before(a: &Place, b: &Place) -> bool {
    a.0 == b.0 && (a.2 > b.2 || a.2 == b.2 && a.1 < b.1)
}

#[test]
fn a_volume_stays_before_the_disk_below_it() {
    let (other, volume, disk) = ((0, 0, 50), (9, 0, 30), (0, 0, 200));
    assert_eq!(ordered(vec![other, volume, disk]), [volume, disk, other]);
    let (first, second) = ((0, 10, 10), (0, 20, 70));
    let list = vec![first, second, volume, disk];
    assert_eq!(ordered(list), [volume, disk, second, first]);
    // (A bio for the disk may lie on both.)
    let list = vec![volume, first, second];
    assert_eq!(ordered(list), [volume, second, first]);
    let equal = (0, 20, 10);
    assert_eq!(ordered(vec![equal, first]), [first, equal]);
}

proptest! {
    /// On a few disks: each whole, or some of its partitions, which do not overlap.
    #[test]
    fn larger_ones_first_and_nothing_else_overtaken(
        list in prop::sample::subsequence(
            (0..3u8).flat_map(|d| [(d, 0, 100), (d, 0, 30), (d, 30, 5), (d, 40, 60)]).collect::<Vec<Place>>(), 0..=12).prop_shuffle()
    ) {
        let now = ordered(list.clone());
        let at = |all: &[Place], p: &Place| all.iter().position(|q| q == p).expect("kept");
        prop_assert_eq!(now.len(), list.len());
        for a in &list {
            for b in &list {
                if before(a, b) {
                    prop_assert!(at(&now, a) < at(&now, b), "{:?} after {:?}: {:?}", a, b, now);
                }
                // Overtaken is only who has moved behind one that is larger.
                if at(&list, a) < at(&list, b) && at(&now, a) > at(&now, b) {
                    prop_assert!(list.iter().any(|c| before(c, a)), "{:?} for {:?}", a, now);
                }
            }
        }
    }
}
