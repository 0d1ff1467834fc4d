// SPDX-License-Identifier: GPL-2.0
//! Extents of stores: what is refused, and where slots are.

use bdsnap_logic::extent::check;
use bdsnap_logic::extent::join;
use bdsnap_logic::extent::locate;
use bdsnap_logic::extent::piece;
use bdsnap_logic::extent::total;
use bdsnap_logic::extent::Cursor;
use bdsnap_logic::extent::Piece;
use bdsnap_logic::extent::RawExtent;
use bdsnap_logic::extent::Refusal;
use bdsnap_logic::extent::FLAG_LAST;
use bdsnap_logic::extent::FLAG_MERGED;
use bdsnap_logic::extent::FLAG_UNWRITTEN;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The logical block of the device.
const BLOCK: u64 = 512;

/// A good file: its extents, and the length of the device. `gap` is in front of each extent on the
/// device, in blocks; the order there is that of `at`.
fn layout(parts: &[(u64, u64, u32)]) -> (Vec<RawExtent>, u64) {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&index| parts[index].2);
    let mut physical = vec![0; parts.len()];
    let mut end = 0;
    for index in order {
        let (length, gap, _) = parts[index];
        physical[index] = end + gap * BLOCK;
        end = physical[index] + length * BLOCK;
    }
    let mut logical = 0;
    let mut list = Vec::new();
    for (index, &(length, gap, at)) in parts.iter().enumerate() {
        let mut flags = if gap == 0 { FLAG_MERGED } else { 0 };
        flags |= if at % 2 == 0 { FLAG_UNWRITTEN } else { 0 };
        flags |= if index + 1 == parts.len() {
            FLAG_LAST
        } else {
            0
        };
        let length = length * BLOCK;
        list.push(RawExtent {
            logical,
            physical: physical[index],
            length,
            flags,
        });
        logical += length;
    }
    (list, end)
}

/// Lengths, gaps and places of extents.
fn parts() -> impl Strategy<Value = Vec<(u64, u64, u32)>> {
    prop::collection::vec((1..40u64, 0..3u64, any::<u32>()), 1..60)
}

