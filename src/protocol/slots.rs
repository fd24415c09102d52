//! Places with small numbers that are reused, in pieces: growing copies nothing, and what empties out is given back.

/// Places of one piece.
const PIECE: usize = 64;

struct Piece<T> {
    places: Box<[Option<T>]>,
    used: u8,
}

impl<T> Piece<T> {
    fn new() -> Self {
        Self { places: (0..PIECE).map(|_| None).collect(), used: 0 }
    }
}

/// A sparse array: memory for the pieces of it that hold something, and for one more.
pub(crate) struct Slots<T> {
    pieces: Vec<Option<Piece<T>>>,
    /// The last piece that emptied out: values that come and go at its edge make and free none.
    spare: Option<Piece<T>>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), spare: None, len: 0 }
    }
}

impl<T> Slots<T> {
    #[inline]
    pub(crate) fn get(&self, at: u32) -> Option<&T> {
        let at = at as usize;
        self.pieces.get(at / PIECE)?.as_ref()?.places.get(at % PIECE)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        let at = at as usize;
        self.pieces.get_mut(at / PIECE)?.as_mut()?.places.get_mut(at % PIECE)?.as_mut()
    }

    /// Fills a place; gives what was there.
    pub(crate) fn insert(&mut self, at: u32, value: T) -> Option<T> {
        let at = at as usize;
        if self.pieces.len() <= at / PIECE {
            self.pieces.resize_with(at / PIECE + 1, || None);
        }
        let spare = &mut self.spare;
        let piece = self.pieces[at / PIECE].get_or_insert_with(|| spare.take().unwrap_or_else(Piece::new));
        let old = piece.places[at % PIECE].replace(value);
        if old.is_none() {
            piece.used += 1;
            self.len += 1;
        }
        old
    }

    /// Empties a place.
    pub(crate) fn remove(&mut self, at: u32) -> Option<T> {
        let at = at as usize;
        let place = self.pieces.get_mut(at / PIECE)?;
        let piece = place.as_mut()?;
        let value = piece.places.get_mut(at % PIECE)?.take()?;
        piece.used -= 1;
        self.len -= 1;
        if piece.used == 0 {
            self.spare = place.take();
            while self.pieces.last().is_some_and(Option::is_none) {
                self.pieces.pop();
            }
            if self.pieces.capacity() > 64 && self.pieces.len() < self.pieces.capacity() / 4 {
                self.pieces.shrink_to(self.pieces.len() * 2);
            }
        }
        Some(value)
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// One more than the highest place that may hold something.
    pub(crate) const fn end(&self) -> usize {
        self.pieces.len() * PIECE
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten().flat_map(|piece| piece.places.iter().flatten())
    }

    #[cfg(test)]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flatten().flat_map(|piece| piece.places.iter_mut().flatten())
    }
}

/// Which numbers are taken; gives out the smallest that is free, so that those in use stay close together.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// One bit per number: taken.
    words: Vec<u64>,
    /// No word before this one has a free number.
    first: usize,
}

impl Numbers {
    pub(super) fn take(&mut self) -> u32 {
        while self.words.get(self.first) == Some(&u64::MAX) {
            self.first += 1;
        }
        if self.first == self.words.len() {
            self.words.push(0);
        }
        let word = &mut self.words[self.first];
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        self.first as u32 * u64::BITS + bit
    }

    /// Takes this very number; `false` if it is taken already.
    pub(super) fn take_exactly(&mut self, number: u32) -> bool {
        let at = (number / u64::BITS) as usize;
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (number % u64::BITS);
        let is_free = self.words[at] & bit == 0;
        self.words[at] |= bit;
        is_free
    }

    pub(super) fn is_taken(&self, number: u32) -> bool {
        let word = self.words.get((number / u64::BITS) as usize);
        word.is_some_and(|word| word >> (number % u64::BITS) & 1 == 1)
    }

    pub(super) fn give_back(&mut self, number: u32) {
        let at = (number / u64::BITS) as usize;
        if let Some(word) = self.words.get_mut(at) {
            *word &= !(1 << (number % u64::BITS));
            self.first = self.first.min(at);
        }
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        self.first = self.first.min(self.words.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_and_empty_pieces_are_given_back() {
        let mut slots = Slots::default();
        for at in 0..1000_u32 {
            assert_eq!(slots.insert(at, at * 3), None);
        }
        assert_eq!(slots.insert(7, 22), Some(21));
        assert_eq!((slots.len(), slots.end()), (1000, 1024));
        assert_eq!(
            (slots.get(7), slots.get(999), slots.get(1000), slots.get(5000)),
            (Some(&22), Some(&2997), None, None)
        );
        *slots.get_mut(8).unwrap() += 1;
        assert_eq!(slots.iter().sum::<u32>(), 999 * 1000 / 2 * 3 + 2);
        for at in 100..1000 {
            assert_eq!(slots.remove(at), Some(at * 3));
            assert_eq!(slots.remove(at), None);
        }
        assert_eq!((slots.len(), slots.end(), slots.pieces.len()), (100, 128, 2));
        // A hole in the middle costs no piece either.
        for at in 0..64 {
            slots.remove(at);
        }
        assert!(slots.pieces[0].is_none() && slots.spare.is_some());
        assert_eq!(
            slots.iter_mut().map(|value| *value).collect::<Vec<_>>(),
            (64..100).map(|at| at * 3).collect::<Vec<_>>()
        );
        slots.insert(3, 9);
        assert!(slots.spare.is_none(), "the spare piece is used first");
        assert_eq!(slots.get(3), Some(&9));
    }

    #[test]
    fn the_smallest_free_number_is_given_out() {
        let mut numbers = Numbers::default();
        assert_eq!((0..200).map(|_| numbers.take()).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        for number in [150, 3, 64] {
            numbers.give_back(number);
            assert!(!numbers.is_taken(number));
        }
        assert_eq!([numbers.take(), numbers.take(), numbers.take(), numbers.take()], [3, 64, 150, 200]);
        assert!(numbers.is_taken(200) && !numbers.is_taken(201) && !numbers.is_taken(10_000));
        for number in 0..201 {
            numbers.give_back(number);
        }
        assert_eq!(numbers.words.len(), 0);
        assert_eq!(numbers.take(), 0);
    }
}
