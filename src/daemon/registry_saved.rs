//! Streams that were created by name, as one process hands them to another.

use std::sync::Arc;
use std::time::Instant;

use super::{Gone, Made, Registry};
use crate::media::StreamId;
use crate::media::name::longest;
use crate::media::saved::Moment;
use crate::upgrade::Made as MadeState;

impl Registry {
    /// Whether there is something to do.
    pub fn has_acts(&self) -> bool {
        !self.acts.is_empty()
    }

    /// What is known of a stream, if it was created by name; `via` lists the relays that the request for it has passed through. Times
    /// are relative to `reference`.
    pub fn save(&self, reference: Instant, name: &str, via: Option<&str>) -> Option<MadeState> {
        let made = self.streams.get(name)?;
        Some(MadeState {
            pattern: made.under.clone(),
            via: via.map(str::to_owned),
            lookup: made.lookup,
            was_live: made.was_live,
            due: made.due.map(|(at, why)| (Moment::of(at, reference), why.name().to_owned())),
        })
    }

    /// A stream that another process had created by name is here under this id. The pattern is the one that is configured for the name
    /// now.
    pub fn restore(&mut self, reference: Instant, name: &str, id: StreamId, saved: &MadeState) {
        let Some(pattern) = longest(&self.patterns, |one| &one.pattern, name) else { return };
        let (under, linger, published) = (pattern.pattern.to_string(), pattern.linger, pattern.is_published());
        let name: Arc<str> = name.into();
        let counted = self.under.entry(under.clone()).or_default();
        counted.streams += 1;
        if let Some(from) = saved.lookup {
            counted.lookups += 1;
            *self.lookups.entry(from).or_default() += 1;
        }
        let (lookup, was_live) = (saved.lookup, saved.was_live);
        let made = Made { id: Some(id), under, linger, published, lookup, was_live, due: None };
        self.streams.insert(Arc::clone(&name), made);
        self.names.insert(id, Arc::clone(&name));
        let due = saved.due.as_ref().map(|(at, why)| (at.at(reference), Gone::named(why)));
        self.set_due(&name, due);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{PatternConfig, SourceKind};
    use crate::daemon::registry::{Act, Wanted};
    use crate::media::SourceState;
    use crate::media::name::Pattern;
    use crate::source::news::SourceNews;

    fn registry() -> Registry {
        let pattern = Pattern::parse("live/*").unwrap().unwrap();
        let mut registry = Registry::default();
        registry.set_patterns(vec![PatternConfig::new(pattern, SourceKind::Publisher { takeover: false })]);
        registry
    }

    #[test]
    fn what_was_made_in_one_process_goes_when_it_would_have_gone_there() {
        let now = Instant::now();
        let (old, new) = (StreamId::first(3), StreamId::first(0));
        let mut before = registry();
        let wanted = Wanted {
            name: "live/a".into(),
            peer: std::net::Ipv4Addr::LOCALHOST.into(),
            publish: true,
            via: "".into(),
            shard: 1,
        };
        before.wanted(now, wanted.clone(), 0);
        assert!(matches!(before.next_act(), Some(Act::Make { .. })));
        before.made("live/a", old);
        before.news(now, old, &SourceNews::State(SourceState::Live));
        before.news(now, old, &SourceNews::Publisher(false));
        let due = before.next_due().unwrap();
        assert_eq!(before.save(now, "live/b", None), None);
        let saved = before.save(now, "live/a", Some("x")).unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let read: MadeState = serde_json::from_str(&text).unwrap();
        assert_eq!((&read, read.via.as_deref(), read.was_live), (&saved, Some("x"), true));
        let mut after = registry();
        after.restore(now, "live/a", new, &read);
        assert_eq!((after.count(), after.next_due()), (1, Some(due)));
        after.wanted(now, wanted, 0);
        assert!(!after.has_acts(), "it is there");
        after.tick(due + Duration::from_millis(1));
        assert_eq!(after.next_act(), Some(Act::Remove { id: new, name: "live/a".into(), why: Gone::Unpublished }));
        assert_eq!((after.count(), after.next_due()), (0, None));
    }
}
