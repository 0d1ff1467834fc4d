// SPDX-License-Identifier: GPL-2.0
//! When a store that may grow asks for more, how much, and what it keeps back.
//!
//! All amounts are slots. What decides is time: how long the room that is left lasts at the rate at
//! which it is being used.

use crate::fill::Fill;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// The least time over which the rate is measured, nanoseconds.
const WINDOW: u64 = SECOND / 5;
/// After so long without use, a rate has faded away, nanoseconds.
const FADE: u64 = 4 * SECOND;
/// So long what is left should last, seconds: the time that a portion may take to come.
const HORIZON: u64 = 10;

/// How fast slots are used: what was measured last, or what has faded since, whichever is more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// When the window began, nanoseconds.
    since: u64,
    /// Slots used in it.
    taken: u64,
    /// Slots of earlier windows that were not used after all: so many of the next don't count.
    undone: u64,
    /// Slots a second, as of its begin.
    rate: u64,
}

impl Rate {
    /// Takes note that `slots` have been used at the time `now`, nanoseconds.
    pub fn add(&mut self, now: u64, slots: u64) {
        if self.since == 0 {
            self.since = now;
        }
        let slots_left = slots.saturating_sub(self.undone);
        self.undone = self.undone.saturating_sub(slots);
        self.taken = self.taken.saturating_add(slots_left);
        if now.saturating_sub(self.since) >= WINDOW {
            *self = Self {
                since: now,
                taken: 0,
                undone: self.undone,
                rate: self.at(now),
            };
        }
    }

    /// Takes note that `slots` of those that have been taken were not used after all.
    pub fn undo(&mut self, slots: u64) {
        self.undone = self.undone.saturating_add(slots.saturating_sub(self.taken));
        self.taken = self.taken.saturating_sub(slots);
    }

    /// The rate as of `now`, slots a second.
    pub fn at(&self, now: u64) -> u64 {
        let elapsed = now.saturating_sub(self.since);
        if elapsed < WINDOW {
            return self.rate;
        }
        let faded = part(self.rate, FADE.saturating_sub(elapsed), FADE);
        part(self.taken, SECOND, elapsed).max(faded)
    }
}

/// `value * a / b`; 0 where `b` is 0.
fn part(value: u64, a: u64, b: u64) -> u64 {
    value.saturating_mul(a).checked_div(b).unwrap_or(0)
}

/// How a store may grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// So many slots more it may get; 0: none (any more).
    pub room: u64,
    /// The least that it asks for at a time.
    pub portion: u64,
    /// The most that is kept back.
    pub spare: u64,
}

impl Growth {
    /// Whether it may.
    pub fn may_grow(&self) -> bool {
        self.room > 0
    }

    /// How many of `total` slots are kept back while there may be more, for the writes without which
    /// none can come: of the metadata of the file system where they are allocated.
    pub fn reserve(&self, total: u64) -> u64 {
        if self.may_grow() {
            total.checked_div(4).unwrap_or(0).min(self.spare)
        } else {
            0
        }
    }

    /// Whether what is left is little: it won't last for long at this rate.
    pub fn is_low(&self, fill: Fill, rate: u64) -> bool {
        let quarter = fill.total.checked_div(4).unwrap_or(0);
        let least = if self.may_grow() {
            quarter.min(self.portion)
        } else {
            0
        };
        let lasts = rate.saturating_mul(HORIZON).max(least);
        let mark = self.reserve(fill.total).saturating_add(lasts);
        fill.total.saturating_sub(fill.used) <= mark
    }

    /// How many slots more are wanted; 0: none, or it may not grow.
    pub fn wanted(&self, fill: Fill, rate: u64) -> u64 {
        if !self.is_low(fill, rate) {
            return 0;
        }
        let lasting = rate.saturating_mul(HORIZON).saturating_mul(2);
        lasting.max(self.portion).min(self.room)
    }

    /// In how many seconds there will be nothing left at this rate, growing included.
    /// [`None`]: it isn't used.
    pub fn seconds_left(&self, fill: Fill, rate: u64) -> Option<u64> {
        let free = fill.total.saturating_sub(fill.used);
        free.saturating_add(self.room).checked_div(rate)
    }
}

/// What somebody gets who asks for slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many, at most.
    Some(u64),
    /// None yet, but more may come.
    Later,
    /// None.
    Full,
}

/// What somebody gets who asks `fill` for slots, of which `reserve` are kept back for who is
/// `urgent`. `patient`: it can be waited for more.
pub fn room(fill: Fill, reserve: u64, urgent: bool, patient: bool) -> Room {
    let free = fill.total.saturating_sub(fill.used);
    let usable = if urgent || !patient {
        free
    } else {
        free.saturating_sub(reserve)
    };
    match usable {
        0 if patient => Room::Later,
        0 => Room::Full,
        usable => Room::Some(usable),
    }
}
