//! The validity period of a certificate (RFC 5280 section 4.1.2.5), the only thing that the relay parses itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xA0;

/// The first and last second of validity of a DER certificate; `None` if it cannot be parsed.
pub(super) fn validity(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (certificate, _) = value(der, SEQUENCE)?;
    let (mut fields, _) = value(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = skip(fields)?;
    }
    // The serial number, the signature algorithm, and the issuer.
    for _ in 0..3 {
        fields = skip(fields)?;
    }
    let (times, _) = value(fields, SEQUENCE)?;
    let (first, rest) = time(times)?;
    let (last, _) = time(rest)?;
    Some((first, last))
}

/// Tag, contents, and the rest.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (len, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let count = usize::from(short & 0x7F);
        if count == 0 || count > 4 {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(count)?;
        (bytes.iter().fold(0, |len, &byte| len << 8 | usize::from(byte)), rest)
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

fn value(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, contents, rest) = element(der)?;
    (tag == wanted).then_some((contents, rest))
}

fn skip(der: &[u8]) -> Option<&[u8]> {
    Some(element(der)?.2)
}

fn time(der: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (tag, text, rest) = element(der)?;
    let (year, text) = match tag {
        UTC_TIME => {
            let year = number(text.get(..2)?)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        GENERALIZED_TIME => (number(text.get(..4)?)?, text.get(4..)?),
        _ => return None,
    };
    let (digits, zone) = text.split_at_checked(10)?;
    if zone != b"Z" {
        return None;
    }
    let two = |at: usize| number(&digits[at..at + 2]);
    let (month, day) = (two(0)?, two(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + (two(4)? * 3_600 + two(6)? * 60 + two(8)?) as i64;
    let since = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    Some((at?, rest))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

/// Days from the epoch to a Gregorian date.
fn days(year: u64, month: u64, day: u64) -> i64 {
    // Years that start on 1 March, so that the leap day is the last.
    let year = (year + u64::from(month > 2)) as i64 - 1;
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year as i64 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(time: SystemTime) -> i64 {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        }
    }

    #[test]
    fn times_of_both_kinds() {
        for (tag, text, expected) in [
            (UTC_TIME, &b"700101000000Z"[..], 0),
            (UTC_TIME, b"000229120000Z", 951_825_600),
            (UTC_TIME, b"491231235959Z", 2_524_607_999),
            (UTC_TIME, b"500101000000Z", -631_152_000),
            (GENERALIZED_TIME, b"20240301000000Z", 1_709_251_200),
            (GENERALIZED_TIME, b"99991231235959Z", 253_402_300_799),
        ] {
            let mut der = vec![tag, text.len() as u8];
            der.extend_from_slice(text);
            assert_eq!(seconds(time(&der).unwrap().0), expected, "{}", String::from_utf8_lossy(text));
        }
        for text in [&b""[..], b"7001010000Z", b"701301000000Z", b"70010100000xZ", b"700101000000+0100"] {
            let mut der = vec![UTC_TIME, text.len() as u8];
            der.extend_from_slice(text);
            assert!(time(&der).is_none(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_certificates_times_are_read_and_no_cut_of_it_panics() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2060, 12, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let (first, last) = validity(&der).unwrap();
        assert_eq!((seconds(first), seconds(last)), (1_709_164_800, 2_871_676_800));
        for end in 0..der.len() {
            validity(&der[..end]);
        }
        for at in 0..der.len().min(300) {
            for bits in [0x80, 0x7F, 0xFF] {
                let mut bent = der.clone();
                bent[at] ^= bits;
                validity(&bent);
            }
        }
    }
}
