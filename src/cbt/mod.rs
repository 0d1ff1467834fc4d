// SPDX-License-Identifier: GPL-2.0

//! Change-block tracking: the change map of an origin, and what it was at each cut.

mod map;

pub(crate) use map::Aside;
pub(crate) use map::Map;
pub(crate) use map::View;
