//! Settings for a relay that is one of several: load balancers, draining, its part of the streams, external authentication.

use std::borrow::Cow;
use std::time::Duration;

use super::auth_url::{AuthUrl, auth_url};
use super::bad_value::BadValue;
use super::read::{Faults, Field};
use super::{StreamConfig, bounded, user};
use crate::access::AddressRange;
use crate::limits::{DRAIN_DELAY_MS, DRAIN_MAX_MS, PARTS_MAX};

/// The keys at the document's top level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Load balancers, whose connections start with a PROXY protocol header.
    pub proxy_protocol_from: Vec<AddressRange>,
    /// How long a stop takes to disconnect clients; zero: at once.
    pub drain: Duration,
    /// How long before that the relay fails its health check but still accepts clients.
    pub drain_delay: Duration,
    /// The part of the streams that this relay serves; `None` for all.
    pub only: Option<Part>,
    /// External authentication.
    pub auth: Option<AuthUrl>,
    /// Whether the configuration is reloaded when its files change.
    pub reload_on_change: bool,
}

impl Default for Site {
    fn default() -> Site {
        Site {
            proxy_protocol_from: Vec::new(),
            drain: Duration::ZERO,
            drain_delay: Duration::from_millis(DRAIN_DELAY_MS),
            only: None,
            auth: None,
            reload_on_change: false,
        }
    }
}

/// One of several parts into which the streams are split by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub index: u64,
    /// The number of parts; greater than `index`.
    pub of: u64,
}

impl Part {
    /// Parses `0/3`.
    ///
    /// # Errors
    /// A sentence that says how to fix it.
    pub fn parse(text: &str) -> Result<Part, BadValue> {
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        let part = text.split_once('/').and_then(|(index, of)| Some(Part { index: number(index)?, of: number(of)? }));
        match part {
            Some(part) if part.index < part.of && part.of <= PARTS_MAX => Ok(part),
            Some(part) if part.of == 0 || part.of > PARTS_MAX => {
                Err(format!("{text:?} has {} parts; use 1 to {PARTS_MAX}", part.of).into())
            }
            Some(part) => Err(format!("{text:?} is not one of {} parts, which are numbered from 0", part.of).into()),
            None => Err(format!("{text:?} is not a part; write \"0/3\" for the first of three").into()),
        }
    }

    /// Whether the stream with this name is in it. Each name is in exactly one part. When a part is added, names move only to the new
    /// part.
    pub fn has(self, name: &str) -> bool {
        // Rendezvous hashing: the part with the highest score has it.
        let score =
            |part: u64| (mixed(name.bytes().fold(mixed(part), |state, byte| mixed(state ^ u64::from(byte)))), part);
        (0..self.of).max_by_key(|part| score(*part)) == Some(self.index)
    }
}

/// Replaces `{part:N}` by the number of the part, of N, that has the stream with this name, to find which of several relays has it.
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn with_part<'t>(text: &'t str, name: &str) -> Result<Cow<'t, str>, BadValue> {
    const OPENS: &str = "{part:";
    let Some((before, rest)) = text.split_once(OPENS) else { return Ok(text.into()) };
    let of = rest.split_once('}').and_then(|(of, rest)| Some((of.parse::<u64>().ok()?, rest)));
    let Some((of @ 1..=PARTS_MAX, rest)) = of else {
        return Err(format!(
            "{OPENS:?} needs the number of parts, from 1 to {PARTS_MAX}, and a brace; write {{part:3}}"
        )
        .into());
    };
    let index = (0..of).find(|&index| Part { index, of }.has(name)).unwrap_or_default();
    let rest = with_part(rest, name)?;
    Ok(format!("{before}{index}{rest}").into())
}

/// A step of splitmix64. It must never change, because other releases and machines must compute the same parts.
const fn mixed(state: u64) -> u64 {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// Reads the keys.
pub(super) fn site<'d, 'i: 'd>(get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>, faults: &mut Faults<'_>) -> Site {
    let mut site = Site::default();
    if let Some(field) = get("proxy_protocol_from") {
        site.proxy_protocol_from = user::ranges(&field, faults);
    }
    if let Some(drain) = get("drain").and_then(|field| bounded(&field, faults, 0, DRAIN_MAX_MS)) {
        site.drain = drain;
    }
    if let Some(field) = get("drain_delay") {
        site.drain_delay = bounded(&field, faults, 0, DRAIN_MAX_MS).unwrap_or(site.drain_delay);
        if get("drain").is_none() {
            field.fault(faults, "has no effect without drain; add drain = \"30s\", or remove the key");
        }
    }
    site.auth = auth_url(get, faults);
    site.only = get("only").and_then(|field| field.parsed(faults, "a part such as \"0/3\"", Part::parse));
    if let Some(reload) = get("reload_on_change").and_then(|field| field.boolean(faults)) {
        site.reload_on_change = reload;
    }
    site
}

