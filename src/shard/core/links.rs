//! The links by slot and by session, and which of them may have something to send.
//!
//! The address of a slab entry is known before it is read, but the `slab` crate reads the entry before it returns the address. Here a
//! link can be prefetched ahead of its turn without waiting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::{Index, IndexMut};

use super::link::{Kind, LINK_HOT_BYTES, Link};
use crate::burst::ShrinkIfSparse;
use crate::egress::Token;
use crate::session::SessionKey;

/// Links in slots that are numbered from 0 on and reused, the lowest first, each time with the next generation. So the last slots become
/// free after a burst of connections, and their memory is given back.
#[derive(Default)]
pub(super) struct Links {
    places: Vec<Option<Link>>,
    /// How many there are.
    count: usize,
    /// For each slot that there has been, how many links it has had before the current or next one.
    generations: Vec<u32>,
    /// Free slots. Those from `places.len()` on do not exist any more.
    free: BinaryHeap<Reverse<u32>>,
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
        let lowest = self.free.pop().filter(|Reverse(slot)| (*slot as usize) < self.places.len());
        let slot = match lowest {
            Some(Reverse(slot)) => slot,
            None => {
                self.free.clear();
                self.places.push(None);
                self.places.len() as u32 - 1
            }
        };
        if self.generations.len() <= slot as usize {
            self.generations.push(0);
        }
        let generation = self.generations[slot as usize];
        let link = Link::new(generation, kind);
        self.webs += usize::from(is_web(&link));
        self.places[slot as usize] = Some(link);
        self.count += 1;
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
        self.free.push(Reverse(slot as u32));
        self.webs -= usize::from(is_web(&link));
        self.count -= 1;
        self.shrink();
        link
    }

    /// Gives back the memory of the last slots, if these are free.
    fn shrink(&mut self) {
        while self.places.last().is_some_and(Option::is_none) {
            self.places.pop();
        }
        self.places.shrink_if_sparse();
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
        let slot = self.sessions.remove(&session)?;
        self.sessions.shrink_if_sparse();
        Some(slot)
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
        self.count
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::StreamId;

    #[test]
    fn the_memory_of_a_burst_of_links_is_given_back() {
        let mut links = Links::default();
        let insert = |links: &mut Links| {
            let (stream, peer) = (StreamId::first(0), ([127, 0, 0, 1], 5_000).into());
            links.insert(Kind::Receiver { stream, peer, tracks: Vec::new() })
        };
        let kept = [0; 4].map(|_| insert(&mut links));
        let burst: Vec<Token> = (0..1_000).map(|_| insert(&mut links)).collect();
        let most = links.places.capacity();
        for token in &burst {
            assert!(links.of_token(*token).is_some());
            links.remove(token.slot as usize);
        }
        assert_eq!(links.len(), 4);
        assert!(links.places.capacity() < most / 4, "room for {}", links.places.capacity());
        // Each slot has the next generation, whether it has been there all the time or not, and none is given twice.
        let mut again: Vec<Token> = (0..1_000).map(|_| insert(&mut links)).collect();
        assert!(again.iter().all(|token| token.generation == 1));
        again.extend(kept);
        again.sort_by_key(|token| token.slot);
        assert!(again.iter().map(|token| token.slot as usize).eq(0..1_004));
        assert!(burst.iter().all(|token| links.of_token(*token).is_none()));
    }
}
