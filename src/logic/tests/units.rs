// SPDX-License-Identifier: GPL-2.0
//! Spans and where bios land, against sets of single units.

use bdsnap_logic::range::bio_on_disk;
use bdsnap_logic::range::in_origin;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The units of a span, one by one.
fn set<U>(span: Span<U>) -> BTreeSet<u64> {
    (span.start()..span.end()).collect()
}

/// A number that is small, or close to the highest.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, u64::MAX - 200..=u64::MAX, any::<u64>()]
}

/// A small span.
fn small() -> impl Strategy<Value = Span<Sectors>> {
    (0..100u64, 0..60u64).prop_map(|(start, len)| Span::of_len(start, len).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_span_starts_before_it_ends(a in edge(), b in edge()) {
        prop_assert_eq!(Span::<Sectors>::new(a, b).is_some(), a <= b);
        let span = Span::<Sectors>::of_len(a, b);
        prop_assert_eq!(span.is_some(), a.checked_add(b).is_some());
        if let Some(span) = span {
            prop_assert_eq!((span.start(), span.len()), (a, b));
        }
    }

    #[test]
    fn spans_are_sets(a in small(), b in small(), at in 0..200u64) {
        let both: BTreeSet<u64> = set(a).intersection(&set(b)).copied().collect();
        prop_assert_eq!(set(a.intersect(b)), both.clone());
        prop_assert_eq!(a.overlaps(b), !both.is_empty());
        prop_assert_eq!(a.contains(at), set(a).contains(&at));
        let (low, high) = a.split_at(at);
        prop_assert_eq!(set(low), set(a).into_iter().filter(|&n| n < at).collect());
        prop_assert_eq!(set(high), set(a).into_iter().filter(|&n| n >= at).collect());
        prop_assert_eq!((low.start(), low.end(), high.end()), (a.start(), high.start(), a.end()));
    }

    #[test]
    fn outward_is_all_that_is_touched(span in small(), shift in 0..6u32, device in 0..200u64) {
        let touched: BTreeSet<u64> = set(span).into_iter().map(|n| n >> shift).collect();
        let out = span.outward::<Granules>(shift);
        prop_assert_eq!(set(out), touched);
        let back: BTreeSet<u64> = set(out.sectors(shift, device));
        let all = (0..device).filter(|n| out.contains(n >> shift)).collect();
        prop_assert_eq!(back, all);
    }

    #[test]
    fn inward_is_what_is_wholly_inside(
        span in small(), shift in 0..6u32, other in 0..200u64, fits: bool,
    ) {
        let device = if fits { span.end() } else { other };
        // A unit counts if it has a sector, and all that it has are in the span.
        let whole = |unit: u64| {
            let mut sectors = (unit << shift..(unit + 1) << shift).filter(|&n| n < device).peekable();
            sectors.peek().is_some() && sectors.all(|n| span.contains(n))
        };
        let expected: BTreeSet<u64> = (0..200).filter(|&unit| whole(unit)).collect();
        prop_assert_eq!(set(span.inward::<Blocks>(shift, device)), expected);
    }

    #[test]
    fn conversions_hold_at_the_limits(a in edge(), len in edge(), shift in 0..200u32, dev in edge()) {
        let Some(span) = Span::<Sectors>::of_len(a, len) else { return Ok(()) };
        let out = span.outward::<Granules>(shift);
        prop_assert_eq!(out.is_empty(), span.is_empty());
        let back = out.sectors(shift, u64::MAX);
        let covered = back.start() <= span.start() && span.end() <= back.end();
        prop_assert!(span.is_empty() || covered);
        prop_assert!(out.sectors(shift, dev).end() <= dev);
        let inside = span.inward::<Granules>(shift, dev);
        let on_device = span.intersect(Span::of_len(0, dev).unwrap());
        let sectors = inside.sectors(shift, dev);
        prop_assert!(inside.is_empty() || sectors.intersect(on_device) == sectors);
    }

    #[test]
    fn bytes_become_sectors(offset in edge(), len in edge()) {
        let end = offset.checked_add(len);
        let out = Span::from_bytes_outward(offset, len);
        let exact = Span::from_bytes_exact(offset, len);
        prop_assert_eq!(out.is_some(), end.is_some());
        prop_assert_eq!(exact.is_some(), end.is_some() && offset % 512 == 0 && len % 512 == 0);
        if let (Some(out), Some(end)) = (out, end) {
            prop_assert_eq!(out.is_empty(), len == 0);
            prop_assert_eq!(out.start(), offset / 512);
            prop_assert!(len == 0 || out.end() == end.div_ceil(512));
        }
    }

    #[test]
    fn exact_bytes_are_what_they_touch(sector in 0..u64::MAX >> 10, sectors in 0..u64::MAX >> 10) {
        let exact = Span::from_bytes_exact(sector * 512, sectors * 512);
        prop_assert_eq!(exact, Span::from_bytes_outward(sector * 512, sectors * 512));
        prop_assert_eq!(exact, Span::of_len(sector, sectors));
    }

    #[test]
    fn a_bio_lands_where_it_should(
        sector in edge(), sectors in edge(), part in edge(), start in edge(), len in edge(),
        probe in edge(),
    ) {
        let bio = bio_on_disk(sector, sectors, part);
        let Some(origin) = Span::of_len(start, len) else { return Ok(()) };
        let on_disk = u128::from(sector) + u128::from(part);
        let end = on_disk + u128::from(sectors);
        let wide = u128::from(probe);
        // The last sector that can be counted is no sector of any device.
        let hit = on_disk <= wide && wide < end && probe != u64::MAX;
        prop_assert_eq!(bio.contains(probe), hit);
        let part = in_origin(bio, origin);
        prop_assert!(part.is_none_or(|part| !part.is_empty() && part.end() <= len));
        if origin.contains(probe) {
            let inside = part.is_some_and(|part| part.contains(probe - start));
            prop_assert_eq!(inside, hit);
        }
    }
}

#[test]
fn a_span_shows_itself() {
    let span = Span::<Blocks>::new(3, 7).unwrap();
    assert_eq!(format!("{span:?} {:?}", Span::<Blocks>::EMPTY), "3..7 0..0");
}
