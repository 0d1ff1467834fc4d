// SPDX-License-Identifier: GPL-2.0

//! A bitmap over the granules of a version, in leaves that come to be when they are needed.

use crate::kapi::slot;
use crate::kapi::slot::BitPage;
use crate::kapi::slot::Slot;
use crate::kapi::slot::PAGE_WORDS;
use bdsnap_logic::bits;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Span;
use kernel::prelude::*;

/// Bits in a leaf.
const LEAF: u64 = PAGE_WORDS as u64 * 64;

/// One bit a granule, 0 at first. Setting needs the leaf to be there; testing needs no lock.
pub(crate) struct Bits {
    /// The leaves.
    leaves: KVVec<Slot<BitPage>>,
}

/// A part of a span that lies in one leaf.
struct Part {
    /// Which leaf.
    leaf: usize,
    /// First bit in it.
    from: usize,
    /// The bit after the last.
    to: usize,
    /// The granule of bit 0.
    base: u64,
}

/// The parts of a span, leaf by leaf.
fn parts(span: Span<Granules>) -> impl Iterator<Item = Part> {
    let mut at = span.start();
    core::iter::from_fn(move || {
        if at >= span.end() {
            return None;
        }
        let base = at - at % LEAF;
        let end = span.end().min(base.saturating_add(LEAF));
        let part = Part {
            leaf: usize::try_from(at / LEAF).ok()?,
            from: (at - base) as usize,
            to: (end - base) as usize,
            base,
        };
        at = end;
        Some(part)
    })
}

impl Bits {
    /// Room for `granules` bits. ENOMEM. May sleep.
    pub(crate) fn new(granules: u64) -> Result<Self> {
        let leaves = usize::try_from(granules.div_ceil(LEAF))?;
        Ok(Self {
            leaves: slot::slots(leaves)?,
        })
    }

    /// Makes sure that the bits of `span` can be set. ENOMEM. May sleep.
    pub(crate) fn ensure(&self, span: Span<Granules>) -> Result {
        for part in parts(span) {
            let leaf = self.leaves.get(part.leaf).ok_or(EINVAL)?;
            if leaf.get().is_none() {
                leaf.put(Some(slot::zeroed(GFP_KERNEL)?));
            }
        }
        Ok(())
    }

    /// The same, with leaves from a stock. ENOMEM: it is out. Any context.
    pub(crate) fn ensure_from(
        &self,
        span: Span<Granules>,
        stock: &mut KVec<KBox<BitPage>>,
    ) -> Result {
        for part in parts(span) {
            let leaf = self.leaves.get(part.leaf).ok_or(EINVAL)?;
            if leaf.get().is_none() {
                leaf.put(Some(stock.pop().ok_or(ENOMEM)?));
            }
        }
        Ok(())
    }

    /// Sets the bits of `span`, where their leaves are there. What was written before is seen by
    /// those who see the bits.
    pub(crate) fn set(&self, span: Span<Granules>) {
        for part in parts(span) {
            if let Some(leaf) = self.leaves.get(part.leaf).and_then(Slot::get) {
                bits::set_range(leaf, part.from, part.to);
            }
        }
    }

    /// Clears the bits of `span`. Any context.
    pub(crate) fn clear(&self, span: Span<Granules>) {
        for part in parts(span) {
            if let Some(leaf) = self.leaves.get(part.leaf).and_then(Slot::get) {
                bits::clear_range(leaf, part.from, part.to);
            }
        }
    }

    /// Whether all bits of `span` are set. Any context.
    #[inline]
    pub(crate) fn all(&self, span: Span<Granules>) -> bool {
        self.first_clear(span).is_none()
    }

    /// Whether any bit of `span` is set. Any context.
    #[inline]
    pub(crate) fn any(&self, span: Span<Granules>) -> bool {
        self.first_set(span).is_some()
    }

    /// The first granule of `span` whose bit is clear.
    pub(crate) fn first_clear(&self, span: Span<Granules>) -> Option<u64> {
        for part in parts(span) {
            let Some(leaf) = self.leaves.get(part.leaf).and_then(Slot::get) else {
                return part.base.checked_add(part.from as u64);
            };
            if let Some(bit) = bits::first_clear(leaf, part.from, part.to) {
                return part.base.checked_add(bit as u64);
            }
        }
        None
    }

    /// The first granule of `span` whose bit is set.
    pub(crate) fn first_set(&self, span: Span<Granules>) -> Option<u64> {
        for part in parts(span) {
            let leaf = self.leaves.get(part.leaf).and_then(Slot::get);
            if let Some(bit) = leaf.and_then(|l| bits::first_set(l, part.from, part.to)) {
                return part.base.checked_add(bit as u64);
            }
        }
        None
    }

    /// How many bits of `span` are set.
    pub(crate) fn count(&self, span: Span<Granules>) -> u64 {
        parts(span)
            .filter_map(|part| {
                let leaf = self.leaves.get(part.leaf).and_then(Slot::get)?;
                Some(bits::count(leaf, part.from, part.to) as u64)
            })
            .sum()
    }
}
