// SPDX-License-Identifier: GPL-2.0
//! The rules for granules one by one; `granule.rs` has them at work together.

use bdsnap_logic::granule;
use bdsnap_logic::granule::heir;
use bdsnap_logic::granule::inherit;
use bdsnap_logic::granule::readers;
use bdsnap_logic::granule::source;
use bdsnap_logic::granule::step;
use bdsnap_logic::granule::Event;
use bdsnap_logic::granule::Link;
use bdsnap_logic::granule::Need;
use bdsnap_logic::granule::Source;
use bdsnap_logic::granule::State;

/// All states.
const STATES: [State; 6] = [
    State::Needed,
    State::Reading,
    State::Memory,
    State::Stored,
    State::Lost,
    State::NotKept,
];

#[test]
fn a_state_is_left_only_by_its_events() {
    use Event::*;
    for state in STATES {
        let allowed: &[Event] = match state {
            State::Needed => &[Park, Exclude, Release],
            State::Reading => &[ReadOk, ReadZeros, ReadFailed, Abandon, NoRoom, Release],
            State::Memory => &[StoreOk, StoreFailed, NoRoom, Release],
            State::Stored | State::Lost | State::NotKept => &[Release],
        };
        for event in [
            Park,
            ReadOk,
            ReadZeros,
            ReadFailed,
            Abandon,
            StoreOk,
            StoreFailed,
            NoRoom,
            Exclude,
            Release,
        ] {
            assert_eq!(step(state, event).is_some(), allowed.contains(&event));
        }
    }
}

/// What must happen before a granule may be overwritten that is so in the versions, newest first.
fn need(newest_first: &[Link]) -> Need {
    let reads = |link: &&Link| link.state == State::Reading;
    granule::need(newest_first.iter(), reads, |link| **link)
}

#[test]
fn a_chain_of_one_is_plain() {
    for state in STATES {
        let of_one = |live| need(&[Link { state, live }]);
        assert_eq!(of_one(true) == Need::Pass, state.is_kept(), "{state:?}");
        assert_eq!(of_one(false) == Need::Pass, state != State::Reading);
        let found = match state {
            State::Needed | State::Reading => Source::Origin,
            State::Memory | State::Stored => Source::Version(0),
            State::Lost => Source::Unreadable,
            State::NotKept => Source::Zeros,
        };
        assert_eq!(source(std::iter::once(state)), found);
    }
    assert_eq!(need(&[]), Need::Pass);
    assert_eq!(source(std::iter::empty()), Source::Origin);
}

#[test]
fn marks_of_a_newer_version_say_nothing_about_an_older() {
    let chain = [State::Needed, State::NotKept, State::Stored];
    assert_eq!(source(chain.into_iter()), Source::Version(2));
    let link = |state| Link { state, live: true };
    let needed = [State::NotKept, State::Needed].map(link);
    assert_eq!(need(&needed), Need::Copy(1));
    let served = [State::Stored, State::NotKept, State::Needed].map(link);
    assert_eq!(need(&served), Need::Pass);
}

#[test]
fn the_heir_is_who_would_miss_the_bytes() {
    use State::*;
    let heir_of = |states: &[State]| heir(states.iter().copied());
    assert_eq!(heir_of(&[NotKept, Needed, Needed]), Some(1));
    assert_eq!(heir_of(&[NotKept, Reading]), Some(1));
    for state in [Memory, Stored, Lost] {
        assert_eq!(heir_of(&[NotKept, state, Needed]), None);
        assert_eq!(inherit(Needed, state), Some(state));
    }
    assert_eq!(inherit(Reading, Lost), None);
    assert_eq!(heir_of(&[]), None);
}

#[test]
fn those_read_through_a_version_that_have_nothing_before_it() {
    use State::*;
    let readers_of =
        |states: &[State]| -> Vec<usize> { readers(states.iter().copied().enumerate()).collect() };
    assert_eq!(readers_of(&[NotKept, Needed, NotKept, Needed]), [1, 3]);
    for state in [Reading, Memory, Stored, Lost] {
        assert_eq!(readers_of(&[Needed, state, Needed]), [0]);
    }
    assert_eq!(readers_of(&[]), [0; 0]);
}

#[test]
fn a_copy_under_way_holds_up_the_write_whoever_it_is_for() {
    let link = |(state, live)| Link { state, live };
    let chain = |links: [(State, bool); 2]| need(&links.map(link));
    let dead_read = (State::Reading, false);
    assert_eq!(chain([(State::Stored, true), dead_read]), Need::Wait(1));
    assert_eq!(chain([dead_read, (State::Needed, true)]), Need::Copy(1));
    assert_eq!(chain([dead_read, (State::Needed, false)]), Need::Wait(0));
    assert_eq!(
        chain([(State::Reading, true), (State::Needed, true)]),
        Need::Wait(0)
    );
}
