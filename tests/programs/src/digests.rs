//! Lists of block hashes: what `digest` writes, and how two are compared.
//!
//! The file is text: a line `bdsnap-digest 1 block SIZE size SIZE`, then one
//! hexadecimal hash per line and block, `0` for a block of zeros.

use crate::rng::mix;
use serde_json::Value;
use std::fmt::Write as _;

/// Hashes of all blocks of a device or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Bytes in a block; the last one may be shorter.
    pub block: u64,
    /// Bytes in all.
    pub size: u64,
    /// One hash per block; 0 only for zeros.
    pub hashes: Vec<u64>,
}

/// Bytes from `offset` on, `length` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The hash of one block: 0 if it is all zeros, something else if not.
pub fn hash(block: &[u8]) -> u64 {
    let mut lanes = [0u64; 4];
    let mut any = 0u64;
    let mut chunks = block.chunks_exact(32);
    for c in &mut chunks {
        for (lane, w) in lanes.iter_mut().zip(c.chunks_exact(8)) {
            let w = u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
            any |= w;
            *lane = (*lane ^ w)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
        }
    }
    let mut h = block.len() as u64;
    for b in chunks.remainder() {
        any |= u64::from(*b);
        h = mix(h ^ u64::from(*b));
    }
    if any == 0 {
        return 0;
    }
    lanes.iter().fold(h, |h, l| mix(h ^ l)).max(1)
}

impl Digest {
    /// As the text that a digest file holds.
    pub fn to_text(&self) -> String {
        let mut s = format!("bdsnap-digest 1 block {} size {}\n", self.block, self.size);
        for h in &self.hashes {
            let _ = writeln!(s, "{h:x}");
        }
        s
    }

    /// From such a text.
    pub fn from_text(s: &str) -> Result<Self, String> {
        let mut lines = s.lines();
        let head: Vec<&str> = lines.next().unwrap_or("").split(' ').collect();
        let ["bdsnap-digest", "1", "block", block, "size", size] = head[..] else {
            return Err("not a digest file".into());
        };
        let block: u64 = block.parse().map_err(|_| "bad block size")?;
        let size: u64 = size.parse().map_err(|_| "bad size")?;
        let hashes = lines
            .map(|l| u64::from_str_radix(l, 16).map_err(|_| format!("bad line '{l}'")))
            .collect::<Result<Vec<_>, _>>()?;
        if block == 0 || hashes.len() as u64 != size.div_ceil(block) {
            return Err(format!(
                "{} hashes for {size} bytes in blocks of {block}: cut short?",
                hashes.len()
            ));
        }
        Ok(Self {
            block,
            size,
            hashes,
        })
    }

    /// One hash over all.
    pub fn total(&self) -> u64 {
        self.hashes.iter().fold(self.size, |h, x| mix(h ^ x))
    }

    /// Where the two differ, neighbours joined, clamped to the end.
    pub fn diff(&self, other: &Self) -> Result<Vec<Extent>, String> {
        if (self.block, self.size) != (other.block, other.size) {
            return Err(format!(
                "can't be compared: {} bytes in blocks of {}, and {} in blocks of {}",
                self.size, self.block, other.size, other.block
            ));
        }
        let mut out: Vec<Extent> = Vec::new();
        for (i, (a, b)) in self.hashes.iter().zip(&other.hashes).enumerate() {
            if a == b {
                continue;
            }
            let offset = i as u64 * self.block;
            let length = self.block.min(self.size - offset);
            match out.last_mut() {
                Some(e) if e.offset + e.length == offset => e.length += length,
                _ => out.push(Extent { offset, length }),
            }
        }
        Ok(out)
    }
}