/// Keeps only the streams of this relay's part; the others have already been validated.
pub(super) fn keep_part(
    only: Option<Part>,
    field: Option<Field<'_, '_>>,
    streams: &mut Vec<StreamConfig>,
    faults: &mut Faults<'_>,
) {
    let Some(part) = only else { return };
    let all = streams.len();
    streams.retain(|stream| part.has(&stream.name));
    if let (true, Some(field)) = (streams.is_empty() && all > 0, field) {
        faults.warn(&field, format_args!("selects none of the {all} streams for this relay"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{config, refused};
    use super::*;

    #[test]
    fn every_name_is_in_one_part_and_the_parts_are_alike() {
        let names: Vec<String> = (0..2_000).map(|number| format!("cam{number}")).collect();
        for of in [1, 2, 3, 7] {
            let mut sizes = vec![0_usize; of as usize];
            for name in &names {
                let having: Vec<u64> = (0..of).filter(|&index| Part { index, of }.has(name)).collect();
                let [index] = having[..] else { panic!("{name}: {having:?}") };
                sizes[index as usize] += 1;
            }
            let fair = names.len() / of as usize;
            assert!(sizes.iter().all(|size| size.abs_diff(fair) < fair / 4), "{sizes:?}");
        }
        // One more part: names move only to it.
        for name in &names {
            let before = (0..3).find(|&index| Part { index, of: 3 }.has(name)).unwrap();
            assert!(Part { index: before, of: 4 }.has(name) || Part { index: 3, of: 4 }.has(name), "{name}");
        }
        // Other releases must compute the same result.
        let part = |name: &str| (0..5).find(|&index| Part { index, of: 5 }.has(name)).unwrap();
        assert_eq!(["front", "yard", "cam1"].map(part), [1, 2, 3]);
    }

    #[test]
    fn parts_are_read_or_refused_with_a_cure() {
        assert_eq!(Part::parse("2/3"), Ok(Part { index: 2, of: 3 }));
        for (text, said) in [
            ("3/3", "from 0"),
            ("0/0", "1 to"),
            ("x", "0/3"),
            ("1", "0/3"),
            ("-1/3", "0/3"),
            ("+1/3", "0/3"),
            ("0/9999999", "1 to"),
            ("/", "0/3"),
        ] {
            assert!(Part::parse(text).unwrap_err().to_string().contains(said), "{text}");
        }
        refused("only = \"3/3\"", 1, &["only", "from 0"]);
    }

    #[test]
    fn an_edge_finds_the_origin_of_a_name() {
        let source = "rtsp://edge:p@origins-{part:5}.origins/yard";
        assert_eq!(with_part(source, "yard").unwrap(), "rtsp://edge:p@origins-2.origins/yard");
        assert_eq!(with_part("{part:1}{part:5}x", "cam1").unwrap(), "03x");
        assert_eq!(with_part("rtsp://h/{name}", "yard").unwrap(), "rtsp://h/{name}");
        for bad in ["{part:", "{part:0}", "{part:x}", "{part:99999}", "a{part:5}b{part:}"] {
            assert!(with_part(bad, "yard").unwrap_err().to_string().contains("{part:3}"), "{bad}");
        }
        let text = format!("[[stream]]\nname = \"yard\"\nsource = {source:?}\n");
        let config = Config::from_toml(&text).unwrap();
        let super::super::SourceKind::Cameras(cameras) = &config.streams[0].source else { panic!("{config:?}") };
        assert!(cameras[0].to_string().contains("origins-2.origins"), "{cameras:?}");
    }

    #[test]
    fn another_relays_streams_are_left_out_and_users_may_name_them_all_the_same() {
        let of = |index: u64| {
            let streams: String =
                (0..20).map(|number| format!("[[stream]]\nname = \"c{number}\"\nsource = \"test\"\n")).collect();
            let user = "[[user]]\nname = \"a\"\npassword = \"b\"\nstreams = [\"c0\", \"c1\", \"c2\"]\n";
            Config::from_toml(&format!("only = \"{index}/2\"\n{user}{streams}")).unwrap()
        };
        let (first, second) = (of(0), of(1));
        assert_eq!(first.streams.len() + second.streams.len(), 20);
        assert!(first.streams.iter().all(|stream| second.streams.iter().all(|other| other.name != stream.name)));
        let none =
            (0..50).map(|index| config(&format!("only = \"{index}/50\""))).filter(|config| config.streams.is_empty());
        let warned: Vec<Config> = none.collect();
        assert_eq!(warned.len(), 49);
        assert!(
            warned.iter().all(|config| config.warnings.iter().any(|warning| warning.message.contains("none of the 1")))
        );
    }

    #[test]
    fn leaving_takes_as_long_as_it_says() {
        let site = config("drain = \"30s\"").site;
        assert_eq!((site.drain, site.drain_delay), (Duration::from_secs(30), Duration::from_secs(5)));
        let site = config("drain = \"1m\"\ndrain_delay = \"0s\"").site;
        assert_eq!((site.drain, site.drain_delay), (Duration::from_secs(60), Duration::ZERO));
        refused("drain_delay = \"1s\"", 1, &["without drain"]);
        refused("drain = \"2h\"", 1, &["drain", "3600s"]);
        refused("proxy_protocol_from = [\"10.0.0.1/8\"]", 1, &["10.0.0.0/8"]);
        assert!(config("reload_on_change = true").site.reload_on_change);
    }
}
