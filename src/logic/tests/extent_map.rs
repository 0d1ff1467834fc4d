// SPDX-License-Identifier: GPL-2.0
//! Maps of extents, against a list of granules; and what they cost in memory.

use bdsnap_logic::extent_map::Extent;
use bdsnap_logic::extent_map::ExtentMap;
use bdsnap_logic::extent_map::Pack;
use bdsnap_logic::extent_map::Packs;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::extent_map::MAX_GRANULES;
use bdsnap_logic::extent_map::MAX_INDEX;
use bdsnap_logic::extent_map::PACK_EXTENTS;
use bdsnap_logic::units::Span;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A tree of packs.
#[derive(Default)]
struct Tree(BTreeMap<u64, Pack>);

impl Packs for Tree {
    type Room = ();

    fn look<R>(&self, granule: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R> {
        let found = self.0.range(granule..).next();
        found.map(|(&bound, pack)| see(bound, pack))
    }

    fn change<R>(&mut self, granule: u64, change: impl FnOnce(u64, &mut Pack) -> R) -> Option<R> {
        let found = self.0.range_mut(granule..).next();
        found.map(|(&bound, pack)| change(bound, pack))
    }

    fn look_before<R>(&self, bound: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R> {
        let found = self.0.range(..bound).next_back();
        found.map(|(&bound, pack)| see(bound, pack))
    }

    fn add(&mut self, (): (), bound: u64, pack: Pack) {
        assert!(self.0.insert(bound, pack).is_none());
    }

    fn remove(&mut self, bound: u64) {
        assert!(self.0.remove(&bound).is_some());
    }
}

/// An empty map.
fn new() -> ExtentMap<Tree> {
    ExtentMap::new(Tree::default())
}

/// Granules of the device of the model, for three packs and more of single ones.
const GRANULES: usize = 6 * PACK_EXTENTS;

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// An extent is added, of what is free of this.
    Insert(usize, usize, Kind),
    /// Those that begin in this are given another place.
    Put(usize, usize, Kind),
    /// Those that begin in this are removed.
    Remove(usize, usize),
    /// The extent with this granule loses those before it.
    Cut(usize),
    /// Those that end in this are joined to those before.
    Join(usize, usize),
}

/// A kind of place.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// As it is.
    Fixed(Place),
    /// In this store, at the slot with the granule's number.
    Stored(u16),
}

impl Kind {
    /// The place of a granule.
    fn of(self, granule: usize) -> Place {
        match self {
            Self::Fixed(place) => place,
            Self::Stored(store) => Place::Stored {
                store,
                slot: granule as u64,
            },
        }
    }
}

/// Some kind; mostly such as can be joined.
fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => (0u16..2).prop_map(Kind::Stored),
        2 => Just(Kind::Fixed(Place::Zeros)),
        1 => Just(Kind::Fixed(Place::Reading)),
        1 => Just(Kind::Fixed(Place::Lost)),
        1 => (0..MAX_INDEX, 0u64..64).prop_map(|(run, page)| Kind::Fixed(Place::Memory { run, page })),
    ]
}

/// Some operation: long ranges are rare, so that maps fill up.
fn op() -> impl Strategy<Value = Op> {
    let short = || (0..GRANULES, 1usize..4);
    let long = || (0..GRANULES, prop_oneof![3 => 1usize..4, 1 => 1..GRANULES]);
    prop_oneof![
        8 => (short(), kind()).prop_map(|((at, len), kind)| Op::Insert(at, len, kind)),
        1 => (long(), kind()).prop_map(|((at, len), kind)| Op::Put(at, len, kind)),
        2 => long().prop_map(|(at, len)| Op::Remove(at, len)),
        1 => (0..GRANULES).prop_map(Op::Cut),
        2 => long().prop_map(|(at, len)| Op::Join(at, len)),
    ]
}

/// All extents of a map, in order.
fn list(map: &ExtentMap<Tree>) -> Vec<Extent> {
    let mut at = 0;
    let next = || {
        let extent = map.at_or_after(at)?;
        at = extent.span.end();
        Some(extent)
    };
    std::iter::from_fn(next).collect()
}

/// Those of them that are meant.
fn some(map: &ExtentMap<Tree>, is: impl Fn(&Extent) -> bool) -> Vec<Extent> {
    list(map).into_iter().filter(is).collect()
}

/// The model: the place of each granule, and whether an extent ends with it.
type Model = Vec<Option<(Place, bool)>>;

