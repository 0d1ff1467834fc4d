// SPDX-License-Identifier: GPL-2.0
//! The order of a cut, and of taking it back.
//!
//! File systems and levels of stacked origins are numbered from the top. They are frozen, and
//! closed and drained, from the top on; opened and thawed from the bottom on. Whatever fails,
//! exactly what was closed is opened, and then exactly what was frozen is thawed.

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Freeze this file system. If that fails it is not frozen, or thaws by itself.
    Freeze(usize),
    /// Close the gates of the origins of this level. If that fails they are open.
    Close(usize),
    /// Wait for the writes in flight on the origins of this level, and until nothing that they
    /// send to the levels below is left.
    Drain(usize),
    /// Give every origin its new version and its next number.
    Switch,
    /// Open the gates of this level. Can't fail.
    Open(usize),
    /// Thaw this file system. Can't fail.
    Thaw(usize),
    /// Nothing is left to do.
    Over {
        /// Whether the cut was made.
        made: bool,
    },
}

/// A cut on its way.
#[derive(Debug)]
pub struct Cut {
    /// How many file systems there are to freeze.
    filesystems: usize,
    /// How many levels of origins there are.
    levels: usize,
    /// What is to be done now.
    step: Step,
    /// Whether the switch was made.
    made: bool,
}

impl Cut {
    /// A cut through so many levels of origins, with so many file systems on them.
    pub fn new(filesystems: usize, levels: usize) -> Self {
        let mut cut = Self {
            filesystems,
            levels,
            step: Step::Switch,
            made: false,
        };
        cut.step = cut.freeze(0);
        cut
    }

    /// What is to be done now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Takes note of how the step ended, and says what is next.
    pub fn done(&mut self, ok: bool) -> Step {
        self.step = match self.step {
            Step::Freeze(index) if ok => self.freeze(index.saturating_add(1)),
            Step::Freeze(index) => self.thaw(index),
            Step::Close(level) if ok => Step::Drain(level),
            Step::Close(level) => self.open(level),
            Step::Drain(level) if ok => self.close(level.saturating_add(1)),
            Step::Drain(level) => self.open(level.saturating_add(1)),
            Step::Switch => {
                self.made = ok;
                self.open(self.levels)
            }
            Step::Open(level) => self.open(level),
            Step::Thaw(index) => self.thaw(index),
            over @ Step::Over { .. } => over,
        };
        self.step
    }

    /// The step when the first `frozen` file systems are frozen.
    fn freeze(&self, frozen: usize) -> Step {
        if frozen < self.filesystems {
            Step::Freeze(frozen)
        } else {
            self.close(0)
        }
    }

    /// The step when the first `drained` levels are closed and drained.
    fn close(&self, drained: usize) -> Step {
        if drained < self.levels {
            Step::Close(drained)
        } else {
            Step::Switch
        }
    }

    /// The step when the first `closed` levels are to be opened.
    fn open(&self, closed: usize) -> Step {
        match closed.checked_sub(1) {
            Some(level) => Step::Open(level),
            None => self.thaw(self.filesystems),
        }
    }

    /// The step when the first `frozen` file systems are to be thawed.
    fn thaw(&self, frozen: usize) -> Step {
        match frozen.checked_sub(1) {
            Some(index) => Step::Thaw(index),
            None => Step::Over { made: self.made },
        }
    }
}
