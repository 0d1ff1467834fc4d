// SPDX-License-Identifier: GPL-2.0
//! Sorting without memory and without a way to panic, which `core` does not promise.

/// Sorts in place by `key`, not stably: a heap sort.
pub(crate) fn sort_by_key<T: Copy>(list: &mut [T], key: fn(&T) -> u64) {
    for root in (0..list.len() / 2).rev() {
        sift_down(list, root, key);
    }
    for last in (1..list.len()).rev() {
        swap(list, 0, last);
        sift_down(list.get_mut(..last).unwrap_or_default(), 0, key);
    }
}

/// Moves the item at `root` down to where no child is above it, in a heap that is right but for it.
fn sift_down<T: Copy>(heap: &mut [T], mut root: usize, key: fn(&T) -> u64) {
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let mut top = root;
        for child in [left, right] {
            if is_above(heap, child, top, key) {
                top = child;
            }
        }
        if top == root {
            return;
        }
        swap(heap, root, top);
        root = top;
    }
}

/// Whether there is an item at `a`, and it comes after the one at `b`.
fn is_above<T>(heap: &[T], a: usize, b: usize, key: fn(&T) -> u64) -> bool {
    match (heap.get(a), heap.get(b)) {
        (Some(a), Some(b)) => key(a) > key(b),
        _ => false,
    }
}

/// Exchanges two items; nothing happens if one does not exist.
fn swap<T: Copy>(list: &mut [T], a: usize, b: usize) {
    let (Some(&was_a), Some(&was_b)) = (list.get(a), list.get(b)) else {
        return;
    };
    for (index, item) in [(a, was_b), (b, was_a)] {
        if let Some(place) = list.get_mut(index) {
            *place = item;
        }
    }
}
