// SPDX-License-Identifier: GPL-2.0
//! Units of a block device, and spans of them.
//!
//! A [`Span`] says in its type what it counts, so that sectors, granules and CBT blocks cannot be
//! mixed up. Conversions name their rounding: outwards for what must be copied or marked, inwards
//! for what may be forgotten.

use core::fmt;
use core::marker::PhantomData;

/// `log2` of the size of a sector in bytes, whatever the device's own block size.
pub const SECTOR_SHIFT: u32 = 9;

/// Counts sectors of 512 bytes.
pub enum Sectors {}

/// Counts granules: the smallest unit that is copied.
pub enum Granules {}

/// Counts CBT blocks: the unit of change tracking.
pub enum Blocks {}

/// Counts chunks: the unit in which free space is recorded.
pub enum Chunks {}

/// A unit made of `1 << shift` sectors, counted from the start of an origin.
pub trait Unit {}

impl Unit for Granules {}

impl Unit for Blocks {}

impl Unit for Chunks {}

/// The half-open range `start..end` of units `U`.
///
/// # Invariants
///
/// `start <= end`.
pub struct Span<U> {
    /// The first unit.
    start: u64,
    /// The unit after the last.
    end: u64,
    /// What is counted.
    unit: PhantomData<U>,
}

impl<U> Span<U> {
    /// A span of nothing, at 0.
    pub const EMPTY: Self = Self::at(0);

    /// A span of nothing, at `start`.
    const fn at(start: u64) -> Self {
        // INVARIANT: `start <= start`.
        Self {
            start,
            end: start,
            unit: PhantomData,
        }
    }

    /// The span `start..end`; [`None`] if it would end before it starts.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start > end {
            return None;
        }
        // INVARIANT: Tested just above.
        Some(Self {
            start,
            end,
            unit: PhantomData,
        })
    }

    /// The span of `len` units from `start` on; [`None`] if its end is not a `u64`.
    pub const fn of_len(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// The span `start..end`, or nothing at `start` if it would end before it starts.
    const fn new_or_empty(start: u64, end: u64) -> Self {
        // INVARIANT: `end` is raised to `start` if it is below.
        Self {
            start,
            end: if start > end { start } else { end },
            unit: PhantomData,
        }
    }

    /// The first unit.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The unit after the last.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// How many units there are.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether `unit` is one of them.
    pub const fn contains(&self, unit: u64) -> bool {
        self.start <= unit && unit < self.end
    }

    /// The units that are in both; an empty span if there are none.
    pub fn intersect(self, other: Self) -> Self {
        Self::new_or_empty(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether any unit is in both.
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The units before `at`, and those from `at` on. One of them is empty if `at` is outside.
    pub fn split_at(self, at: u64) -> (Self, Self) {
        let at = at.max(self.start).min(self.end);
        (
            Self::new_or_empty(self.start, at),
            Self::new_or_empty(at, self.end),
        )
    }
}

impl Span<Sectors> {
    /// All units of `1 << shift` sectors that are touched.
    pub fn outward<V: Unit>(self, shift: u32) -> Span<V> {
        let start = div_down(self.start, shift);
        if self.is_empty() {
            return Span::at(start);
        }
        Span::new_or_empty(start, div_up(self.end, shift))
    }

    /// Only the units of `1 << shift` sectors that are wholly inside, on a device of `device_len`
    /// sectors. What lies past the device's end does not count, so a short last unit is whole if
    /// the span reaches the end of the device.
    pub fn inward<V: Unit>(self, shift: u32, device_len: u64) -> Span<V> {
        let start = div_up(self.start, shift);
        let end = if self.end >= device_len {
            div_up(device_len, shift)
        } else {
            div_down(self.end, shift)
        };
        Span::new_or_empty(start, end)
    }

    /// All sectors touched by `len` bytes at `offset`; [`None`] if their end is not a `u64`.
    pub fn from_bytes_outward(offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        let start = div_down(offset, SECTOR_SHIFT);
        if len == 0 {
            return Some(Self::at(start));
        }
        Self::new(start, div_up(end, SECTOR_SHIFT))
    }

    /// The sectors that are exactly `len` bytes at `offset`; [`None`] if either is not a multiple
    /// of a sector, or their end is not a `u64`.
    pub fn from_bytes_exact(offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if (offset | len) & mask(SECTOR_SHIFT) != 0 {
            return None;
        }
        Self::new(div_down(offset, SECTOR_SHIFT), div_down(end, SECTOR_SHIFT))
    }
}

impl<V: Unit> Span<V> {
    /// The sectors of these units of `1 << shift` sectors, as far as a device of `device_len`
    /// sectors has them.
    pub fn sectors(self, shift: u32, device_len: u64) -> Span<Sectors> {
        Span::new_or_empty(
            times(self.start, shift).min(device_len),
            times(self.end, shift).min(device_len),
        )
    }
}

impl<U> Clone for Span<U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U> Copy for Span<U> {}

impl<U> PartialEq for Span<U> {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.end == other.end
    }
}

impl<U> Eq for Span<U> {}

impl<U> fmt::Debug for Span<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// `1 << shift`, less 1. A shift of 64 or more counts as 63, as in all these helpers.
#[inline]
pub(crate) fn mask(shift: u32) -> u64 {
    1u64.wrapping_shl(shift.min(63)).wrapping_sub(1)
}

/// `value / (1 << shift)`, rounded down.
#[inline]
pub(crate) fn div_down(value: u64, shift: u32) -> u64 {
    value.wrapping_shr(shift.min(63))
}

/// `value / (1 << shift)`, rounded up.
#[inline]
pub(crate) fn div_up(value: u64, shift: u32) -> u64 {
    // With a shift of 0 nothing is added, and with more the quotient is far from the limit.
    div_down(value, shift).wrapping_add(u64::from(value & mask(shift) != 0))
}

/// `value * (1 << shift)`, saturating.
#[inline]
pub(crate) fn times(value: u64, shift: u32) -> u64 {
    value.saturating_mul(mask(shift).wrapping_add(1))
}