/// Does it to both.
fn act(map: &mut ExtentMap<Tree>, model: &mut Model, op: Op) {
    let range = |at: usize, len: usize| at as u64..(at + len).min(GRANULES) as u64;
    match op {
        Op::Insert(at, len, kind) => {
            let end = (at..(at + len).min(GRANULES)).find(|&g| model[g].is_some());
            let end = end.unwrap_or((at + len).min(GRANULES));
            if end > at {
                let span = Span::new(at as u64, end as u64).unwrap();
                let extent = Extent {
                    span,
                    place: kind.of(at),
                };
                assert!(map.insert(extent, ()).is_ok());
                for (n, granule) in model[at..end].iter_mut().enumerate() {
                    let place = extent.place.advanced(n as u64);
                    *granule = Some((place, at + n + 1 == end));
                }
            }
        }
        Op::Put(at, len, kind) => {
            for extent in some(map, |e| range(at, len).contains(&e.span.start())) {
                let place = kind.of(extent.span.start() as usize);
                assert!(map.put(extent.last(), place));
                let all = extent.span.start() as usize..extent.span.end() as usize;
                let last = all.len() - 1;
                for (n, granule) in model[all].iter_mut().enumerate() {
                    *granule = Some((place.advanced(n as u64), n == last));
                }
            }
        }
        Op::Remove(at, len) => {
            for extent in some(map, |e| range(at, len).contains(&e.span.start())) {
                assert_eq!(map.remove(extent.last()), Some(extent));
                model[extent.span.start() as usize..extent.span.end() as usize].fill(None);
            }
        }
        Op::Cut(at) => {
            let inside = |e: &Extent| e.span.contains(at as u64);
            for extent in some(map, inside) {
                assert!(map.cut_front(extent.last(), at as u64));
                model[extent.span.start() as usize..at].fill(None);
            }
        }
        Op::Join(at, len) => {
            for extent in some(map, |e| range(at, len).contains(&e.last())) {
                let start = extent.span.start() as usize;
                let before = start.checked_sub(1).and_then(|g| model[g]);
                let joins = before.is_some_and(|(place, ends)| {
                    assert!(ends);
                    let can = matches!(place, Place::Zeros | Place::Stored { .. });
                    can && place.advanced(1) == extent.place
                });
                assert_eq!(map.join(extent.last()).is_some(), joins);
                if let (true, Some((place, _))) = (joins, before) {
                    model[start - 1] = Some((place, false));
                }
            }
        }
    }
}

