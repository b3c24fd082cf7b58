//! The links by slot and by session, and which of them may have something to send.
//!
//! The address of a slab entry is known before it is read, but the `slab` crate reads the entry before it returns the address. Here a
//! link can be prefetched ahead of its turn without waiting.

use std::collections::{HashMap, VecDeque};
use std::ops::{Index, IndexMut};

use super::link::{Kind, LINK_HOT_BYTES, Link};
use crate::egress::Token;
use crate::session::SessionKey;

/// Links in slots that are numbered from 0 on and reused, each time with the next generation.
#[derive(Default)]
pub(super) struct Links {
    places: Vec<Option<Link>>,
    /// For each slot, how many links it has had before the current or next one.
    generations: Vec<u32>,
    /// Free slots; the last one is used next.
    free: Vec<u32>,
    /// Links that may have data to send, apart from the members of streams with new chunks.
    ready: VecDeque<u32>,
    /// The links of the sessions that play.
    sessions: HashMap<SessionKey, u32>,
    /// Links that are browsers'.
    webs: usize,
}

fn is_web(link: &Link) -> bool {
    matches!(link.kind, Kind::Tcp { web: Some(_), .. })
}

// A link starts where its slot does.
const _: () = assert!(size_of::<Option<Link>>() == size_of::<Link>());

impl Links {
    /// Puts a link in.
    pub(super) fn insert(&mut self, kind: Kind) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.generations.push(0);
            self.places.len() as u32 - 1
        });
        let generation = self.generations[slot as usize];
        let link = Link::new(generation, kind);
        self.webs += usize::from(is_web(&link));
        self.places[slot as usize] = Some(link);
        Token { slot, generation }
    }

    /// Removes a link.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn remove(&mut self, slot: usize) -> Link {
        let link = self.places[slot].take().expect("a link is removed once");
        let generation = &mut self.generations[slot];
        *generation = generation.wrapping_add(1);
        self.free.push(slot as u32);
        self.webs -= usize::from(is_web(&link));
        link
    }

    /// The link that an operation or connection belonged to, if it still exists.
    pub(super) fn of_token(&self, token: Token) -> Option<&Link> {
        self.get(token.slot as usize).filter(|link| link.generation == token.generation)
    }

    pub(super) fn of_token_mut(&mut self, token: Token) -> Option<&mut Link> {
        self.get_mut(token.slot as usize).filter(|link| link.generation == token.generation)
    }

    /// The link of a session that plays.
    pub(super) fn of_session(&self, session: SessionKey) -> Option<u32> {
        self.sessions.get(&session).copied()
    }

    /// The sessions that play, with their links, in no order.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (SessionKey, u32)> + '_ {
        self.sessions.iter().map(|(session, slot)| (*session, *slot))
    }

    /// A session plays through this link.
    pub(super) fn bind(&mut self, session: SessionKey, slot: u32) {
        self.sessions.insert(session, slot);
    }

    /// A session stopped playing. Returns its link.
    pub(super) fn unbind(&mut self, session: SessionKey) -> Option<u32> {
        self.sessions.remove(&session)
    }

    /// Whether there are browsers.
    pub(super) fn has_webs(&self) -> bool {
        self.webs > 0
    }

    /// Queues a link to be served in the next pass.
    pub(super) fn wake(&mut self, slot: u32) {
        if let Some(link) = self.get_mut(slot as usize)
            && !std::mem::replace(&mut link.queued, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// The next link that may have something to send.
    pub(super) fn next_ready(&mut self) -> Option<u32> {
        let slot = self.ready.pop_front()?;
        if let Some(link) = self.get_mut(slot as usize) {
            link.queued = false;
        }
        Some(slot)
    }

    /// How many links may have something to send.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Link> {
        self.places.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Link> {
        self.places.get_mut(slot)?.as_mut()
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.get(slot).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The links with their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Link)> {
        self.places.iter().enumerate().filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Link)> {
        self.places.iter_mut().enumerate().filter_map(|(slot, place)| Some((slot, place.as_mut()?)))
    }

    /// Prefetches a link whose turn comes soon.
    pub(super) fn prefetch(&self, slot: u32) {
        if let Some(place) = self.places.get(slot as usize) {
            crate::sys::prefetch(place, LINK_HOT_BYTES);
        }
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, slot: usize) -> &Link {
        self.get(slot).expect("there is such a link")
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, slot: usize) -> &mut Link {
        self.get_mut(slot).expect("there is such a link")
    }
}
