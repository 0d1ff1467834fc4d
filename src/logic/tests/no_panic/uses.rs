// SPDX-License-Identifier: GPL-2.0
//! Every function of the crate, called once with values the compiler can't know.
//!
//! Small and generic functions exist only where they are called, so this object, and not the
//! crate's own, shows whether any of them can panic. See `../no_panic.rs`.
#![no_std]

use bdsnap_logic::bits;
use bdsnap_logic::calls;
use bdsnap_logic::cbt;
use bdsnap_logic::extent;
use bdsnap_logic::extent_map;
use bdsnap_logic::fill;
use bdsnap_logic::granule;
use bdsnap_logic::kind;
use bdsnap_logic::order;
use bdsnap_logic::passthrough;
use bdsnap_logic::range;
use bdsnap_logic::stretch;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::Unit;
use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicU8;

fn span<U: 'static>(a: Span<U>, b: Span<U>, at: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (low, high) = a.intersect(b).split_at(at);
    let odd = low == high || a.overlaps(b) || a.contains(at) || b.is_empty();
    let sum = low.len() ^ high.start() ^ high.end();
    fmt::Debug::fmt(&a, f)?;
    fmt::Debug::fmt(&(odd, sum, Span::<U>::new(at, sum)), f)?;
    fmt::Debug::fmt(&Span::<U>::of_len(at, sum), f)
}

fn convert<V: Unit + 'static>(a: Span<Sectors>, n: u64, shift: u32) -> Span<Sectors> {
    let out = a.outward::<V>(shift).sectors(shift, n);
    let inside = a.inward::<V>(shift, n).sectors(shift, n);
    out.intersect(inside)
}

#[inline(never)]
pub fn units(n: &[u64; 4], shift: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let [a, b, c, d] = *n;
    let x = Span::from_bytes_outward(a, b).unwrap_or(Span::EMPTY);
    let y = Span::from_bytes_exact(c, d).unwrap_or(Span::EMPTY);
    span(x, y, a, f)?;
    span(x.outward::<Granules>(shift), y.inward(shift, d), b, f)?;
    span(
        convert::<Granules>(x, c, shift),
        convert::<Blocks>(y, d, shift),
        c,
        f,
    )
}

#[inline(never)]
pub fn fill(lanes: &[(u64, u64)], portion: usize, at: u64) -> Option<(usize, u64)> {
    let fills = lanes
        .iter()
        .map(|&(used, total)| fill::Fill { used, total });
    let index = fill::emptiest(fills)?;
    Some(fill::place(fill::slot(portion.wrapping_add(index), at)?))
}

/// Two packs, of which one is in use.
struct Two([(u64, extent_map::Pack); 2]);

impl extent_map::Packs for Two {
    type Room = u64;
    fn look<R>(&self, at: u64, see: impl FnOnce(u64, &extent_map::Pack) -> R) -> Option<R> {
        self.0.iter().find(|p| p.0 >= at).map(|p| see(p.0, &p.1))
    }
    fn change<R>(
        &mut self,
        at: u64,
        change: impl FnOnce(u64, &mut extent_map::Pack) -> R,
    ) -> Option<R> {
        self.0
            .iter_mut()
            .find(|p| p.0 >= at)
            .map(|p| change(p.0, &mut p.1))
    }
    fn look_before<R>(&self, at: u64, see: impl FnOnce(u64, &extent_map::Pack) -> R) -> Option<R> {
        self.0.iter().find(|p| p.0 < at).map(|p| see(p.0, &p.1))
    }
    fn add(&mut self, _: u64, bound: u64, pack: extent_map::Pack) {
        self.0[usize::from(bound == u64::MAX)] = (bound, pack);
    }
    fn remove(&mut self, bound: u64) {
        self.0[0].0 = bound.wrapping_sub(1);
    }
}

#[inline(never)]
pub fn extent_map(packs: [(u64, extent_map::Pack); 2], n: &[u64; 4], run: u16) -> Option<u64> {
    let [a, b, c, d] = *n;
    let mut map = extent_map::ExtentMap::new(Two(packs));
    let span = Span::of_len(a, b)?;
    for place in [
        extent_map::Place::Memory { run, page: c },
        extent_map::Place::Stored {
            store: run,
            slot: d,
        },
    ] {
        let room = map.insert(extent_map::Extent { span, place }, c);
        map.put(d, place);
        map.cut_front(d, room.ok()??);
    }
    let extent = map.at_or_after(a)?.from(b);
    let other = map.join(extent.last())?;
    let size = core::mem::size_of_val(map.packs()) as u64;
    map.remove(other.span.start())?;
    Some(size ^ extent.place.state() as u64)
}

#[inline(never)]
pub fn returned(steps: &[(bool, u64, u64)], zeros: u64) -> (u64, u64) {
    let mut list = [fill::Gap::default(); 8];
    let mut returned = fill::Returned::new(list.as_mut_slice());
    let mut got = 0u64;
    for &(put, slot, len) in steps {
        if put {
            returned.put(slot, len);
        } else if !returned.is_crowded() {
            got ^= returned.take(len, slot).map_or(0, |(_, len)| len);
        }
    }
    let (head, tail) = fill::edges(zeros, got);
    (head ^ tail, returned.total())
}

