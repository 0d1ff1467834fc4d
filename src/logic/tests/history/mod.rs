// SPDX-License-Identifier: GPL-2.0
//! Histories of a small origin, against full copies of it: for the tests and for the fuzz target.
//!
//! The origin lives through writes, cuts, failures, releases and deletions. Reads end in any order,
//! and see the origin as at their begin or end. After each event, all images are checked.

use bdsnap_logic::granule::heir;
use bdsnap_logic::granule::inherit;
use bdsnap_logic::granule::need;
use bdsnap_logic::granule::source;
use bdsnap_logic::granule::step;
use bdsnap_logic::granule::Event;
use bdsnap_logic::granule::Link;
use bdsnap_logic::granule::Need;
use bdsnap_logic::granule::Source;
use bdsnap_logic::granule::State;

/// Granules of the origin.
const GRANULES: usize = 3;

/// A granule in a version: what is tested, and what is true.
#[derive(Clone, Copy)]
struct Place {
    /// Under test.
    state: State,
    /// The bytes, if they are in memory or stored.
    data: u8,
    /// What the image must show.
    image: u8,
    /// Whether the image may show nothing, for an error hit what it relied on.
    excused: bool,
}

/// A version.
struct Version {
    /// Not reused.
    id: usize,
    /// Whether it neither failed nor is being deleted.
    live: bool,
    /// Its granules.
    places: [Place; GRANULES],
}

/// A copy that is being read.
struct Read {
    /// The version it is for.
    id: usize,
    /// What is read.
    granule: usize,
    /// What the origin held at the begin.
    begun: u8,
}

/// An origin, its versions from the oldest to the newest, and all that is on its way.
#[derive(Default)]
struct World {
    /// The origin.
    origin: [u8; GRANULES],
    /// The chain.
    chain: Vec<Version>,
    /// Copies being read.
    reads: Vec<Read>,
    /// Writes that wait: granule and value.
    parked: Vec<(usize, u8)>,
    /// The next version's id.
    next_id: usize,
}

/// An event, and on what it falls: kind (below [`KINDS`]), two choices, a value (not 0).
pub type Op = (u8, usize, usize, u8);

/// How many kinds of events there are.
pub const KINDS: u8 = 56;

/// Lives through a history. Panics where an image is not what it was, or a write waits for ever.
pub fn play(ops: impl IntoIterator<Item = Op>) {
    let mut world = World::default();
    for op in ops {
        world.act(op);
    }
    // No write waits for ever.
    world.cut(0);
}

/// The history that some bytes stand for, four for each event.
#[allow(dead_code, reason = "not each user has bytes")]
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = Op> + '_ {
    bytes
        .chunks_exact(4)
        .map(|b| (b[0] % KINDS, b[1].into(), b[2].into(), b[3].max(1)))
}

impl World {
    /// What must happen before a granule may be overwritten; the index is one of `chain`.
    fn need(&self, granule: usize) -> Need {
        let last = self.chain.len().saturating_sub(1);
        let reads = |version: &&Version| {
            let mut places = version.places.iter();
            places.any(|place| place.state == State::Reading)
        };
        let look = |version: &&Version| Link {
            state: version.places[granule].state,
            live: version.live,
        };
        match need(self.chain.iter().rev(), reads, look) {
            Need::Copy(index) => Need::Copy(last - index),
            Need::Wait(index) => Need::Wait(last - index),
            Need::Pass => Need::Pass,
        }
    }

    /// Where the image of `chain[at]` finds a granule.
    fn source(&self, at: usize, granule: usize) -> Source {
        let newer = self.chain[at..].iter();
        source(newer.map(|version| version.places[granule].state))
    }

    /// Begins a copy if one is needed; whether a write may pass.
    fn prepare(&mut self, granule: usize) -> bool {
        while let Need::Copy(at) = self.need(granule) {
            // Only what would be lost is copied, and only once.
            assert!(self.chain[at].live);
            assert_eq!(self.source(at, granule), Source::Origin);
            assert!(self.chain[at..].iter().all(|version| {
                !version.live || version.places[granule].state != State::Reading
            }));
            let version = &mut self.chain[at];
            let place = &mut version.places[granule];
            place.state = step(place.state, Event::Park).unwrap();
            let (id, begun) = (version.id, self.origin[granule]);
            self.reads.push(Read { id, granule, begun });
        }
        self.need(granule) == Need::Pass
    }

    /// Lets the writes pass that may.
    fn pump(&mut self) {
        for (granule, value) in std::mem::take(&mut self.parked) {
            if self.prepare(granule) {
                self.origin[granule] = value;
            } else {
                self.parked.push((granule, value));
            }
        }
    }

    /// A copy was read.
    fn read_done(&mut self, which: usize, ok: bool, late: bool) {
        if self.reads.is_empty() {
            return;
        }
        let Read { id, granule, begun } = self.reads.remove(which % self.reads.len());
        let Some(at) = self.chain.iter().position(|version| version.id == id) else {
            return;
        };
        let place = &mut self.chain[at].places[granule];
        let data = if late { self.origin[granule] } else { begun };
        let event = match (ok, data) {
            (true, 0) => Event::ReadZeros,
            (true, _) => Event::ReadOk,
            (false, _) => Event::ReadFailed,
        };
        if let Some(state) = step(place.state, event) {
            (place.state, place.data) = (state, data);
            self.excuse(at, granule);
        }
    }

