//! Sizes and ranges as users write them.

use crate::abi;
use crate::error::Error;
use crate::error::Result;

/// Parses a size: a number of bytes with an optional suffix K, M, G or T (powers of 1024; "KiB"
/// and "k" are taken too). Errors are [`crate::error::Kind::Usage`].
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Error::usage(format!("'{text}' is not a size"))
            .code("size")
            .hint("a number with K, M, G or T (powers of 1024): 64K, 10G")
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let suffix = suffix.strip_suffix("iB").unwrap_or(suffix);
    let shift = match suffix {
        "" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Parses `START:LEN`, both sizes; LEN must not be 0 and the end must fit 64 bits.
pub fn parse_range(text: &str) -> Result<abi::Range> {
    let bad = |why: &str| {
        Error::usage(format!("'{text}' is not a range: {why}"))
            .code("range")
            .hint("START:LEN, such as 0:64K or 1G:4096")
    };
    let (offset, length) = text.split_once(':').ok_or_else(|| bad("no ':' in it"))?;
    let range = abi::Range {
        offset: parse_size(offset)?,
        length: parse_size(length)?,
    };
    if range.length == 0 {
        return Err(bad("its length is 0"));
    }
    if range.offset.checked_add(range.length).is_none() {
        return Err(bad("its end is beyond 64 bits"));
    }
    Ok(range)
}

/// The same of several, at most [`abi::MAX_RANGES`].
pub fn parse_ranges(texts: &[String]) -> Result<Vec<abi::Range>> {
    if texts.len() > abi::MAX_RANGES as usize {
        return Err(Error::usage(format!(
            "at most {} ranges at a time",
            abi::MAX_RANGES
        )));
    }
    texts.iter().map(|text| parse_range(text)).collect()
}

/// A size for people: "1.5 GiB".
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if (value - value.round()).abs() < 0.05 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("0").unwrap(), 0);
        assert_eq!(parse_size("512").unwrap(), 512);
        assert_eq!(parse_size("64K").unwrap(), 65536);
        assert_eq!(parse_size("64k").unwrap(), 65536);
        assert_eq!(parse_size("4KiB").unwrap(), 4096);
        assert_eq!(parse_size("3M").unwrap(), 3 << 20);
        assert_eq!(parse_size("10G").unwrap(), 10 << 30);
        assert_eq!(parse_size("2T").unwrap(), 2 << 40);
        for bad in [
            "",
            "K",
            "-1",
            "1.5G",
            "1X",
            "1 G",
            "99999999999999999999",
            "16777216T",
        ] {
            let error = parse_size(bad).unwrap_err();
            assert_eq!(error.kind.exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn ranges() {
        let range = parse_range("1M:4K").unwrap();
        assert_eq!((range.offset, range.length), (1 << 20, 4096));
        for bad in ["", "1", "1:", ":1", "1:0", "18446744073709551615:1"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(1 << 30), "1 GiB");
        assert_eq!(human(u64::MAX), "16384 PiB");
    }
}
