// SPDX-License-Identifier: GPL-2.0
//! The order in which the gates of several origins close.

use crate::units::Sectors;
use crate::units::Span;

/// Puts `list` into the order in which a bio meets the origins: the one it has, but of those that
/// overlap on one disk the larger comes first, whatever lies between them. (A bio that waits at the
/// second of two gates is counted by the first, which would never drain.) `place` says on which
/// disk an item is, and where there.
///
/// The smaller one moves back, behind the larger: what is above it stays before it.
pub fn as_met<T, D: PartialEq>(list: &mut [T], place: impl Fn(&T) -> (D, Span<Sectors>)) {
    let mut at = 0usize;
    while let Some((first, others)) = list.get(at..).and_then(<[T]>::split_first) {
        let (disk, span) = place(first);
        let is_before = |other: &T| {
            let (on, larger) = place(other);
            on == disk && larger.len() > span.len() && !larger.intersect(span).is_empty()
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
