//! Many small records of whole words, as one byte string: what a state holds of each allocation that only counts.
//!
//! As CBOR: an array of the words of one record and a byte string, in which each word has eight bytes, big-endian. A
//! reader that knows fewer words skips the others, and words that are missing are 0.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// A record that is a row of words.
pub(super) trait Row {
    /// So many words: an array.
    type Words: AsRef<[u64]> + AsMut<[u64]> + Default;

    /// Its words, whose places never change their meaning.
    fn to_words(&self) -> Self::Words;

    /// The record that [`Row::to_words`] described.
    fn from_words(words: &Self::Words) -> Self;
}

/// The records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows<T>(pub Vec<T>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Bytes that are written at once.
const PIECE: usize = 4096;

impl<C, T: Row> Encode<C> for Rows<T> {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        let width = T::Words::default().as_ref().len();
        e.array(2)?.u32(width as u32)?.bytes_len((self.0.len() * width * WORD) as u64)?;
        let mut piece = Vec::with_capacity(PIECE.max(width * WORD));
        for row in &self.0 {
            if piece.len() + width * WORD > piece.capacity() {
                e.writer_mut().write_all(&piece).map_err(encode::Error::write)?;
                piece.clear();
            }
            row.to_words().as_ref().iter().for_each(|word| piece.extend_from_slice(&word.to_be_bytes()));
        }
        e.writer_mut().write_all(&piece).map_err(encode::Error::write)
    }
}

impl<'b, C, T: Row> Decode<'b, C> for Rows<T> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        if d.array()? != Some(2) {
            return Err(decode::Error::message("rows are two items"));
        }
        let width = d.u32()? as usize;
        let bytes = d.bytes()?;
        let row_bytes = width.saturating_mul(WORD);
        if width == 0 || !bytes.len().is_multiple_of(row_bytes) {
            return Err(decode::Error::message("rows of another length"));
        }
        let row = |bytes: &[u8]| {
            let mut words = T::Words::default();
            for (word, bytes) in words.as_mut().iter_mut().zip(bytes.as_chunks::<WORD>().0) {
                *word = u64::from_be_bytes(*bytes);
            }
            T::from_words(&words)
        };
        Ok(Self(bytes.chunks_exact(row_bytes).map(row).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Row for [u64; 2] {
        type Words = Self;
        fn to_words(&self) -> Self {
            *self
        }
        fn from_words(words: &Self) -> Self {
            *words
        }
    }

    impl Row for [u64; 3] {
        type Words = Self;
        fn to_words(&self) -> Self {
            *self
        }
        fn from_words(words: &Self) -> Self {
            *words
        }
    }

    #[test]
    fn rows_come_back_and_other_releases_may_have_more_words_or_fewer() {
        let rows = Rows(vec![[1, u64::MAX], [3, 4], [5, 0x0102_0304_0506_0708]]);
        let bytes = minicbor::to_vec(&rows).unwrap();
        assert_eq!(bytes.len(), 4 + 3 * 16);
        assert_eq!(minicbor::decode::<Rows<[u64; 2]>>(&bytes).unwrap(), rows);
        let wider: Rows<[u64; 3]> = minicbor::decode(&bytes).unwrap();
        assert_eq!(wider.0, [[1, u64::MAX, 0], [3, 4, 0], [5, 0x0102_0304_0506_0708, 0]]);
        let bytes = minicbor::to_vec(&wider).unwrap();
        assert_eq!(minicbor::decode::<Rows<[u64; 2]>>(&bytes).unwrap(), rows);
        let none = minicbor::to_vec(Rows::<[u64; 2]>::default()).unwrap();
        assert_eq!(minicbor::decode::<Rows<[u64; 2]>>(&none).unwrap(), Rows::default());
    }

    #[test]
    fn rows_that_can_not_be_are_refused() {
        for bytes in [
            &[0x82, 0x02, 0x41, 0x00][..],
            &[0x82, 0x00, 0x40],
            &[0x82, 0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0x48, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x81, 0x02],
            &[0x83, 0x02, 0x40, 0x00],
        ] {
            assert!(minicbor::decode::<Rows<[u64; 2]>>(bytes).is_err(), "{bytes:02x?}");
        }
    }
}
