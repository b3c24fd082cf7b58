//! The links by slot.
//!
//! Where an entry of a slab lies is known before it is read; the `slab` crate reads it before it tells. Here a link that is not in the
//! cache can be asked for ahead of its turn without a wait.

use std::ops::{Index, IndexMut};

use super::link::{LINK_HOT_BYTES, Link};
use crate::egress::Token;

/// Links in slots that are numbered from 0 on and given out again, each time with the next generation.
#[derive(Default)]
pub(super) struct Links {
    places: Vec<Option<Link>>,
    /// Of each place, how many links it has had before the one that is, or will be, there.
    generations: Vec<u32>,
    /// Places without a link, the one that is given out next last.
    free: Vec<u32>,
}

// A link begins where its place does.
const _: () = assert!(size_of::<Option<Link>>() == size_of::<Link>());

impl Links {
    /// Puts in what `link` makes of its generation.
    pub fn insert(&mut self, link: impl FnOnce(u32) -> Link) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.generations.push(0);
            self.places.len() as u32 - 1
        });
        let generation = self.generations[slot as usize];
        self.places[slot as usize] = Some(link(generation));
        Token { slot, generation }
    }

    /// Takes a link out.
    ///
    /// # Panics
    /// If there is none.
    pub fn remove(&mut self, slot: usize) -> Link {
        let link = self.places[slot].take().expect("a link is removed once");
        let generation = &mut self.generations[slot];
        *generation = generation.wrapping_add(1);
        self.free.push(slot as u32);
        link
    }

    pub fn get(&self, slot: usize) -> Option<&Link> {
        self.places.get(slot)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Link> {
        self.places.get_mut(slot)?.as_mut()
    }

    pub fn contains(&self, slot: usize) -> bool {
        self.get(slot).is_some()
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The links with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Link)> {
        self.places.iter().enumerate().filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Link)> {
        self.places.iter_mut().enumerate().filter_map(|(slot, place)| Some((slot, place.as_mut()?)))
    }

    /// The link's turn comes soon.
    pub fn prefetch(&self, slot: u32) {
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
