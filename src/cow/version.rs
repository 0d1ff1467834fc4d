// SPDX-License-Identifier: GPL-2.0

//! A version: what one snapshot keeps of one origin.

use super::bits::Bits;
use super::free::Free;
use super::free::Spared;
use crate::cbt::Aside;
use crate::cbt::View;
use crate::kapi::abi;
use crate::kapi::rcu::RcuCell;
use crate::kapi::slot::BitPage;
use crate::store::Store;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::sync::atomic::fence;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// How a version is damaged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Not at all.
    None,
    /// Some granules can't be read: the cause, `BDSNAP_CAUSE_*`.
    Parts(u32),
    /// Nothing can be read: the cause, `BDSNAP_CAUSE_*`.
    All(u32),
}

/// One version. What hooks and completions look at is here and atomic; where its data is, the
/// [`super::Chain`] knows.
pub(crate) struct Version {
    /// The map as of its cut.
    pub(crate) view: View,
    /// Where its granules go; empty once it is of no use any more.
    store: RcuCell<Arc<Store>>,
    /// Sectors in a granule, as a shift.
    shift: u32,
    /// Sectors of the origin.
    sectors: u64,
    /// Granules for which no copy need be made (any more), beside those that are spared.
    kept: Bits,
    /// What need not be kept from its cut on.
    spared: Option<Spared>,
    /// Those of them that it has data of, or that are lost: walks of older images end there.
    data: Bits,
    /// Cause of its failure: `BDSNAP_CAUSE_*`, 0 while it lives.
    failed: AtomicU32,
    /// Id of its snapshot.
    pub(crate) snapshot: [u8; 16],
    /// Whether it is being deleted.
    closing: AtomicBool,
    /// Why parts of it are lost: `BDSNAP_CAUSE_*`.
    lost_by: AtomicU32,
    /// The damage that has been told: 0 none, 1 parts, 2 all.
    told: AtomicU32,
    /// Granules copied.
    copied: AtomicU64,
    /// Granules lost.
    lost: AtomicU64,
    /// Granules not kept: store extents.
    not_kept: AtomicU64,
    /// Granules released.
    released: AtomicU64,
    /// Copies on their way.
    jobs: AtomicU64,
    /// Since when its writes find no room in its store, nanoseconds; 0: they do. Under its chain's lock.
    pub(super) short_since: AtomicU64,
}

impl Version {
    /// A version of an origin of `sectors` sectors that needs all granules. ENOMEM. May sleep.
    pub(crate) fn new(
        view: View,
        store: Arc<Store>,
        sectors: u64,
        snapshot: [u8; 16],
        spared: Option<Spared>,
    ) -> Result<Self> {
        let all = Span::<Sectors>::of_len(0, sectors).ok_or(EINVAL)?;
        let shift = store.shift();
        let granules = all.outward::<Granules>(shift).len();
        let cell = RcuCell::empty();
        drop(cell.swap(Some(KBox::new(store, GFP_KERNEL)?)));
        Ok(Self {
            view,
            sectors,
            kept: Bits::new(granules)?,
            spared,
            data: Bits::new(granules)?,
            store: cell,
            shift,
            failed: AtomicU32::new(0),
            snapshot,
            lost_by: AtomicU32::new(0),
            told: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            not_kept: AtomicU64::new(0),
            released: AtomicU64::new(0),
            jobs: AtomicU64::new(0),
            short_since: AtomicU64::new(0),
        })
    }

    /// Sectors in a granule, as a shift.
    #[inline]
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// Its store. Any context.
    pub(crate) fn store(&self) -> Option<Arc<Store>> {
        let guard = rcu::read_lock();
        self.store.read(&guard).cloned()
    }

    /// Whether there are news of its store.
    fn has_news(&self) -> bool {
        let guard = rcu::read_lock();
        self.store.read(&guard).is_some_and(|s| s.has_news())
    }

