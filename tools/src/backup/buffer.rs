//! Buffers for direct I/O, and looking for zeros.

/// Alignment that direct I/O is content with on every device, bytes.
const ALIGN: usize = 4096;

/// A buffer whose start is aligned for direct I/O.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// A buffer of `length` zero bytes.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        // align_offset may give up by its contract; then direct I/O fails with EINVAL, no worse.
        let start = if start > ALIGN { 0 } else { start };
        Aligned {
            bytes,
            start,
            length,
        }
    }

    /// The first `length` bytes (all of them where there are fewer).
    pub fn get(&self, length: usize) -> &[u8] {
        &self.bytes[self.start..self.start + length.min(self.length)]
    }

    /// The same, to be written to.
    pub fn get_mut(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length.min(self.length)]
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole pages without a branch inside: the compiler makes wide loads of it.
    bytes
        .chunks(4096)
        .all(|page| page.iter().fold(0, |all, b| all | b) == 0)
}

/// Splits `bytes` at multiples of `unit` into the longest runs that are all zero or have
/// something in each unit; calls `each` with offset, bytes and whether they are zero.
pub fn zero_runs<E>(
    bytes: &[u8],
    unit: usize,
    mut each: impl FnMut(usize, &[u8], bool) -> Result<(), E>,
) -> Result<(), E> {
    let mut start = 0;
    while start < bytes.len() {
        let mut units = bytes[start..].chunks(unit);
        let mut length = units.next().map_or(0, <[u8]>::len);
        let zero = is_zero(&bytes[start..start + length]);
        for next in units {
            if is_zero(next) != zero {
                break;
            }
            length += next.len();
        }
        each(start, &bytes[start..start + length], zero)?;
        start += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned() {
        for length in [1, 4096, 5000] {
            let mut buffer = Aligned::new(length);
            assert_eq!(buffer.get(usize::MAX).len(), length);
            assert_eq!(buffer.get_mut(1).as_ptr() as usize % ALIGN, 0);
        }
    }

    #[test]
    fn runs() {
        let mut bytes = vec![0u8; 10 * 512 + 100];
        bytes[512 * 3 + 7] = 1;
        bytes[512 * 4] = 1;
        let mut found = Vec::new();
        zero_runs::<()>(&bytes, 512, |offset, run, zero| {
            found.push((offset, run.len(), zero));
            Ok(())
        })
        .unwrap();
        let expected = [(0, 1536, true), (1536, 1024, false), (2560, 2660, true)];
        assert_eq!(found, expected);
    }
}
