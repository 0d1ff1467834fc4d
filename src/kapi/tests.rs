// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of primitives: run when the module is loaded into a kernel that has KUnit, as the
//! debug kernel has. There KASAN sees what an assertion can't: memory used after it was freed.

use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Counts how many of those that share its counter were dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A counter, and boxes that count on it.
struct Drops(Arc<AtomicUsize>);

impl Drops {
    /// None dropped yet.
    fn new() -> Result<Self> {
        Ok(Self(Arc::new(AtomicUsize::new(0), GFP_KERNEL)?))
    }

    /// A box that counts when it is dropped.
    fn boxed(&self) -> Result<KBox<Counted>> {
        Ok(KBox::new(Counted(self.0.clone()), GFP_KERNEL)?)
    }

    /// How many were dropped.
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[kunit_tests(bdsnap_slot)]
mod slot {
    use super::super::slot::slots;
    use super::super::slot::zeroed;
    use super::super::slot::BytePage;
    use super::super::slot::Content;
    use super::super::slot::Slot;
    use super::*;

    #[test]
    fn is_filled_once() -> Result {
        let drops = Drops::new()?;
        let slot = Slot::new();
        assert!(matches!(slot.content(), Content::Empty));
        let first = drops.boxed()?;
        let address: *const Counted = &*first;
        slot.put(Some(first));
        assert!(slot.get().is_some_and(|v| core::ptr::eq(v, address)));
        // What comes too late is dropped, and changes nothing.
        slot.put(Some(drops.boxed()?));
        assert_eq!(drops.count(), 1);
        slot.put(None);
        assert!(slot.get().is_some_and(|v| core::ptr::eq(v, address)));
        drop(slot);
        assert_eq!(drops.count(), 2);
        Ok(())
    }

    #[test]
    fn stays_void() -> Result {
        let drops = Drops::new()?;
        let slot = Slot::new();
        slot.put(None);
        assert!(matches!(slot.content(), Content::Void));
        slot.put(Some(drops.boxed()?));
        assert_eq!(drops.count(), 1);
        assert!(matches!(slot.content(), Content::Void));
        assert!(slot.get().is_none());
        Ok(())
    }

    #[test]
    fn pages_are_zero() -> Result {
        let page = zeroed::<BytePage>(GFP_KERNEL)?;
        assert!(page.iter().all(|b| b.load(Ordering::Relaxed) == 0));
        let empty = slots::<BytePage>(1000)?;
        assert_eq!(empty.len(), 1000);
        assert!(empty.iter().all(|s| matches!(s.content(), Content::Empty)));
        Ok(())
    }
}

#[kunit_tests(bdsnap_rcu)]
mod rcu {
    use super::super::queue::OwnedQueue;
    use super::super::rcu::RcuCell;
    use super::*;
    use core::sync::atomic::AtomicBool;
    use kernel::impl_has_work;
    use kernel::new_work;
    use kernel::sync::rcu::read_lock;
    use kernel::workqueue::Work;
    use kernel::workqueue::WorkItem;

    #[test]
    fn frees_what_was_replaced() -> Result {
        let drops = Drops::new()?;
        let cell = RcuCell::empty();
        assert!(cell.read(&read_lock()).is_none());
        drop(cell.swap(Some(drops.boxed()?)));
        assert!(cell.read(&read_lock()).is_some());
        let retired = cell.swap(Some(drops.boxed()?));
        assert_eq!(drops.count(), 0);
        drop(retired);
        assert_eq!(drops.count(), 1);
        drop(cell.swap(None));
        assert!(cell.read(&read_lock()).is_none());
        assert_eq!(drops.count(), 2);
        drop(cell.swap(Some(drops.boxed()?)));
        drop(cell);
        assert_eq!(drops.count(), 3);
        Ok(())
    }

    /// Reads a cell until it is told to stop.
    #[pin_data]
    struct Reader {
        cell: RcuCell<[u64; 8]>,
        stop: AtomicBool,
        torn: AtomicUsize,
        reads: AtomicUsize,
        #[pin]
        work: Work<Self>,
    }