    /// Lets go of its store: it is not in its chain any more. Sleeps.
    pub(crate) fn give_up_store(&self) {
        drop(self.store.swap(None));
    }

    /// Sectors of its origin.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The sectors of some granules, clamped to the end of the device.
    pub(crate) fn sectors_of(&self, granules: Span<Granules>) -> Span<Sectors> {
        granules.sectors(self.shift(), self.sectors)
    }

    /// A copy for it begins.
    pub(super) fn job_begins(&self) {
        self.jobs.fetch_add(1, Ordering::AcqRel);
    }

    /// A copy for it is over.
    pub(super) fn job_ends(&self) {
        self.jobs.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether no copy for it is on its way, to memory or to the store.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.load(Ordering::Acquire) == 0
    }

    /// Whether copies are made for it.
    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.failed.load(Ordering::Acquire) == 0 && !self.closing.load(Ordering::Acquire)
    }

    /// How it is damaged.
    pub(crate) fn damage(&self) -> Damage {
        match self.failed.load(Ordering::Acquire) {
            0 if self.lost.load(Ordering::Relaxed) > 0 => {
                Damage::Parts(self.lost_by.load(Ordering::Relaxed))
            }
            0 => Damage::None,
            cause => Damage::All(cause),
        }
    }

    /// Gives it up: nothing more is copied for it, its image answers EIO. What it has still serves
    /// older versions. The first cause stays.
    pub(crate) fn fail(&self, cause: u32) {
        let first = self
            .failed
            .compare_exchange(0, cause, Ordering::AcqRel, Ordering::Relaxed);
        if first.is_ok() {
            let why = match cause {
                abi::BDSNAP_CAUSE_STORE_FULL => "its store is full",
                abi::BDSNAP_CAUSE_STORE_IO => "a write to its store failed",
                abi::BDSNAP_CAUSE_STORE_STALLED => "its store does not answer",
                abi::BDSNAP_CAUSE_NO_MEMORY => "there is no memory for it",
                abi::BDSNAP_CAUSE_PASSTHROUGH | abi::BDSNAP_CAUSE_REQUEST_DM => {
                    "its origin was written around the block layer's usual path"
                }
                abi::BDSNAP_CAUSE_RESIZED => "its origin shrank",
                abi::BDSNAP_CAUSE_STRAY => "its origin got a write from before it was tracked",
                abi::BDSNAP_CAUSE_HIBERNATED => "the machine hibernates",
                _ => "its origin is gone",
            };
            pr_notice!(
                "snapshot {} of an origin has failed: {}\n",
                self.view.number(),
                why
            );
        }
    }

    /// The damage that has not been told yet, which is then taken for told.
    pub(super) fn untold(&self) -> Option<Damage> {
        let damage = self.damage();
        let grade = match damage {
            Damage::None => 0,
            Damage::Parts(_) => 1,
            Damage::All(_) => 2,
        };
        (self.told.fetch_max(grade, Ordering::Relaxed) < grade).then_some(damage)
    }

    /// Whether there is such damage, or news of its store.
    fn is_untold(&self) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        told < 2 && self.failed.load(Ordering::Acquire) != 0
            || told < 1 && self.lost.load(Ordering::Relaxed) > 0
            || self.has_news()
    }

    /// Takes note that so many more granules can't be read, and why.
    pub(super) fn lose(&self, granules: u64, cause: u32) {
        self.lost_by.store(cause, Ordering::Relaxed);
        self.lost.fetch_add(granules, Ordering::Relaxed);
    }

    /// Makes no more copies for it: it is being deleted.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Marks granules as not kept, before the cut: they read as zeros. ENOMEM. May sleep.
    pub(crate) fn exclude(&self, span: Span<Granules>) -> Result {
        self.kept.ensure(span)?;
        let before = self.kept.count(span);
        self.kept.set(span);
        self.not_kept
            .fetch_add(span.len().saturating_sub(before), Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that [`Version::keep`] can be called for `span`, with memory from a stock. ENOMEM: it is
    /// out. Any context.
    pub(super) fn ensure_from(
        &self,
        span: Span<Granules>,
        stock: &mut KVec<KBox<BitPage>>,
    ) -> Result {
        self.kept.ensure_from(span, stock)?;
        self.data.ensure_from(span, stock)
    }

    /// Its data for `span` is in memory (or `lost`): writes may pass. The caller has recorded
    /// where it is.
    pub(super) fn keep(&self, span: Span<Granules>, lost: bool) {
        // In this order: who sees a granule kept, sees that there is data.
        self.data.set(span);
        self.kept.set(span);
        if lost {
            self.lose(span.len(), abi::BDSNAP_CAUSE_ORIGIN_IO);
        } else {
            self.copied.fetch_add(span.len(), Ordering::Relaxed);
        }
    }

    /// It takes data over from a newer version. (What that has lost is counted already.)
    pub(super) fn inherit(&self, span: Span<Granules>) {
        self.data.set(span);
        self.kept.set(span);
    }

    /// Makes sure that [`Version::release`] can be called for `span`, with memory from a stock. ENOMEM: it
    /// is out. Any context.
    pub(super) fn ensure_kept_from(
        &self,
        span: Span<Granules>,
        stock: &mut KVec<KBox<BitPage>>,
    ) -> Result {
        self.kept.ensure_from(span, stock)
    }

    /// Granules that are not kept (any more): they read as zeros. What it had of them has been handed
    /// down, and forgotten. Under its chain's lock.
    pub(super) fn release(&self, span: Span<Granules>) {
        // Before any write is let through for that, or any slot used again.
        self.released.fetch_add(span.len(), Ordering::AcqRel);
        self.data.clear(span);
        self.kept.set(span);
    }

    /// Whether any of these granules, which were to be kept or had been, has been released: what has
    /// just been read of it may be anything. Any context.
    pub(crate) fn has_released(&self, span: Span<Granules>) -> bool {
        // After what the caller has read.
        fence(Ordering::Acquire);
        if self.released.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut rest = span;
        while let Some(at) = self.kept.first_set(rest) {
            let upto = Span::new(at, span.end()).unwrap_or(Span::EMPTY);
            let end = self.kept.first_clear(upto).unwrap_or(span.end());
            let kept = Span::new(at, end).unwrap_or(Span::EMPTY);
            if !self.data.all(kept) {
                return true;
            }
            rest = Span::new(end, span.end()).unwrap_or(Span::EMPTY);
        }
        false
    }

    /// The first granule of `span` of which a copy must be made before it is overwritten. Any
    /// context.
    #[inline]
    fn first_needed(&self, span: Span<Granules>) -> Option<u64> {
        let Some(spared) = &self.spared else {
            return self.kept.first_clear(span);
        };
        let mut rest = span;
        loop {
            let at = self.kept.first_clear(rest)?;
            let used = spared.all().first_used(at, span.end(), self.shift());
            if used == at {
                return Some(at);
            }
            rest = Span::new(used, span.end())?;
        }
    }

    /// Whether a granule need not be copied, and up to where that is so.
    pub(super) fn kept_run(&self, span: Span<Granules>) -> (bool, u64) {
        match self.first_needed(span) {
            None => (true, span.end()),
            Some(at) if at > span.start() => (true, at),
            Some(at) => {
                let kept = self.kept.first_set(span).unwrap_or(span.end());
                let spared = self.spared.as_ref();
                let first = spared.map(|s| s.all().first_free(at, kept, self.shift()));
                (false, kept.min(first.unwrap_or(kept)))
            }
        }
    }

    /// Whether it has data of any of these granules. Any context.
    pub(crate) fn has_data_of(&self, span: Span<Granules>) -> bool {
        self.data.any(span)
    }

    /// Granules copied, lost, and not kept.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (
            self.copied.load(Ordering::Relaxed),
            self.lost.load(Ordering::Relaxed),
            self.not_kept.load(Ordering::Relaxed),
        )
    }

    /// Granules that were free at its cut, and those that were not, and had not changed.
    pub(crate) fn spared(&self) -> (u64, u64) {
        let Some(spared) = &self.spared else {
            return (0, 0);
        };
        let count = |f: &Free| f.granules(self.shift(), self.sectors);
        let free = count(&spared.free);
        (free, count(spared.all()).saturating_sub(free))
    }

    /// Granules that have been released.
    pub(crate) fn released(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }

    /// It is for an increment: it has only what changed after this snapshot.
    pub(crate) fn since(&self) -> Option<u64> {
        self.spared.as_ref()?.since
    }

    /// What to say of the number in which a block last changed, `value`: it can't be after
    /// [`Version::since`] where the block is not needed. (A page of the map that could not be put
    /// aside says that all of it has changed.)
    pub(crate) fn truer(&self, sectors: Span<Sectors>, value: u32) -> u32 {
        match &self.spared {
            Some(spared) => match spared.since.and_then(|n| u32::try_from(n).ok()) {
                Some(since)
                    if value & !abi::BDSNAP_MAP_DISCARDED > since
                        && spared.is_unchanged(sectors) =>
                {
                    since
                }
                _ => value,
            },
            None => value,
        }
    }
}