#[inline(never)]
pub fn stretch(
    fill: fill::Fill,
    growth: stretch::Growth,
    times: &[(u64, u64)],
) -> (u64, u64, bool) {
    let mut rate = stretch::Rate::default();
    times.iter().for_each(|t| rate.add(t.0, t.1));
    let now = rate.at(times.len() as u64);
    let full = stretch::room(fill, growth.reserve(fill.total), false, true) == stretch::Room::Full;
    let left = growth.seconds_left(fill, now).unwrap_or(0);
    (growth.wanted(fill, now), left, full)
}

#[inline(never)]
pub fn order(list: &mut [(u64, u64, u64)]) {
    order::as_met(list, |p| {
        (p.0, Span::of_len(p.1, p.2).unwrap_or(Span::EMPTY))
    });
}

pub fn range(n: &[u64; 4]) -> Option<Span<Sectors>> {
    let [a, b, c, d] = *n;
    range::in_origin(range::bio_on_disk(a, b, c), Span::of_len(c, d)?)
}

#[inline(never)]
pub fn bits(words: &[AtomicU64], from: usize, to: usize) -> (bool, usize) {
    bits::set_range(words, from, to);
    bits::clear_range(words, from, to);
    let first = bits::first_clear(words, from, to).or(bits::first_set(words, from, to));
    let count = bits::count(words, from, to);
    (bits::test(words, from), first.unwrap_or(count))
}

#[inline(never)]
pub fn cbt(clock: &mut cbt::Clock, byte: u8, n: u64, pass: cbt::Aging) -> (u8, u64) {
    let seen = cbt::changed(byte, n, clock.oldest()) || clock.can_answer(n, clock.number());
    let mut sum = cbt::decode(byte, clock.mark()) ^ u64::from(seen) ^ pass.horizon();
    let aged = clock.aged(byte, n).unwrap_or(cbt::code(n));
    sum ^= clock.aging_due().unwrap_or(n);
    clock.aging_done(pass);
    let other = clock.set_oldest(n);
    clock.aging_done(other);
    sum ^= clock.cut().unwrap_or(n) ^ cbt::Clock::default().mark() ^ cbt::Clock::new().mark();
    (aged, sum)
}

#[inline(never)]
pub fn kind(kinds: &[AtomicU8], change: kind::Change, n: &[u64; 4], shift: u32) -> (u64, bool) {
    let [a, b, c, _] = *n;
    let span = Span::from_bytes_outward(a, b).unwrap_or(Span::EMPTY);
    let parts = kind::parts(change, span, shift, c);
    kind::written(kinds);
    kind::discarding(kinds);
    kind::discarded(kinds);
    let sum = parts.head.len() ^ parts.whole.len() ^ parts.tail.len();
    (sum, kinds.first().is_some_and(kind::is_discarded))
}

#[inline(never)]
pub fn granule(
    links: &[granule::Link],
    event: granule::Event,
) -> (
    granule::Need,
    granule::Source,
    Option<usize>,
    Option<granule::State>,
) {
    let states = || links.iter().map(|link| link.state);
    let step = links
        .first()
        .and_then(|link| granule::step(link.state, event));
    let pair = links.first().zip(links.last());
    let heir = pair.and_then(|(a, b)| granule::inherit(a.state, b.state));
    let kept = states().all(granule::State::is_kept) | states().any(granule::State::has_data);
    let read = granule::readers(links.iter().map(|link| (link, link.state)));
    let kept = kept | read.last().is_some();
    (
        granule::need(links.iter(), |link| link.live, |link| **link),
        granule::source(states().rev()),
        granule::heir(states()),
        if kept { step } else { heir },
    )
}

#[inline(never)]
pub fn extent(
    list: &mut [extent::RawExtent],
    pieces: &mut [extent::Piece],
    n: &[u64; 4],
    shift: u32,
    cursor: &mut extent::Cursor,
) -> Result<Option<(u64, u64)>, extent::Refusal> {
    let [a, b, c, d] = *n;
    extent::check(list, a, b, shift)?;
    if let (Some(raw), Some((last, _))) = (list.first(), pieces.split_last_mut()) {
        if let Some(next) = extent::piece(raw, shift, c) {
            if let Some(joined) = extent::join(last, &next, shift) {
                *last = joined;
            }
        }
    }
    let taken = cursor.take(pieces, d);
    let slot = cursor.used() ^ extent::total(pieces) ^ extent::Cursor::new().used();
    Ok(taken.or(extent::locate(pieces, slot, shift)))
}

#[inline(never)]
pub fn passthrough(kind: passthrough::Kind, bytes: u64, cdb: &[u8]) -> bool {
    passthrough::may_write(kind, bytes, cdb)
}

#[inline(never)]
pub fn calls(calls: &calls::Calls, round: &dyn Fn()) -> bool {
    calls.call() && calls.answer(round)
}