    /// After an error with `chain[at]`: who can't be served any more is excused.
    fn excuse(&mut self, at: usize, granule: usize) {
        for older in 0..=at {
            if self.source(older, granule) == Source::Unreadable {
                self.chain[older].places[granule].excused = true;
            }
        }
    }

    /// Hands down what `chain[at]` holds of a granule.
    fn hand_down(&mut self, at: usize, granule: usize) {
        let from = self.chain[at].places[granule];
        if !from.state.has_data() {
            return;
        }
        let older = self.chain[..at].iter().rev();
        if let Some(index) = heir(older.map(|version| version.places[granule].state)) {
            let place = &mut self.chain[at - 1 - index].places[granule];
            if let Some(state) = inherit(place.state, from.state) {
                (place.state, place.data) = (state, from.data);
            }
        }
    }

    /// An event for a granule in a version, if it can be.
    fn step(&mut self, at: usize, granule: usize, event: Event) {
        let place = &mut self.chain[at].places[granule];
        let was = place.state;
        let Some(state) = step(was, event) else {
            return;
        };
        place.state = state;
        match event {
            Event::Release | Event::Exclude => (place.image, place.excused) = (0, false),
            // Bytes are gone that some image may have relied on.
            Event::StoreFailed | Event::NoRoom if was == State::Memory => self.excuse(at, granule),
            _ => (),
        }
    }

    /// A new version, after all writes that were parked have passed.
    fn cut(&mut self, excluded: u8) {
        while !self.parked.is_empty() {
            assert!(!self.reads.is_empty(), "a write waits for nothing");
            self.read_done(0, true, true);
            self.pump();
        }
        self.chain.push(Version {
            id: self.next_id,
            live: true,
            places: self.origin.map(|image| Place {
                state: State::Needed,
                data: 0xee,
                image,
                excused: false,
            }),
        });
        self.next_id += 1;
        for granule in (0..GRANULES).filter(|granule| (excluded >> granule) & 1 != 0) {
            self.step(self.chain.len() - 1, granule, Event::Exclude);
        }
    }

    /// One event.
    fn act(&mut self, (kind, a, b, c): Op) {
        let granule = b % GRANULES;
        match kind {
            0..=15 => self.parked.push((granule, c)),
            16..=25 => self.read_done(a, c % 16 != 0, c % 2 != 0),
            // A version fails while a copy for it is being read.
            26..=31 if !self.reads.is_empty() => {
                let id = self.reads[a % self.reads.len()].id;
                for version in self.chain.iter_mut().filter(|version| version.id == id) {
                    version.live = false;
                }
            }
            32..=37 if self.chain.len() < 6 => self.cut(if c % 2 == 0 { c >> 5 } else { 0 }),
            // A copy without a write, as before a store's blocks are reused.
            38..=39 => {
                self.prepare(granule);
            }
            _ if self.chain.is_empty() => (),
            _ => self.act_on(a % self.chain.len(), granule, kind, c),
        }
        self.pump();
        self.check();
    }

    /// One event with a version.
    fn act_on(&mut self, at: usize, granule: usize, kind: u8, c: u8) {
        match kind {
            40..=47 => self.step(at, granule, Event::StoreOk),
            48 => self.step(at, granule, Event::StoreFailed),
            // The store is full; for some granules an older version's has room.
            49 => {
                self.chain[at].live = false;
                for granule in 0..GRANULES {
                    if (c >> granule) & 1 != 0 {
                        self.hand_down(at, granule);
                    }
                    self.step(at, granule, Event::NoRoom);
                }
            }
            50 => self.chain[at].live = false,
            51 if !self.chain[at].live => self.step(at, granule, Event::Abandon),
            52 if !self.chain[at].live => self.hand_down(at, granule),
            53 => {
                self.hand_down(at, granule);
                self.step(at, granule, Event::Release);
            }
            54..=55 if !self.chain[at].live => {
                for granule in 0..GRANULES {
                    self.step(at, granule, Event::Abandon);
                    self.hand_down(at, granule);
                }
                self.chain.remove(at);
            }
            _ => (),
        }
    }

    /// Every byte of every image is right.
    fn check(&self) {
        for at in (0..self.chain.len()).filter(|&at| self.chain[at].live) {
            for granule in 0..GRANULES {
                let place = self.chain[at].places[granule];
                let shown = match self.source(at, granule) {
                    Source::Origin => self.origin[granule],
                    Source::Zeros => 0,
                    Source::Version(index) => self.chain[at + index].places[granule].data,
                    Source::Unreadable => {
                        assert!(place.excused, "no error, but unreadable");
                        continue;
                    }
                };
                assert_eq!(shown, place.image, "version {at}, granule {granule}");
            }
        }
    }
}