    impl_has_work! {
        impl HasWork<Self> for Reader { self.work }
    }

    impl WorkItem for Reader {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            while !this.stop.load(Ordering::Relaxed) {
                let guard = read_lock();
                if let Some(value) = this.cell.read(&guard) {
                    let first = value.first();
                    if value.iter().any(|v| Some(v) != first) {
                        this.torn.fetch_add(1, Ordering::Relaxed);
                    }
                }
                drop(guard);
                this.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    // That nothing is read after it was freed is seen by KASAN.
    #[test]
    fn readers_race_with_swaps() -> Result {
        let queue = OwnedQueue::new(c"bdsnap_test", false)?;
        let reader = Arc::pin_init(
            pin_init!(Reader {
                cell: RcuCell::empty(),
                stop: AtomicBool::new(false),
                torn: AtomicUsize::new(0),
                reads: AtomicUsize::new(0),
                work <- new_work!("Reader::work"),
            }),
            GFP_KERNEL,
        )?;
        let _ = queue.queue().enqueue(reader.clone());
        let deadline = super::super::time::Deadline::after_ms(2000);
        deadline.wait_until(|| reader.reads.load(Ordering::Relaxed) > 0);
        let mut result = Ok(());
        for n in 0..20 {
            match KBox::new([n; 8], GFP_KERNEL) {
                Ok(value) => drop(reader.cell.swap(Some(value))),
                Err(e) => result = Err(e.into()),
            }
        }
        reader.stop.store(true, Ordering::Relaxed);
        drop(queue);
        assert!(reader.reads.load(Ordering::Relaxed) > 0);
        assert_eq!(reader.torn.load(Ordering::Relaxed), 0);
        result
    }
}

#[kunit_tests(bdsnap_run_stack)]
mod run_stack {
    use super::super::run::Run;
    use super::super::run::RunOwner;
    use super::super::run::RunStack;
    use super::*;

    struct Nobody;

    impl RunOwner for Nobody {
        fn run_done(_owner: Arc<Self>, _run: Arc<Run<Self>>) {}
    }

    /// Some runs, numbered from 0.
    fn runs(n: usize) -> Result<KVec<Arc<Run<Nobody>>>> {
        let mut runs = KVec::with_capacity(n, GFP_KERNEL)?;
        for i in 0..n {
            runs.push(Run::new(1, i)?, GFP_KERNEL)?;
        }
        Ok(runs)
    }

    #[test]
    fn gives_the_first_first() -> Result {
        let stack = RunStack::new();
        assert!(stack.take_all().next().is_none());
        for run in runs(3)? {
            stack.push(run);
        }
        assert!(stack.take_all().map(|r| r.index()).eq([0, 1, 2]));
        assert!(stack.take_all().next().is_none());
        Ok(())
    }

    #[test]
    fn lets_go_of_what_is_left() -> Result {
        let kept = runs(4)?;
        let stack = RunStack::new();
        for run in &kept {
            stack.push(run.clone());
        }
        // One is taken, the others go with the iterator; a new one with the stack.
        assert_eq!(stack.take_all().next().map(|r| r.index()), Some(0));
        for run in runs(2)? {
            stack.push(run);
        }
        drop(stack);
        for run in kept {
            assert!(Arc::into_unique_or_drop(run).is_some());
        }
        Ok(())
    }
}

#[kunit_tests(bdsnap_global)]
mod global {
    use super::super::global::Global;
    use super::*;

    static GLOBAL: Global<Counted> = Global::new();

    #[test]
    fn holds_one() -> Result {
        let drops = Drops::new()?;
        let counted = || Ok::<_, Error>(Arc::new(Counted(drops.0.clone()), GFP_KERNEL)?);
        assert!(GLOBAL.get().is_none());
        let guard = GLOBAL.set(counted()?)?;
        assert!(GLOBAL.get().is_some());
        assert_eq!(GLOBAL.set(counted()?).err(), Some(EBUSY));
        assert_eq!(drops.count(), 1);
        drop(guard);
        assert!(GLOBAL.get().is_none());
        assert_eq!(drops.count(), 2);
        Ok(())
    }
}