/// Pieces as a store makes them of extents.
fn pieces(list: &[RawExtent], shift: u32) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for extent in list {
        let Some(next) = piece(extent, shift, total(&pieces)) else {
            continue;
        };
        match pieces.last().and_then(|last| join(last, &next, shift)) {
            Some(joined) => *pieces.last_mut().unwrap() = joined,
            None => pieces.push(next),
        }
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_good_file_is_taken(parts in parts(), cut in 0..5000u64) {
        let (mut list, device) = layout(&parts);
        let before = list.clone();
        let end = list.last().map_or(0, |last| last.logical + last.length);
        let file_len = end.saturating_sub(cut).max(1);
        prop_assert_eq!(check(&mut list, file_len, device, BLOCK as u32), Ok(()));
        // The order is as it was, and only what is past the file's end is cut off.
        for (now, was) in list.iter().zip(&before) {
            let length = was.length.min((file_len / BLOCK * BLOCK).saturating_sub(was.logical));
            prop_assert_eq!(*now, RawExtent { length, ..*was });
        }
        prop_assert_eq!(check(&mut before.clone(), end + 1, device, 512), Err(Refusal::Short));
        let out = check(&mut before.clone(), end, device - 1, 512);
        prop_assert_eq!(out, Err(Refusal::OutOfBounds));
    }

    #[test]
    fn a_bad_file_is_refused(parts in parts(), which in any::<prop::sample::Index>(), other in any::<prop::sample::Index>()) {
        let (list, device) = layout(&parts);
        let file_len = list.last().map_or(0, |last| last.logical + last.length);
        let (at, other) = (which.index(list.len()), other.index(list.len()));
        let end = list.len() - 1;
        let with = |change: &dyn Fn(&mut Vec<RawExtent>)| {
            let mut list = list.clone();
            change(&mut list);
            check(&mut list, file_len, device, BLOCK as u32)
        };
        // UNKNOWN, DELALLOC, ENCODED, ENCRYPTED, NOT_ALIGNED, INLINE, TAIL, SHARED, or unheard of.
        for bad in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x2000, 0x8000_0000] {
            prop_assert_eq!(with(&|list| list[at].flags |= bad), Err(Refusal::Flags(bad)));
        }
        for wrong in [1, 256] {
            prop_assert_eq!(with(&|list| list[at].physical += wrong), Err(Refusal::Misaligned));
            prop_assert_eq!(with(&|list| list[at].logical += wrong), Err(Refusal::Misaligned));
            prop_assert_eq!(with(&|list| list[at].length += wrong), Err(Refusal::Misaligned));
        }
        prop_assert_eq!(with(&|list| list[at].length = 0), Err(Refusal::Misaligned));
        prop_assert_eq!(with(&|list| list[at].logical += BLOCK), Err(Refusal::Hole));
        prop_assert_eq!(with(&|list| list[at].physical = device), Err(Refusal::OutOfBounds));
        prop_assert_eq!(with(&|list| list[at].physical = u64::MAX - 511), Err(Refusal::OutOfBounds));
        prop_assert_eq!(with(&|list| list[end].flags &= !FLAG_LAST), Err(Refusal::Unfinished));
        prop_assert_eq!(with(&|list| list.clear()), Err(Refusal::Empty));
        if at != end {
            prop_assert_eq!(with(&|list| list[at].flags |= FLAG_LAST), Err(Refusal::Flags(FLAG_LAST)));
            prop_assert_eq!(with(&|list| { list.remove(at); }), Err(Refusal::Hole));
            prop_assert_eq!(with(&|list| { list.pop(); }), Err(Refusal::Unfinished));
        }
        if at != 0 {
            prop_assert_eq!(with(&|list| list[at].logical -= BLOCK), Err(Refusal::Overlap));
        }
        if at != other {
            let onto = with(&|list| {
                // The last block of the one is the first of the other.
                let place = list[other].physical + list[other].length - BLOCK;
                list[at].physical = place;
            });
            prop_assert!(matches!(onto, Err(Refusal::Overlap | Refusal::OutOfBounds)));
        }
        for block in [0, 3, 513, 768] {
            let out = check(&mut list.clone(), file_len, device, block);
            prop_assert_eq!(out, Err(Refusal::Misaligned));
        }
        prop_assert_eq!(check(&mut list.clone(), 0, device, 512), Err(Refusal::Empty));
    }

    #[test]
    fn anything_at_all_is_checked(
        raw in prop::collection::vec(any::<(u64, u64, u64, u32)>(), 0..20),
        file_len: u64, device_len: u64, block: u32,
    ) {
        let mut list: Vec<RawExtent> = raw
            .into_iter()
            .map(|(logical, physical, length, flags)| RawExtent { logical, physical, length, flags })
            .collect();
        let _ = check(&mut list, file_len, device_len, block);
        for shift in [0, 3, 70] {
            let pieces = pieces(&list, shift);
            let _ = locate(&pieces, file_len, shift);
        }
    }

    #[test]
    fn slots_are_all_different_and_all_on_the_extents(
        parts in parts(), shift in 0..5u32, wants in prop::collection::vec(0..50u64, 1..20),
    ) {
        let (list, _) = layout(&parts);
        let pieces = pieces(&list, shift);
        let granules: u64 = list.iter().map(|extent| extent.length >> (9 + shift)).sum();
        prop_assert_eq!(total(&pieces), granules);

        let mut free: BTreeSet<u64> = list
            .iter()
            .flat_map(|extent| extent.physical / 512..(extent.physical + extent.length) / 512)
            .collect();
        let mut cursor = Cursor::new();
        for &want in wants.iter().cycle().take(10_000) {
            let used = cursor.used();
            let Some((slot, len)) = cursor.take(&pieces, want) else {
                prop_assert!(want == 0 || used == granules);
                if used == granules || wants.iter().all(|&want| want == 0) {
                    break;
                }
                continue;
            };
            prop_assert!(slot == used && len <= want && len > 0 && cursor.used() == used + len);
            let (sector, run) = locate(&pieces, slot, shift).unwrap();
            prop_assert!(len == want.min(run));
            for sector in sector..sector + (len << shift) {
                prop_assert!(free.remove(&sector));
            }
            // A slot in the middle is where the run says.
            let middle = len / 2;
            let there = (sector + (middle << shift), run - middle);
            prop_assert_eq!(locate(&pieces, slot + middle, shift), Some(there));
        }
        prop_assert_eq!(locate(&pieces, granules, shift), None);
        prop_assert_eq!(locate(&pieces, u64::MAX, shift), None);
    }
}

#[test]
fn a_store_may_grow() {
    let extent = |physical| RawExtent {
        logical: 0,
        physical,
        length: 4096 * 4,
        flags: 0,
    };
    let mut pieces = pieces(&[extent(1 << 20)], 3);
    let mut cursor = Cursor::new();
    assert_eq!(cursor.take(&pieces, 9), Some((0, 4)));
    assert_eq!(cursor.take(&pieces, 9), None);
    pieces.push(piece(&extent(0), 3, total(&pieces)).unwrap());
    assert_eq!(cursor.take(&pieces, 3), Some((4, 3)));
    assert_eq!(cursor.take(&pieces, 3), Some((7, 1)));
    assert_eq!((cursor.take(&pieces, 3), cursor.used()), (None, 8));
    assert_eq!(locate(&pieces, 5, 3), Some((8, 3)));
}

#[test]
fn neighbours_become_one_piece() {
    let extent = |physical| RawExtent {
        logical: 0,
        physical,
        length: 8192,
        flags: 0,
    };
    let list = [extent(0), extent(8192), extent(32768)];
    let expected = [
        Piece {
            sector: 0,
            slot: 0,
            granules: 4,
        },
        Piece {
            sector: 64,
            slot: 4,
            granules: 2,
        },
    ];
    assert_eq!(pieces(&list, 3), expected);
    // Too short for a granule.
    assert_eq!(pieces(&list, 5), []);
}