/// The versions of an origin, newest first: what the hook reads under RCU.
pub(crate) struct Versions {
    /// The versions.
    list: KVec<Arc<Version>>,
    /// Whether the newest has become so by the end of a newer one whose pages it is still getting:
    /// until then it can't make copies of its own, which might be too new.
    settling: AtomicBool,
}

impl Versions {
    /// Of a list, newest first.
    pub(crate) fn new(list: KVec<Arc<Version>>, settling: bool) -> Self {
        Self {
            list,
            settling: AtomicBool::new(settling),
        }
    }

    /// Gives all of them up: see [`Version::fail`].
    pub(crate) fn fail(&self, cause: u32) {
        self.list.iter().for_each(|v| v.fail(cause));
    }

    /// Whether there is damage, or news of a store, that has not been told.
    pub(super) fn any_untold(&self) -> bool {
        self.list.iter().any(|v| v.is_untold())
    }

    /// Whether no copy for any of them is on its way.
    pub(crate) fn are_idle(&self) -> bool {
        self.list.iter().all(|v| v.is_idle())
    }

    /// The newest has all that it gets.
    pub(super) fn settled(&self) {
        self.settling.store(false, Ordering::Release);
    }

    /// Whether a write to these sectors must be looked at by the worker, because some live version
    /// may need some of its granules. Any context; never says no where the answer is yes.
    #[inline]
    pub(crate) fn may_need(&self, span: Span<Sectors>) -> bool {
        for version in self.list.iter() {
            let granules = span.outward::<Granules>(version.shift());
            if version.data.all(granules) {
                // Older ones find their data there.
                return false;
            }
            if version.is_live() && version.first_needed(granules).is_some() {
                return true;
            }
        }
        false
    }

    /// Where pages of the map are put aside.
    #[inline]
    pub(crate) fn aside(&self) -> Option<Aside<'_>> {
        Some(Aside {
            view: &self.list.first()?.view,
            settling: self.settling.load(Ordering::Acquire),
        })
    }

    /// Whether one of the versions from `own` to the newest has data of any of these granules, so
    /// that what was read from the origin may be too new. A `own` that isn't among them: yes.
    /// Any context.
    pub(crate) fn superseded(&self, own: &Version, span: Span<Granules>) -> bool {
        for version in self.list.iter() {
            if version.has_data_of(span) {
                return true;
            }
            if core::ptr::eq(&**version, own) {
                return false;
            }
        }
        true
    }
}
