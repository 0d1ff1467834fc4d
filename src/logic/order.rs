// SPDX-License-Identifier: GPL-2.0
//! The order in which the gates of several origins close.

use crate::units::Sectors;
use crate::units::Span;

/// Whether a bio that lies on both of two origins on one disk meets `a` first.
pub fn is_met_before(a: Span<Sectors>, b: Span<Sectors>) -> bool {
    (b.len(), a.start()) < (a.len(), b.start())
}

/// Puts `list` into the order in which a bio meets the origins: the one it has, but of those on one disk
/// the larger comes first, of equal ones that which begins first, whatever lies between them. (A bio
/// that waits at the second of two gates is counted by the first, which would never drain; and a bio for
/// the disk may lie on several of its partitions.) `place` says on which disk an item is, and where there.
///
/// The smaller one moves back, behind the larger: what is above it stays before it.
pub fn as_met<T, D: PartialEq>(list: &mut [T], place: impl Fn(&T) -> (D, Span<Sectors>)) {
    let mut at = 0usize;
    while let Some((first, others)) = list.get(at..).and_then(<[T]>::split_first) {
        let (disk, span) = place(first);
        let is_before = |other: &T| {
            let (on, there) = place(other);
            on == disk && is_met_before(there, span)
        };
        let behind = others.iter().rposition(is_before);
        let Some(last) = behind.and_then(|n| at.checked_add(n)?.checked_add(1)) else {
            at = at.saturating_add(1);
            continue;
        };
        let part = list.get_mut(at..=last).unwrap_or_default();
        let Some((mut hole, moved)) = part.split_first_mut() else {
            return;
        };
        for item in moved {
            core::mem::swap(hole, item);
            hole = item;
        }
    }
}
