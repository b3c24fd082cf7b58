//! Stateless nonces: the time, and a keyed hash of the time and the client's address.
//!
//! So a nonce is valid in every shard, for a limited time, and for one address. It cannot count its uses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ring::hmac;
use subtle::ConstantTimeEq;

use crate::wire::auth::hex;

/// Hexadecimal digits of the time, in microseconds.
const TIME_DIGITS: usize = 16;

/// Bytes of the keyed hash that are included.
const TAG_BYTES: usize = 16;

pub(super) struct Nonces {
    key: hmac::Key,
    epoch: Instant,
}

/// Validity of a returned nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    Fresh,
    /// It was issued to this address, but has expired.
    Expired,
    /// It was not issued to this address by this relay since its startup.
    Foreign,
}

impl Nonces {
    pub(super) fn new(secret: &[u8; 32], epoch: Instant) -> Self {
        Nonces { key: hmac::Key::new(hmac::HMAC_SHA256, secret), epoch }
    }

    /// A nonce for a client at this address.
    pub(super) fn draw(&self, now: Instant, peer: IpAddr) -> String {
        let micros = now.saturating_duration_since(self.epoch).as_micros() as u64;
        format!("{micros:016x}{}", self.tag(micros, peer))
    }

    pub(super) fn check(&self, now: Instant, peer: IpAddr, nonce: &str, lifetime: Duration) -> Validity {
        let Some((time, tag)) = nonce.split_at_checked(TIME_DIGITS) else { return Validity::Foreign };
        let Ok(micros) = u64::from_str_radix(time, 16) else { return Validity::Foreign };
        let same: bool = self.tag(micros, peer).as_bytes().ct_eq(tag.as_bytes()).into();
        if !same {
            return Validity::Foreign;
        }
        let age = now.saturating_duration_since(self.epoch).saturating_sub(Duration::from_micros(micros));
        if age <= lifetime { Validity::Fresh } else { Validity::Expired }
    }

    fn tag(&self, micros: u64, peer: IpAddr) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&micros.to_be_bytes());
        match peer.to_canonical() {
            IpAddr::V4(address) => context.update(&address.octets()),
            IpAddr::V6(address) => context.update(&address.octets()),
        }
        hex(&context.sign().as_ref()[..TAG_BYTES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_for_a_while_and_one_address() {
        let epoch = Instant::now();
        let nonces = Nonces::new(&[7; 32], epoch);
        let (here, there): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let lifetime = Duration::from_secs(10);
        let drawn = epoch + Duration::from_secs(5);
        let nonce = nonces.draw(drawn, here);
        let check = |after, peer, nonce: &str| nonces.check(drawn + Duration::from_secs(after), peer, nonce, lifetime);
        assert_eq!(check(0, here, &nonce), Validity::Fresh);
        assert_eq!(check(10, here, &nonce), Validity::Fresh);
        assert_eq!(check(10, "::ffff:192.0.2.1".parse().unwrap(), &nonce), Validity::Fresh);
        assert_eq!(check(11, here, &nonce), Validity::Expired);
        assert_eq!(check(0, there, &nonce), Validity::Foreign);
        assert_eq!(check(11, there, &nonce), Validity::Foreign);
        // Neither the time nor the hash can be modified, and another secret does not accept it.
        assert_eq!(check(0, here, &nonce.replacen('0', "1", 1)), Validity::Foreign);
        assert_eq!(check(0, here, &nonce[..nonce.len() - 1]), Validity::Foreign);
        assert_eq!(check(0, here, &format!("{nonce}0")), Validity::Foreign);
        assert_eq!(Nonces::new(&[8; 32], epoch).check(drawn, here, &nonce, lifetime), Validity::Foreign);
        for rubbish in ["", "x", "ä", "0123456789abcdé", "+123456789abcdef0", &"f".repeat(48)] {
            assert_eq!(check(0, here, rubbish), Validity::Foreign, "{rubbish}");
        }
    }
}
