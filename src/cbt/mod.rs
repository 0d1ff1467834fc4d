// SPDX-License-Identifier: GPL-2.0

//! Change-block tracking: the change map of an origin, and what it was at each cut;
//! and which of the changes were discards.

mod kinds;
mod map;

pub(crate) use kinds::Kinds;
pub(crate) use map::Aside;
pub(crate) use map::Map;
pub(crate) use map::View;
