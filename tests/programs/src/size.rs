//! Sizes on the command line, with the suffixes K, M, G and T (powers of
//! 1024), as the `bdsnap` tool takes them.

/// Parses `64K`, `4096`, `1M` and so on, into bytes.
pub fn parse(s: &str) -> Result<u64, String> {
    let bad = || format!("'{s}' is no size: a number with an optional K, M, G or T");
    let (digits, shift) = match s.chars().last().map(|c| c.to_ascii_uppercase()) {
        Some('K') => (&s[..s.len() - 1], 10),
        Some('M') => (&s[..s.len() - 1], 20),
        Some('G') => (&s[..s.len() - 1], 30),
        Some('T') => (&s[..s.len() - 1], 40),
        _ => (s, 0),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(bad)
}

/// Parses `START:LEN`, both sizes.
pub fn parse_range(s: &str) -> Result<(u64, u64), String> {
    let (a, b) = s
        .split_once(':')
        .ok_or_else(|| format!("'{s}' is no range: START:LEN"))?;
    Ok((parse(a)?, parse(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("4m"), Ok(4 << 20));
        assert_eq!(parse("1T"), Ok(1 << 40));
        for bad in ["", "K", "-1", "1.5G", "99999999T"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_range("4K:1M"), Ok((4096, 1 << 20)));
        assert!(parse_range("4K").is_err());
    }
}