/// What must be true of the two.
fn check(map: &ExtentMap<Tree>, model: &Model) {
    let packs = &map.packs().0;
    assert!(packs.is_empty() || packs.contains_key(&u64::MAX));
    // Every granule is found, and each extent is as long as it should be.
    let mut extents = 0;
    for at in 0..=GRANULES {
        let found = map.at_or_after(at as u64);
        let next = (at..GRANULES).find(|&g| model[g].is_some());
        let Some((extent, next)) = found.zip(next) else {
            assert_eq!(found.is_some(), next.is_some());
            continue;
        };
        assert!(extent.span.contains(next as u64), "{extent:?} {at} {next}");
        let (place, ends) = model[next].unwrap();
        assert_eq!(extent.from(next as u64).place, place);
        assert_eq!(extent.last() == next as u64, ends);
        extents += usize::from(ends && next == at);
    }
    assert_eq!(list(map).len(), extents);
    // It is no larger than it must be, whatever it has been.
    assert!(
        packs.len() <= 2 + extents * 4 / PACK_EXTENTS,
        "{extents} in {}",
        packs.len()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_map_is_a_list(ops in prop::collection::vec(op(), 0..400)) {
        let (mut map, mut model) = (new(), vec![None; GRANULES]);
        for (n, op) in ops.into_iter().enumerate() {
            act(&mut map, &mut model, op);
            if n % 8 == 0 {
                check(&map, &model);
            }
        }
        check(&map, &model);
    }

    /// Whatever fits comes out as it went in; what doesn't is refused.
    #[test]
    fn numbers(
        start in prop_oneof![any::<u64>(), (0u64..1 << 51), (1u64 << 51) - 9000..(1 << 51) + 10],
        len in prop_oneof![0..=MAX_GRANULES + 2, any::<u64>()],
        index in 0..=u16::MAX,
        at in prop_oneof![any::<u64>(), (1u64 << 47) - 3..(1 << 47) + 3, 0u64..10],
        stored in any::<bool>(),
    ) {
        let place = if stored {
            Place::Stored { store: index, slot: at }
        } else {
            Place::Memory { run: index, page: at }
        };
        if let Some(span) = Span::of_len(start, len) {
            let extent = Extent { span, place };
            let fits = (1..=MAX_GRANULES).contains(&len) && span.end() <= 1 << 51;
            let fits = fits && index <= MAX_INDEX && at < 1 << 47;
            let mut map = new();
            prop_assert_eq!(map.insert(extent, ()).is_ok(), fits);
            prop_assert_eq!(map.at_or_after(span.end().saturating_sub(1)), fits.then_some(extent));
        }
    }
}

/// Of single granules that come in some order: packs, of 512 bytes, in bytes an extent.
fn bytes_each(granules: impl Iterator<Item = u64>) -> u64 {
    let (mut map, mut count) = (new(), 0);
    for granule in granules {
        let span = Span::of_len(granule, 1).unwrap();
        let place = Place::Stored {
            store: 0,
            slot: count,
        };
        let extent = Extent { span, place };
        assert!(map.insert(extent, ()).is_ok());
        count += 1;
    }
    assert_eq!(list(&map).len() as u64, count);
    map.packs().0.len() as u64 * 512 / count
}

#[test]
fn random_writes_cost_26_bytes() {
    assert_eq!(std::mem::size_of::<Pack>() + 4 * 8, 504);
    let random = (0u64..1 << 16).map(|n| {
        let n = (n ^ (n >> 7)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (n ^ (n >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 20
    });
    let random = bytes_each(random);
    assert!((20..=27).contains(&random), "{random}");
    // Evenly scattered: all packs are split at the same time, and half full then.
    let even = bytes_each((0u64..1 << 16).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20));
    assert!(even <= 36, "{even}");
    // Upwards to what is there, and down to it.
    let old = || 1 << 30..(1 << 30) + 29;
    assert!(bytes_each(old().chain(0..5000)) <= 18);
    assert!(bytes_each(old().rev().chain((1 << 31..(1 << 31) + 5000).rev())) <= 18);
    assert_eq!(bytes_each(0..20_000), 17);
    assert_eq!(bytes_each((0..20_000).rev()), 17);
    // Some places at a time, each in order.
    let places = bytes_each((0..20_000).map(|n| ((n % 8) << 20) | n));
    assert!(places <= 36, "{places}");
}

#[test]
fn what_is_joined_is_one() {
    let mut map = new();
    // Every second one first, then the others: packs are emptied by what comes.
    for granule in (0..4000).step_by(2).chain((1..4000).step_by(2)) {
        let span = Span::of_len(granule, 1).unwrap();
        let place = Place::Stored {
            store: 3,
            slot: 77 + granule,
        };
        assert!(map.insert(Extent { span, place }, ()).is_ok());
        map.join(granule);
        map.join(granule + 1);
    }
    let span = Span::new(0, 4000).unwrap();
    assert_eq!(
        list(&map),
        [Extent {
            span,
            place: Place::Stored { store: 3, slot: 77 }
        }]
    );
    assert_eq!(map.packs().0.len(), 1);
}

#[test]
fn no_extent_becomes_too_long() {
    let mut map = new();
    for start in [0, MAX_GRANULES - 1, MAX_GRANULES] {
        let span = Span::new(
            start,
            if start == 0 {
                MAX_GRANULES - 1
            } else {
                start + 1
            },
        )
        .unwrap();
        assert!(map
            .insert(
                Extent {
                    span,
                    place: Place::Zeros
                },
                ()
            )
            .is_ok());
        let joins = start == MAX_GRANULES - 1;
        assert_eq!(map.join(span.end() - 1).is_some(), joins);
    }
    let lens: Vec<u64> = list(&map).iter().map(|e| e.span.len()).collect();
    assert_eq!(lens, [MAX_GRANULES, 1]);
}

#[test]
fn nothing_there() {
    let mut map = new();
    let span = Span::new(5, 9).unwrap();
    for _ in 0..2 {
        assert_eq!(map.at_or_after(0), None);
        assert_eq!(map.remove(8), None);
        assert_eq!(map.join(8), None);
        assert!(!map.put(8, Place::Lost) && !map.cut_front(8, 6));
        assert!(map
            .insert(
                Extent {
                    span,
                    place: Place::Lost
                },
                ()
            )
            .is_ok());
        assert_eq!(map.remove(7), None);
        assert!(!map.put(7, Place::Zeros));
        assert!(!map.cut_front(8, 9));
        assert!(!map.put(
            8,
            Place::Stored {
                store: 0,
                slot: u64::MAX
            }
        ));
        assert_eq!(
            map.at_or_after(0),
            Some(Extent {
                span,
                place: Place::Lost
            })
        );
        assert_eq!(map.at_or_after(9), None);
        assert!(map.remove(8).is_some());
    }
}
