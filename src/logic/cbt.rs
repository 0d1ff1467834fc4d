// SPDX-License-Identifier: GPL-2.0
//! Change maps: what the byte of a CBT block means, and how the numbers grow.
//!
//! A map has a number, 0 at first, that grows by 1 at each cut. A write marks its blocks with the
//! *mark number*, the number of the cut to come; so a block that is marked `n` last changed between
//! the cuts `n - 1` and `n`, and it differs from snapshot `N` iff `n > N`.
//!
//! A byte holds 0 for "never changed", else `1 + n % 255`: the numbers go round. They can be told
//! apart as long as all numbers in a map lie within 255 of each other. When they are about to not,
//! an *aging pass* raises the old ones to a horizon, and what is older than the horizon can't be
//! asked for any more:
//!
//! 1. `let pass = clock.set_oldest(clock.aging_due()?)`: from here on older questions are refused;
//! 2. every byte of the map is seen, and replaced where [`Clock::aged`] says so. Writes may mark
//!    at the same time: the replacement must be a compare-and-exchange, and a failed one needs no
//!    repetition, for a mark is never older than the horizon;
//! 3. `clock.aging_done(pass)`.
//!
//! Who reads a map while others may age it asks [`Clock::can_answer`] *after* the reading: a
//! question that may still be asked then was not touched by any pass.

/// How many numbers can be told apart.
const CODES: u64 = 255;

/// How many snapshots before the newest an aging pass leaves exact.
const KEPT: u64 = 127;

/// The byte for the number `n`, which is at least 1.
pub const fn code(n: u64) -> u8 {
    // The sum is at most 255.
    (1 + n % CODES) as u8
}

/// The number that `byte` stands for when `mark` is the highest that the map can hold: the only
/// fitting one of `mark - 254..=mark`, or 0 for a byte of 0.
///
/// `mark` is [`Clock::mark`] for a map in use, and `N` for what was put aside of it at the first
/// mark after the cut `N`; these must not be confused. A byte that no number from 1 to `mark` has
/// is not in any sound map; it counts as changed just now.
pub fn decode(byte: u8, mark: u64) -> u64 {
    if byte == 0 {
        return 0;
    }
    let ahead = u64::from(code(mark)) + CODES - u64::from(byte);
    match mark.checked_sub(ahead % CODES) {
        None | Some(0) => mark,
        Some(n) => n,
    }
}

/// Whether the block with this `byte` changed after the cut `since`, with `mark` as for [`decode`].
pub fn changed(byte: u8, mark: u64, since: u64) -> bool {
    decode(byte, mark) > since
}

/// The numbers of a map.
///
/// # Invariants
///
/// - `oldest <= number`.
/// - Each byte of the map that is not 0 stands for a number of `floor..=mark`.
/// - `mark - floor < 255`, so that they can be told apart.
/// - `number` does not change while `aging`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The number of the last cut.
    number: u64,
    /// The oldest cut that may be asked for.
    oldest: u64,
    /// No byte stands for a lower number, except for 0.
    floor: u64,
    /// Whether an aging pass was begun that is not done.
    aging: bool,
}

/// An aging pass that was begun; see [`Clock::set_oldest`].
#[derive(Debug)]
#[must_use = "until it is given to `aging_done`, there can be no cut"]
pub struct Aging {
    /// What the bytes are raised to.
    horizon: u64,
}

impl Aging {
    /// The horizon of this pass, for [`Clock::aged`].
    pub fn horizon(&self) -> u64 {
        self.horizon
    }
}

impl Clock {
    /// The clock of a new map, all zeros.
    pub const fn new() -> Self {
        // INVARIANT: All bytes are 0, and `mark - floor` is 0.
        Self {
            number: 0,
            oldest: 0,
            floor: 1,
            aging: false,
        }
    }

    /// The number of the last cut; 0 before the first.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The oldest cut that may be asked for.
    pub const fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The number that writes are marked with now.
    pub const fn mark(&self) -> u64 {
        // A number never gets that high: see `cut`.
        self.number.saturating_add(1)
    }

    /// Whether the next cut must be preceded by an aging pass, and if so, the horizon for it. That
    /// is the case when the numbers would span too much, and when a pass was begun but not done.
    pub fn aging_due(&self) -> Option<u64> {
        if self.aging {
            return Some(self.oldest);
        }
        let span = self.mark().saturating_add(1).saturating_sub(self.floor);
        (span >= CODES).then_some(self.number.saturating_sub(KEPT))
    }

    /// Begins an aging pass to `horizon`, by refusing all older questions. The horizon can't go
    /// back, nor be ahead of the last cut; it is taken as the nearest that can be. Until the pass
    /// is done ([`Clock::aging_done`]) there can be no cut. There is one pass at a time; one that
    /// was given up is begun again.
    pub fn set_oldest(&mut self, horizon: u64) -> Aging {
        // INVARIANT: At most `number`.
        self.oldest = horizon.min(self.number).max(self.oldest);
        self.aging = true;
        Aging {
            horizon: self.oldest,
        }
    }

    /// What the aging pass to `horizon` makes of a byte: [`None`] to leave it as it is.
    ///
    /// The clock may be a copy from the begin of the pass, as there is no cut during one.
    pub fn aged(&self, byte: u8, horizon: u64) -> Option<u8> {
        let n = decode(byte, self.mark());
        (byte != 0 && n < horizon && horizon <= self.number).then_some(code(horizon))
    }

    /// Ends an aging pass, when every byte of the map has been seen since its begin. Nothing
    /// happens if it is not the last that was begun.
    pub fn aging_done(&mut self, pass: Aging) {
        if pass.horizon != self.oldest {
            return;
        }
        // INVARIANT: All bytes were raised to the horizon, which is at most `number`.
        self.floor = self.floor.max(pass.horizon);
        self.aging = false;
    }

    /// Counts a cut, and returns its number. [`None`], and no change, if an aging pass must come
    /// first or is not done.
    pub fn cut(&mut self) -> Option<u64> {
        if self.aging_due().is_some() || self.number >= u64::MAX - 2 {
            return None;
        }
        // INVARIANT: `aging_due` looked at the mark to come.
        self.number = self.number.saturating_add(1);
        Some(self.number)
    }

    /// Whether the map, as of the cut `as_of`, can tell what changed after the cut `since`.
    pub const fn can_answer(&self, since: u64, as_of: u64) -> bool {
        self.oldest <= since && since <= as_of && as_of <= self.number
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
