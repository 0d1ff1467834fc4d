// SPDX-License-Identifier: GPL-2.0
//! Kinds of change: every order in which writes and discards of a block can begin and end.

use bdsnap_logic::kind;
use bdsnap_logic::kind::parts;
use bdsnap_logic::kind::Change;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use proptest::prelude::*;
use std::sync::atomic::AtomicU8;

/// Something that changes one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// A write, or a part of the block discarded.
    Write,
    /// A discard of the whole block that goes well.
    Discard,
    /// One that fails.
    Fails,
}

/// When an operation began and ended.
#[derive(Clone, Copy, Debug)]
struct Life {
    op: Op,
    began: usize,
    ended: usize,
}

fn begin(byte: &[AtomicU8], op: Op) {
    match op {
        Op::Write => kind::written(byte),
        Op::Discard | Op::Fails => kind::discarding(byte),
    }
}

fn end(byte: &[AtomicU8], op: Op) {
    match op {
        Op::Discard => kind::discarded(byte),
        Op::Write | Op::Fails => kind::written(byte),
    }
}

/// What must be true once all have ended, from the definition: some discard went well and began
/// after the end of all that wrote.
fn may_be_discarded(lives: &[Life]) -> bool {
    let wrote = lives.iter().filter(|l| l.op != Op::Discard);
    let last = wrote.map(|l| l.ended).max();
    let mut discards = lives.iter().filter(|l| l.op == Op::Discard);
    discards.any(|d| last.is_none_or(|last| last < d.began))
}

/// Whether it should be: there is no reason for "written" but an overlap with a write.
fn must_be_discarded(lives: &[Life]) -> bool {
    let last_write = lives.iter().filter(|l| l.op != Op::Discard);
    let last_end = last_write.map(|l| l.ended).max();
    let mut discards = lives.iter().filter(|l| l.op == Op::Discard);
    !lives.is_empty()
        && discards.clone().next().is_some()
        && discards.all(|d| last_end.is_none_or(|end| d.began > end || d.ended < end))
        && may_be_discarded(lives)
}

/// Goes on with every possible next event; `open`: begun and not ended, as indices into `lives`.
fn explore(
    ops: &[Op],
    lives: &mut Vec<Life>,
    open: &mut Vec<usize>,
    clock: usize,
    byte: u8,
) -> u64 {
    let mut seen = 0;
    if lives.len() == ops.len() && open.is_empty() {
        let is = kind::is_discarded(&AtomicU8::new(byte));
        assert!(!is || may_be_discarded(lives), "discarded, but: {lives:?}");
        assert!(is || !must_be_discarded(lives), "written, but: {lives:?}");
        return 1;
    }
    if let Some(op) = ops.get(lives.len()) {
        let next = [AtomicU8::new(byte)];
        begin(&next, *op);
        open.push(lives.len());
        lives.push(Life {
            op: *op,
            began: clock,
            ended: usize::MAX,
        });
        let [next] = next;
        seen += explore(ops, lives, open, clock + 1, next.into_inner());
        lives.pop();
        open.pop();
    }
    for at in 0..open.len() {
        let life = open.remove(at);
        let next = [AtomicU8::new(byte)];
        end(&next, lives[life].op);
        lives[life].ended = clock;
        let [next] = next;
        seen += explore(ops, lives, open, clock + 1, next.into_inner());
        lives[life].ended = usize::MAX;
        open.insert(at, life);
    }
    seen
}

#[test]
fn every_interleaving_of_four() {
    let kinds = [Op::Write, Op::Discard, Op::Fails];
    let mut seen = 0;
    for old in [kind::WRITTEN, kind::DISCARDED] {
        for code in 0..81 {
            let ops = [code, code / 3, code / 9, code / 27].map(|c| kinds[c % 3]);
            seen += explore(&ops, &mut Vec::new(), &mut Vec::new(), 0, old);
        }
    }
    // 7 * 5 * 3 orders of four begins and ends each.
    assert_eq!(seen, 2 * 81 * 105);
}

/// The model itself, on cases that can be seen at a glance.
#[test]
fn the_model_knows_what_is_right() {
    let life = |op, began, ended| Life { op, began, ended };
    let after = [life(Op::Write, 0, 1), life(Op::Discard, 2, 3)];
    assert!(may_be_discarded(&after) && must_be_discarded(&after));
    let around = [life(Op::Write, 0, 3), life(Op::Discard, 1, 2)];
    assert!(!may_be_discarded(&around));
    let before = [life(Op::Discard, 0, 1), life(Op::Write, 2, 3)];
    assert!(!may_be_discarded(&before));
    let failed = [life(Op::Discard, 0, 1), life(Op::Fails, 2, 3)];
    assert!(!may_be_discarded(&failed));
}

#[test]
fn a_mark_in_between_wins() {
    let byte = [AtomicU8::new(kind::WRITTEN)];
    kind::discarding(&byte);
    assert!(!kind::is_discarded(&byte[0]));
    kind::written(&byte);
    kind::discarded(&byte);
    assert!(!kind::is_discarded(&byte[0]));
}

#[test]
fn short_last_block() {
    let span = |start, end| Span::<Sectors>::new(start, end).unwrap();
    let whole = |change, s| parts(change, s, 3, 20).whole;
    assert_eq!(whole(Change::Discard, span(16, 20)).len(), 1);
    assert_eq!(whole(Change::Discard, span(16, 19)).len(), 0);
    assert_eq!(whole(Change::Discard, span(17, 20)).len(), 0);
    assert_eq!(whole(Change::Write, span(0, 20)).len(), 0);
}

proptest! {
    /// The parts are what is touched, in order, and `whole` is what is covered.
    #[test]
    fn parts_are_exact(start in 0u64..200, len in 1u64..200, shift in 0u32..6, rest in 0u64..50) {
        let device_len = start + len + rest;
        let span = Span::<Sectors>::of_len(start, len).unwrap();
        for change in [Change::Write, Change::Discard] {
            let p = parts(change, span, shift, device_len);
            prop_assert_eq!(p.head.end(), p.whole.start());
            prop_assert_eq!(p.whole.end(), p.tail.start());
            for block in 0..=(device_len >> shift) {
                let sectors = (block << shift)..((block + 1) << shift).min(device_len);
                let touched = sectors.clone().any(|s| span.contains(s));
                let covered = touched && sectors.clone().all(|s| span.contains(s));
                let is_whole = covered && change == Change::Discard;
                prop_assert_eq!(p.whole.contains(block), is_whole, "{} {:?}", block, p);
                let written = p.head.contains(block) || p.tail.contains(block);
                prop_assert_eq!(written, touched && !is_whole, "{} {:?}", block, p);
            }
        }
    }
}
