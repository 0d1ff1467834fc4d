//! Self-describing sectors.
//!
//! Every 512-byte sector that `stomp` and `twins` write says where it belongs
//! and when it was written, and every byte of it follows from its header: a
//! sector that was moved, mixed from two writes, or changed by one bit is
//! found, and a sector newer than a snapshot gives itself away in the image.
//!
//! ```text
//! offset  field   (all little endian)
//!      0  magic   "BDSECTOR"
//!      8  sector  where it was written: 512-byte sectors from the start of
//!                 the device (plus the writer's --base)
//!     16  seq     number of the write, increasing
//!     24  time    CLOCK_REALTIME of the write, ns
//!     32  mono    CLOCK_MONOTONIC of the write, ns
//!     40  writer  id of the writing thread
//!     44  span    sectors in that write
//!     48  check   hash of the 48 bytes before
//!     56  filler  57 words that follow from `check`
//! ```

use crate::rng::mix;

/// Bytes in a sector, whatever the logical block size.
pub const SECTOR: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"BDSECTOR");

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 512-byte sectors from the start of the device.
    pub sector: u64,
    /// Number of the write.
    pub seq: u64,
    /// CLOCK_REALTIME in nanoseconds.
    pub time: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub mono: u64,
    /// Id of the writing thread.
    pub writer: u32,
    /// Sectors in that write.
    pub span: u32,
}

/// What a sector turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A sector as it was written.
    Good(Header),
    /// All zeros.
    Zero,
    /// No sector of ours: the magic is missing.
    Foreign,
    /// Ours, but damaged: the header does not match its own hash.
    BadHeader,
    /// The header is good, the filler does not belong to it: mixed from two
    /// writes, from this byte on.
    Torn(Header, usize),
}

fn words(b: &[u8]) -> impl Iterator<Item = u64> + '_ {
    b.chunks_exact(8)
        .map(|c| u64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
}

fn check_of(header: &[u8]) -> u64 {
    words(header).fold(0x6264_736e_6170, |h, w| mix(h ^ w))
}

fn filler(check: u64) -> impl Iterator<Item = u64> {
    let mut x = check | 1;
    std::iter::repeat_with(move || {
        x = x
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        x
    })
}

/// Writes the sector that `h` describes.
pub fn encode(h: &Header, out: &mut [u8]) {
    assert_eq!(out.len(), SECTOR);
    let fields = [
        MAGIC,
        h.sector,
        h.seq,
        h.time,
        h.mono,
        u64::from(h.writer) | (u64::from(h.span) << 32),
    ];
    for (c, f) in out.chunks_exact_mut(8).zip(fields) {
        c.copy_from_slice(&f.to_le_bytes());
    }
    let check = check_of(&out[..48]);
    for (c, f) in out[48..]
        .chunks_exact_mut(8)
        .zip(std::iter::once(check).chain(filler(check)))
    {
        c.copy_from_slice(&f.to_le_bytes());
    }
}

/// Fills `out` with consecutive sectors, the first at `h.sector`.
pub fn encode_all(h: &Header, out: &mut [u8]) {
    for (i, s) in out.chunks_exact_mut(SECTOR).enumerate() {
        encode(
            &Header {
                sector: h.sector + i as u64,
                ..*h
            },
            s,
        );
    }
}

/// Looks at one sector.
pub fn decode(b: &[u8]) -> Found {
    assert_eq!(b.len(), SECTOR);
    let mut w = words(b);
    let mut field = || w.next().unwrap_or(0);
    if field() != MAGIC {
        return if b.iter().all(|&x| x == 0) {
            Found::Zero
        } else {
            Found::Foreign
        };
    }
    let (sector, seq, time, mono, who, check) =
        (field(), field(), field(), field(), field(), field());
    if check != check_of(&b[..48]) {
        return Found::BadHeader;
    }
    let header = Header {
        sector,
        seq,
        time,
        mono,
        writer: who as u32,
        span: (who >> 32) as u32,
    };
    match w.zip(filler(check)).position(|(a, b)| a != b) {
        Some(word) => Found::Torn(header, 56 + word * 8),
        None => Found::Good(header),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: Header = Header {
        sector: 77,
        seq: 5,
        time: 1,
        mono: 2,
        writer: 3,
        span: 8,
    };

    #[test]
    fn round_trip() {
        let mut b = [0xffu8; SECTOR];
        encode(&H, &mut b);
        assert_eq!(decode(&b), Found::Good(H));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut b = [0u8; SECTOR];
        encode(&H, &mut b);
        for bit in 0..SECTOR * 8 {
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode(&b), Found::Good(_)), "bit {bit}");
            b[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_mix_of_two_writes_is_torn() {
        let (mut a, mut b) = ([0u8; SECTOR], [0u8; SECTOR]);
        encode(&H, &mut a);
        encode(&Header { seq: 6, ..H }, &mut b);
        a[256..].copy_from_slice(&b[256..]);
        assert_eq!(decode(&a), Found::Torn(H, 256));
    }

    #[test]
    fn zeros_and_foreign_data() {
        assert_eq!(decode(&[0; SECTOR]), Found::Zero);
        assert_eq!(decode(&[1; SECTOR]), Found::Foreign);
        let mut b = [0; SECTOR];
        b[511] = 1;
        assert_eq!(decode(&b), Found::Foreign);
    }
}
