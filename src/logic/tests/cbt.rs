// SPDX-License-Identifier: GPL-2.0
//! Change maps, against a map of full numbers.

use bdsnap_logic::cbt::changed;
use bdsnap_logic::cbt::code;
use bdsnap_logic::cbt::decode;
use bdsnap_logic::cbt::Aging;
use bdsnap_logic::cbt::Clock;
use proptest::prelude::*;

/// Blocks in the map.
const BLOCKS: usize = 24;

/// What was put aside of the map after a cut.
struct View {
    /// The cut.
    number: u64,
    /// The bytes at the cut.
    bytes: Vec<u8>,
    /// The numbers at the cut.
    model: Vec<u64>,
}

/// An aging pass on its way.
struct Pass {
    /// For the end.
    token: Aging,
    /// The clock at the begin.
    clock: Clock,
    /// The next block to see.
    at: usize,
    /// The byte that was read of that block, before it is exchanged.
    read: Option<u8>,
}

/// A map, and all that is true of it.
struct World {
    /// Under test.
    clock: Clock,
    /// Under test.
    bytes: Vec<u8>,
    /// In which interval each block changed last.
    model: Vec<u64>,
    /// Maps as of cuts.
    views: Vec<View>,
    /// The aging pass that is under way.
    pass: Option<Pass>,
}

impl World {
    /// A new map of so many blocks.
    fn new(blocks: usize) -> Self {
        Self {
            clock: Clock::new(),
            bytes: vec![0; blocks],
            model: vec![0; blocks],
            views: Vec::new(),
            pass: None,
        }
    }

    /// A write.
    fn mark(&mut self, block: usize) {
        self.bytes[block] = code(self.clock.mark());
        self.model[block] = self.clock.number() + 1;
    }

    /// Begins a pass, if none is under way.
    fn begin(&mut self, horizon: u64) {
        if self.pass.is_none() {
            let token = self.clock.set_oldest(horizon);
            let clock = self.clock;
            let (at, read) = (0, None);
            self.pass = Some(Pass {
                token,
                clock,
                at,
                read,
            });
        }
    }

    /// Half a step of the pass: reading a byte, or exchanging it if it is still the same.
    fn age(&mut self) {
        let Some(mut pass) = self.pass.take() else {
            return;
        };
        if pass.at == self.bytes.len() {
            self.clock.aging_done(pass.token);
            return;
        }
        match pass.read.take() {
            None => pass.read = Some(self.bytes[pass.at]),
            Some(old) => {
                if let Some(new) = pass.clock.aged(old, pass.token.horizon()) {
                    if self.bytes[pass.at] == old {
                        self.bytes[pass.at] = new;
                    }
                }
                pass.at += 1;
            }
        }
        self.pass = Some(pass);
    }

    /// A cut, after a pass if one must be.
    fn cut(&mut self) {
        while let Some(horizon) = self.clock.aging_due() {
            let before = self.clock.number();
            assert_eq!(self.clock.cut(), None);
            assert_eq!(self.clock.number(), before);
            self.begin(horizon);
            while self.pass.is_some() {
                self.age();
            }
        }
        let number = self.clock.number() + 1;
        assert_eq!(self.clock.cut(), Some(number));
        assert_eq!(self.clock.number(), number);
    }

    /// Puts the map aside, as the first mark after a cut does.
    fn view(&mut self) {
        self.views.push(View {
            number: self.clock.number(),
            bytes: self.bytes.clone(),
            model: self.model.clone(),
        });
        if self.views.len() > 6 {
            self.views.remove(0);
        }
    }