/// Joins two lists that must not overlap.
pub fn merge(mut a: Vec<Extent>, b: Vec<Extent>) -> Result<Vec<Extent>, String> {
    a.extend(b);
    a.sort_by_key(|e| e.offset);
    let mut out: Vec<Extent> = Vec::new();
    for e in a {
        match out.last_mut() {
            Some(last) if last.offset.saturating_add(last.length) > e.offset => {
                return Err(format!("{e:?} is in both lists, or twice in one"));
            }
            Some(last) if last.offset + last.length == e.offset => last.length += e.length,
            _ => out.push(e),
        }
    }
    Ok(out)
}

/// What a list of changed extents says, measured against the truth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Bytes that differ.
    pub truth: u64,
    /// Blocks that differ.
    pub true_blocks: u64,
    /// Blocks the list names.
    pub listed_blocks: u64,
    /// Differences that the list leaves out: each is lost data.
    pub missed: Vec<Extent>,
}

/// Checks `listed` against the `truth` (from [`Digest::diff`], with any
/// block size) for a device of `size` bytes and change blocks of `block`.
///
/// The list itself must be sorted, merged, not empty-handed in an extent,
/// made of whole blocks, and clamped to the end of the device.
pub fn judge(
    truth: &[Extent],
    listed: &[Extent],
    block: u64,
    size: u64,
) -> Result<Verdict, String> {
    let mut end = None;
    for e in listed {
        let stop = e.offset.checked_add(e.length).filter(|s| *s <= size);
        let Some(stop) = stop else {
            return Err(format!("{e:?} goes past the device's end {size}"));
        };
        if e.length == 0 || e.offset % block != 0 || (stop % block != 0 && stop != size) {
            return Err(format!("{e:?} is not made of whole blocks of {block}"));
        }
        if end.is_some_and(|x| e.offset <= x) {
            return Err(format!(
                "{e:?}: not sorted and merged (the one before ends at {end:?})"
            ));
        }
        end = Some(stop);
    }
    let mut v = Verdict {
        truth: truth.iter().map(|e| e.length).sum(),
        listed_blocks: listed.iter().map(|e| e.length.div_ceil(block)).sum(),
        ..Verdict::default()
    };
    let mut last_block = None;
    let mut l = listed.iter().peekable();
    for t in truth {
        for b in t.offset / block..(t.offset + t.length).div_ceil(block) {
            if last_block == Some(b) {
                continue;
            }
            last_block = Some(b);
            v.true_blocks += 1;
            let start = b * block;
            while l.peek().is_some_and(|e| e.offset + e.length <= start) {
                l.next();
            }
            if l.peek().is_none_or(|e| e.offset > start) {
                v.missed.push(Extent {
                    offset: start,
                    length: block.min(size - start),
                });
            }
        }
    }
    Ok(v)
}

