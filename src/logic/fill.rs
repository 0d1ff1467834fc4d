// SPDX-License-Identifier: GPL-2.0
//! Which portion of a store the next copy goes to, and the numbers of slots.
//!
//! The portions on one device make a *lane*. Lanes are filled side by side, the emptiest first, so
//! that all devices of a store take their part of the load; the portions of a lane one after the
//! other, so that what is written to a device lies together.

use crate::units::div_down;
use crate::units::mask;
use crate::units::times;

/// A slot's number has its place in the portion in so many low bits, and the portion's above.
const PORTION_SHIFT: u32 = 40;

/// The most slots that a portion can have.
pub const PORTION_SLOTS: u64 = 1 << PORTION_SHIFT;

/// The number of a slot by its portion, and its place there. [`None`]: there is no such number.
pub fn slot(portion: usize, place: u64) -> Option<u64> {
    let portion = u64::try_from(portion).ok()?;
    let fits = portion <= mask(64 - PORTION_SHIFT) && place < PORTION_SLOTS;
    fits.then(|| times(portion, PORTION_SHIFT) | place)
}

/// The portion of a slot, and its place there.
pub fn place(slot: u64) -> (usize, u64) {
    let portion = usize::try_from(div_down(slot, PORTION_SHIFT)).unwrap_or(usize::MAX);
    (portion, slot & mask(PORTION_SHIFT))
}

/// How full a lane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Slots in use.
    pub used: u64,
    /// All slots.
    pub total: u64,
}

impl Fill {
    /// Whether it has a slot left.
    fn has_room(&self) -> bool {
        self.used < self.total
    }

    /// Whether a smaller part of it is in use than of `other`.
    fn is_emptier(&self, other: &Self) -> bool {
        let cross = |a: u64, b: u64| u128::from(a).saturating_mul(u128::from(b));
        cross(self.used, other.total) < cross(other.used, self.total)
    }
}

/// The emptiest of these lanes that has a slot left, the first of equals.
pub fn emptiest(lanes: impl Iterator<Item = Fill>) -> Option<usize> {
    let mut best: Option<(usize, Fill)> = None;
    for (index, lane) in lanes.enumerate() {
        if lane.has_room() && best.is_none_or(|(_, b)| lane.is_emptier(&b)) {
            best = Some((index, lane));
        }
    }
    best.map(|(index, _)| index)
}