    /// Asks what changed since a cut that is `back` cuts ago, of the map and of all views.
    fn ask(&self, back: u64) {
        let (oldest, number) = (self.clock.oldest(), self.clock.number());
        for since in [oldest, number, number.saturating_sub(back)] {
            assert_eq!(self.clock.can_answer(since, number), oldest <= since);
            assert!(!self.clock.can_answer(since, number + 1));
            if self.clock.can_answer(since, number) {
                for (&byte, &n) in self.bytes.iter().zip(&self.model) {
                    assert_eq!(changed(byte, self.clock.mark(), since), n > since);
                    // What was not marked since the cut also reads right with the cut's number.
                    assert!(n > number || changed(byte, number, since) == (n > since));
                }
            }
            for view in &self.views {
                if !self.clock.can_answer(since, view.number) {
                    assert!(since < oldest || since > view.number);
                    continue;
                }
                for (&byte, &n) in view.bytes.iter().zip(&view.model) {
                    assert_eq!(changed(byte, view.number, since), n > since);
                }
            }
        }
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A write.
    Mark(usize),
    /// A cut, with the map put aside if asked for.
    Cut(bool),
    /// Begin an aging pass so many cuts before the last.
    Begin(u64),
    /// Do half a step of one.
    Age,
    /// Ask for the changes since so many cuts ago.
    Ask(u64),
}

/// Some event.
fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (0..BLOCKS * 2).prop_map(|n| Op::Mark(n.min(n % BLOCKS))),
        40 => (0..20u8).prop_map(|n| Op::Cut(n == 0)),
        1 => (0..300u64).prop_map(Op::Begin),
        20 => Just(Op::Age),
        9 => (0..300u64).prop_map(Op::Ask),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_change_is_missed_and_none_invented(ops in prop::collection::vec(op(), 4000..8000)) {
        let mut world = World::new(BLOCKS);
        for op in ops {
            match op {
                Op::Mark(block) => world.mark(block),
                Op::Cut(view) => {
                    // One under way holds up the cut: let it end.
                    world.cut();
                    if view {
                        world.view();
                    }
                }
                Op::Begin(back) => world.begin(world.clock.number().saturating_sub(back)),
                Op::Age => world.age(),
                Op::Ask(back) => world.ask(back),
            }
        }
        world.ask(1);
    }

    #[test]
    fn a_byte_is_the_number_again(mark in 1..u64::MAX, back in 0..255u64) {
        let n = mark.saturating_sub(back).max(1);
        prop_assert_eq!(decode(code(n), mark), n);
        prop_assert_ne!(code(n), 0);
        prop_assert_eq!(decode(0, mark), 0);
    }

    #[test]
    fn an_unsound_byte_counts_as_changed(mark in 1..300u64, byte in 1..=255u8) {
        let n = decode(byte, mark);
        prop_assert!(n >= 1 && n <= mark && mark - n < 255);
        prop_assert!(code(n) == byte || n == mark);
    }
}

#[test]
fn recent_snapshots_stay_exact() {
    let mut world = World::new(BLOCKS);
    let mut passes = 0;
    for turn in 0..5000u64 {
        passes += u64::from(world.clock.aging_due().is_some());
        world.cut();
        let (number, oldest) = (world.clock.number(), world.clock.oldest());
        assert_eq!(number, turn + 1);
        assert!(number - oldest >= number.min(127), "{number} {oldest}");
        world.mark((turn % BLOCKS as u64) as usize);
        world.ask(turn % 200);
    }
    assert!((1..=5000 / 100).contains(&passes), "{passes}");
}

#[test]
fn numbers_of_every_age_are_told_apart() {
    // Each number is that of some block, from the newest to far below the horizon.
    let blocks = 600;
    let mut world = World::new(blocks);
    for turn in 0..1500 {
        world.mark(turn % blocks);
        world.cut();
        world.ask(turn as u64 % 130);
    }
}

#[test]
fn a_pass_that_is_not_done_holds_up_the_cut() {
    let mut clock = Clock::new();
    assert_eq!((clock.number(), clock.oldest(), clock.mark()), (0, 0, 1));
    for _ in 0..9 {
        clock.cut();
    }
    let pass = clock.set_oldest(5);
    assert!(!clock.can_answer(4, 9) && clock.can_answer(5, 9));
    assert_eq!((clock.aging_due(), clock.cut()), (Some(5), None));
    // The horizon never goes back, nor past the last cut.
    assert_eq!(clock.set_oldest(2).horizon(), 5);
    clock.aging_done(pass);
    assert_eq!((clock.aging_due(), clock.cut()), (None, Some(10)));
    assert_eq!(clock.set_oldest(99).horizon(), 10);
}