/// The block size and the extents of `bdsnap --json changes`, with the discards where those are
/// apart.
pub fn parse_changes(text: &str) -> Result<(u64, Vec<Extent>), String> {
    let v: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let number = |v: &Value, key: &str| {
        v.get(key)
            .and_then(Value::as_u64)
            .ok_or_else(|| format!("'{key}' is missing, or no whole number, in {v}"))
    };
    let list = |key: &str| {
        let list = v.get(key).and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("'{key}' is missing or no list"))?;
        list.iter()
            .map(|e| {
                Ok(Extent {
                    offset: number(e, "offset")?,
                    length: number(e, "length")?,
                })
            })
            .collect::<Result<Vec<_>, String>>()
    };
    let mut extents = list("extents")?;
    if v.get("discards").is_some() {
        extents = merge(extents, list("discards")?)?;
    }
    Ok((number(&v, "block_size")?, extents))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext(list: &[(u64, u64)]) -> Vec<Extent> {
        list.iter()
            .map(|&(offset, length)| Extent { offset, length })
            .collect()
    }

    #[test]
    fn hashes_tell_blocks_apart() {
        let mut b = vec![0u8; 4096];
        assert_eq!(hash(&b), 0);
        let mut seen = std::collections::HashSet::new();
        for i in 0..4096 {
            b[i] = 1;
            assert!(seen.insert(hash(&b)), "byte {i}");
            b[i] = 0;
        }
        assert_ne!(hash(&[0, 1]), hash(&[1, 0]));
        let (mut x, mut y) = (vec![7u8; 64], vec![7u8; 64]);
        x[..32].fill(1);
        y[32..].fill(1);
        assert_ne!(hash(&x), hash(&y), "order of words");
    }

    #[test]
    fn text_round_trip_and_short_file() {
        let d = Digest {
            block: 4096,
            size: 4096 * 2 + 512,
            hashes: vec![1, 0, u64::MAX],
        };
        assert_eq!(Digest::from_text(&d.to_text()), Ok(d.clone()));
        let t = d.to_text();
        assert!(Digest::from_text(&t[..t.len() - 18]).is_err());
        assert!(Digest::from_text("").is_err());
    }

    #[test]
    fn diff_joins_and_clamps() {
        let a = Digest {
            block: 4096,
            size: 4096 * 3 + 512,
            hashes: vec![1, 2, 3, 4],
        };
        let mut b = a.clone();
        assert_eq!(a.diff(&b), Ok(vec![]));
        b.hashes = vec![9, 2, 9, 9];
        assert_eq!(a.diff(&b), Ok(ext(&[(0, 4096), (8192, 4096 + 512)])));
        b.size += 1;
        assert!(a.diff(&b).is_err());
    }

    #[test]
    fn a_missed_block_is_found() {
        let size = 10 * 65536 + 512;
        let truth = ext(&[(4096, 4096), (65536 * 3 - 4096, 8192), (65536 * 10, 512)]);
        let all = ext(&[(0, 65536), (65536 * 2, 65536 * 3), (65536 * 10, 512)]);
        let v = judge(&truth, &all, 65536, size).expect("fine list");
        assert_eq!((v.true_blocks, v.listed_blocks, v.missed.len()), (4, 5, 0));
        for gone in 0..all.len() {
            let mut some = all.clone();
            some.remove(gone);
            assert!(
                !judge(&truth, &some, 65536, size)
                    .expect("fine list")
                    .missed
                    .is_empty(),
                "{gone}"
            );
        }
        let v = judge(&truth, &[], 65536, size).expect("empty list");
        assert_eq!(v.missed.len(), 4);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let size = 10 * 65536 + 512;
        for bad in [
            ext(&[(65536, 65536), (0, 65536)]),
            ext(&[(0, 65536), (65536, 65536)]),
            ext(&[(0, 65536 * 2), (65536, 65536 * 2)]),
            ext(&[(512, 65536)]),
            ext(&[(0, 512)]),
            ext(&[(0, 0)]),
            ext(&[(65536 * 10, 65536)]),
            ext(&[(u64::MAX - 65535, 65536)]),
        ] {
            assert!(judge(&[], &bad, 65536, size).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn changes_json() {
        let ok =
            r#"{"device":"/dev/x","block_size":65536,"extents":[{"offset":0,"length":65536}]}"#;
        assert_eq!(
            parse_changes(ok),
            Ok((
                65536,
                vec![Extent {
                    offset: 0,
                    length: 65536
                }]
            ))
        );
        let apart = r#"{"block_size":4096,"extents":[{"offset":8192,"length":4096}],
            "discards":[{"offset":4096,"length":4096},{"offset":20480,"length":512}]}"#;
        let joined = [(4096, 8192), (20480, 512)].map(|(offset, length)| Extent { offset, length });
        assert_eq!(parse_changes(apart), Ok((4096, joined.to_vec())));
        for bad in [
            "",
            "{}",
            r#"{"block_size":65536,"extents":[],"discards":0}"#,
            r#"{"block_size":4096,"extents":[{"offset":0,"length":8192}],
                "discards":[{"offset":4096,"length":4096}]}"#,
            r#"{"block_size":65536}"#,
            r#"{"block_size":65536,"extents":[{"offset":"0","length":1}]}"#,
        ] {
            assert!(parse_changes(bad).is_err(), "{bad}");
        }
    }
}
