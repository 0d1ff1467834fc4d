// SPDX-License-Identifier: GPL-2.0
//! The life of a granule in a version, and the walk along the chain of versions.
//!
//! A write copies a granule at most once, to the newest version that needs it. An older image
//! finds it by looking at its own version first, then at each newer one, then at the origin.

/// The state of one granule in one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The origin, or a newer version, holds the bytes; a write must be preceded by a copy.
    Needed,
    /// A copy is being read from the origin. No write to the granule is let through.
    Reading,
    /// The bytes are in memory, on their way to the store. Writes are let through.
    Memory,
    /// The bytes are in the store, or known to be zeros.
    Stored,
    /// There are no bytes any more: reading or storing them failed.
    Lost,
    /// This version has no use for the granule: free at the cut, released, not
    /// needed for an increment, or part of a store. It
    /// reads as zeros in this version's image. It says nothing about older versions.
    NotKept,
}

impl State {
    /// Whether a write need not wait for this version.
    pub const fn is_kept(self) -> bool {
        !matches!(self, Self::Needed | Self::Reading)
    }

    /// Whether the walk of an older image ends here, with the bytes or without.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Memory | Self::Stored | Self::Lost)
    }
}

/// What happens to a granule in a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write was parked, and the copy begins.
    Park,
    /// The copy was read.
    ReadOk,
    /// The copy was read, and is zeros.
    ReadZeros,
    /// The origin could not be read.
    ReadFailed,
    /// The copy is not wanted any more, as its version failed or goes. What is read is dropped.
    Abandon,
    /// The copy was written to the store.
    StoreOk,
    /// The store could not be written.
    StoreFailed,
    /// The store is full, and the version failed. Bytes in memory are handed down first: [`heir`].
    NoRoom,
    /// The version need not keep the granule, which it has not copied: free at the cut, or part of
    /// a store.
    Exclude,
    /// The version may forget the granule, copied or not. Bytes are handed down first: [`heir`].
    Release,
}

/// The state after `event`; [`None`] where it can't happen. A result that comes in when its copy
/// was abandoned, released or inherited meanwhile is such a case: drop it.
pub const fn step(state: State, event: Event) -> Option<State> {
    Some(match (state, event) {
        (State::Needed, Event::Park) => State::Reading,
        (State::Reading, Event::ReadOk) => State::Memory,
        (State::Reading, Event::ReadZeros) => State::Stored,
        (State::Reading, Event::ReadFailed) => State::Lost,
        (State::Reading, Event::Abandon | Event::NoRoom) => State::Needed,
        (State::Memory, Event::StoreOk) => State::Stored,
        (State::Memory, Event::StoreFailed | Event::NoRoom) => State::Lost,
        (State::Needed, Event::Exclude) => State::NotKept,
        (_, Event::Release) => State::NotKept,
        _ => return None,
    })
}

/// A version as the walk sees it for one granule.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The granule's state in it.
    pub state: State,
    /// Not so if it failed or is being deleted: it needs nothing then, but what it holds still
    /// serves older versions.
    pub live: bool,
}

/// What must happen before a granule may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the write may pass.
    Pass,
    /// The copy that this version is reading must be finished or abandoned; then ask again.
    Wait(usize),
    /// This version must get a copy; then ask again.
    Copy(usize),
}

/// What must happen before a granule may be overwritten, from the versions, newest first: `look`
/// tells how one is, `reads` whether it may be reading anything at all.
///
/// A copy that is being read holds up writes even if its version does not live, or a newer version
/// has the bytes: what came in late would be new bytes taken for old ones. [`Event::Abandon`] ends
/// that. Of others that are older than one with the bytes nothing is needed: they are not looked at.
pub fn need<V>(
    newest_first: impl Iterator<Item = V>,
    reads: impl Fn(&V) -> bool,
    mut look: impl FnMut(&V) -> Link,
) -> Need {
    let mut served = false;
    let mut reading = None;
    for (version, index) in newest_first.zip(0..usize::MAX) {
        if served && !reads(&version) {
            continue;
        }
        let link = look(&version);
        match link.state {
            State::Needed if link.live && !served => return Need::Copy(index),
            State::Reading => {
                reading = reading.or(Some(index));
                // Once it is read, it serves the older ones.
                served |= link.live;
            }
            state => served |= state.has_data(),
        }
    }
    reading.map_or(Need::Pass, Need::Wait)
}

/// Where an image finds a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the origin, at the same place.
    Origin,
    /// Nowhere: it reads as zeros.
    Zeros,
    /// With this version, in memory or in the store.
    Version(usize),
    /// Nowhere: it can't be read.
    Unreadable,
}

/// Where an image finds a granule, from the states in its own version (index 0) and in each newer
/// one, up to the newest.
pub fn source(own_to_newest: impl Iterator<Item = State>) -> Source {
    for (index, state) in own_to_newest.enumerate() {
        match state {
            State::Memory | State::Stored => return Source::Version(index),
            State::Lost => return Source::Unreadable,
            State::NotKept if index == 0 => return Source::Zeros,
            // The origin still holds the bytes, or a newer version.
            State::Needed | State::Reading | State::NotKept => (),
        }
    }
    Source::Origin
}

/// Which of the older versions (the next older first) must take over what a version holds of a
/// granule, before that version forgets it; [`None`] if none of them makes use of it.
pub fn heir(older_newest_first: impl Iterator<Item = State>) -> Option<usize> {
    for (index, state) in older_newest_first.enumerate() {
        match state {
            State::Needed | State::Reading => return Some(index),
            State::Memory | State::Stored | State::Lost => return None,
            State::NotKept => (),
        }
    }
    None
}

/// Which of the older versions, the next older first and each with its state, read through a version what
/// it has of a granule, or has lost.
pub fn readers<V>(older_newest_first: impl Iterator<Item = (V, State)>) -> impl Iterator<Item = V> {
    older_newest_first
        .take_while(|(_, state)| matches!(state, State::Needed | State::NotKept))
        .filter(|(_, state)| matches!(state, State::Needed))
        .map(|(version, _)| version)
}

/// The state of an heir that was in state `own`, after it took over what was in state `newer`;
/// [`None`] if there is nothing to take.
pub const fn inherit(own: State, newer: State) -> Option<State> {
    match (own, newer) {
        (State::Needed | State::Reading, State::Memory | State::Stored) => Some(newer),
        // One that is being read comes from an origin that was not written yet.
        (State::Needed, State::Lost) => Some(newer),
        _ => None,
    }
}
