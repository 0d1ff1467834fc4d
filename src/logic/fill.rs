// SPDX-License-Identifier: GPL-2.0
//! Which portion of a store the next copy goes to, the numbers of slots, and slots that were given back.
//!
//! The portions on one device make a *lane*. Lanes are filled side by side, the emptiest first, so
//! that all devices of a store take their part of the load; the portions of a lane one after the
//! other, so that what is written to a device lies together.

use core::ops::DerefMut;

use crate::units::div_down;
use crate::units::mask;
use crate::units::times;

/// A slot's number has its place in the portion in so many low bits, and the portion's above.
const PORTION_SHIFT: u32 = 37;

/// So many bits are left for the portion's: there may be `BDSNAP_MAX_PORTIONS`.
const PORTION_BITS: u32 = 10;

/// So many bits has a slot's number.
pub const SLOT_BITS: u32 = PORTION_SHIFT + PORTION_BITS;

/// The most slots that a portion can have.
pub const PORTION_SLOTS: u64 = 1 << PORTION_SHIFT;

/// The number of a slot by its portion, and its place there. [`None`]: there is no such number.
pub fn slot(portion: usize, place: u64) -> Option<u64> {
    let portion = u64::try_from(portion).ok()?;
    let fits = portion <= mask(PORTION_BITS) && place < PORTION_SLOTS;
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

/// How many of the first, and of the last, of `len` granules of a run need no slots: those are zeros of
/// which `zeros` has a bit. All of them: `len` and 0. The slots between are written in one go.
pub fn edges(zeros: u64, len: u64) -> (u64, u64) {
    let behind = u64::from(u64::BITS).saturating_sub(len);
    let others = !zeros & div_down(u64::MAX, behind as u32);
    if others == 0 {
        return (len, 0);
    }
    let last = u64::from(others.leading_zeros());
    (
        u64::from(others.trailing_zeros()),
        last.saturating_sub(behind),
    )
}

/// How many runs of slots a lane should remember that were given back.
pub const GAPS: usize = 512;

/// Some slots side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The first.
    slot: u64,
    /// How many.
    len: u64,
}

impl Gap {
    /// The slot after the last.
    const fn end(&self) -> u64 {
        self.slot.saturating_add(self.len)
    }
}

/// Slots that were taken and given back without having been used: what was to go there was zeros.
#[derive(Debug)]
pub struct Returned<L> {
    /// The first of these are runs of them, in no order; none follows another.
    gaps: L,
    /// How many.
    count: usize,
}

impl<L: DerefMut<Target = [Gap]>> Returned<L> {
    /// None; as many runs can be remembered as the list has elements.
    pub fn new(list: L) -> Self {
        Self {
            gaps: list,
            count: 0,
        }
    }

    /// The runs.
    fn gaps(&self) -> &[Gap] {
        self.gaps.get(..self.count).unwrap_or_default()
    }

    /// How many slots there are.
    pub fn total(&self) -> u64 {
        let lens = self.gaps().iter().map(|gap| gap.len);
        lens.fold(0, u64::saturating_add)
    }

    /// Whether there will soon be no place to remember more.
    pub fn is_crowded(&self) -> bool {
        self.count > self.gaps.len() / 2
    }

    /// Takes the run out that `is` says of.
    fn remove(&mut self, is: impl Fn(&Gap) -> bool) -> Option<Gap> {
        let index = self.gaps().iter().position(is)?;
        let last = *self.gaps().last()?;
        let gap = core::mem::replace(self.gaps.get_mut(index)?, last);
        self.count = self.count.saturating_sub(1);
        Some(gap)
    }

    /// Gives `len` slots from `slot` on back. False: there is no place to remember them; then they
    /// stay used.
    pub fn put(&mut self, slot: u64, len: u64) -> bool {
        let mut new = Gap { slot, len };
        if len == 0 {
            return true;
        }
        if let Some(before) = self.remove(|gap| gap.end() == slot) {
            new.slot = before.slot;
            new.len = new.len.saturating_add(before.len);
        }
        let end = new.end();
        if let Some(after) = self.remove(|gap| gap.slot == end) {
            new.len = new.len.saturating_add(after.len);
        }
        match self.gaps.get_mut(self.count) {
            Some(gap) => {
                *gap = new;
                self.count = self.count.saturating_add(1);
                true
            }
            None => false,
        }
    }

    /// Takes up to `want` slots side by side, of the longest run: the first one, and how many.
    /// [`None`]: there is no run of `least`, or none is wanted.
    pub fn take(&mut self, want: u64, least: u64) -> Option<(u64, u64)> {
        let longest = *self.gaps().iter().max_by_key(|gap| gap.len)?;
        if want == 0 || longest.len < least {
            return None;
        }
        let gap = self.remove(|gap| *gap == longest)?;
        let len = want.min(gap.len);
        let rest = gap.len.saturating_sub(len);
        // (There is a place: it has just been taken out.)
        self.put(gap.slot.saturating_add(len), rest);
        Some((gap.slot, len))
    }
}
