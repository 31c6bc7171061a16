//! Keys as words of 128 bits: each text is one word, and values of fixed width share words.
//!
//! The word of a text is its Arrow view: its length, and either all of its bytes (at most 12), or
//! its first four bytes and the place of all. Two short texts are equal if their words are equal.
//! Only long texts of the same length and beginning are compared byte by byte. Encoding copies the
//! views of a column and no text; the bytes of a long text are copied once, when its key is stored.
//! (Neumann and Freitag, "Umbra: A Disk-Based System with In-Memory Performance", CIDR 2020, for
//! the layout of texts.)

use std::{hash::BuildHasher, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryViewArray, StringViewArray},
    buffer::{Buffer, NullBuffer},
    compute::cast,
    datatypes::DataType,
};
use datafusion_common::{Result, hash_utils::RandomState};

use super::fixed::{self, PackedField};

/// Maximum number of words of a key. Arrow rows of wider keys take less memory.
const MAX_WORDS: usize = 16;
/// Maximum length of a short text, in bytes.
const MAX_SHORT: u32 = 12;
/// Word of a NULL text. The word of a short text has zeros beyond its length, so no text has this
/// one.
const NULL: u128 = (1 << 127) | 1;
/// Seed of the hashes of words and of texts, fixed as that of other keys. (Digits of π: no likely
/// value of a key is equal to it.)
const SEED: u64 = 0x243F_6A88_85A3_08D3;
/// Bytes of long texts after which a further buffer is begun.
const BUFFER_BYTES: usize = 1 << 20;

/// Returns whether the word of a text is that of a long text.
#[inline]
fn is_long(word: u128) -> bool {
    word as u32 > MAX_SHORT
}

/// Returns whether values of type `kind` are texts: strings or byte strings of any length.
pub(crate) fn is_text(kind: &DataType) -> bool {
    use DataType as T;
    matches!(
        kind,
        T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Binary | T::LargeBinary | T::BinaryView
    )
}

/// Place of a column in the words of a key.
#[derive(Debug, Clone, Copy)]
enum WordField {
    /// The word of a text.
    Text(usize),
    /// The word and the bits of a value, and the word and the bit of its null flag.
    Fixed(usize, PackedField, Option<(usize, u32)>),
}

/// Assignment of columns to the words of a key.
#[derive(Debug)]
pub(super) struct WordLayout {
    fields: Vec<WordField>,
    /// For each word, whether it is a text.
    texts: Arc<[bool]>,
}

impl WordLayout {
    /// Returns the layout for columns of these types; the flag says whether NULL is a value. `None`
    /// if a type is neither text nor of fixed width, or if a key has too many words.
    pub(super) fn new(types: &[(DataType, bool)]) -> Option<Self> {
        // The used bits of each word.
        let mut used: Vec<u32> = Vec::new();
        let mut claim = |bits: u32| {
            let word = used.iter().position(|used| used + bits <= u128::BITS);
            let word = word.unwrap_or(used.len());
            used.resize(used.len().max(word + 1), 0);
            used[word] += bits;
            (word, used[word] - bits)
        };
        let (mut fields, mut texts) = (Vec::with_capacity(types.len()), Vec::new());
        for (kind, null_bit) in types {
            if is_text(kind) {
                let (word, _) = claim(u128::BITS);
                texts.push(word);
                fields.push(WordField::Text(word));
                continue;
            }
            let (word, shift) = claim(8 * fixed::width(kind)? as u32);
            let null = null_bit.then(|| claim(1));
            fields.push(WordField::Fixed(word, PackedField::new(kind, shift)?, null));
        }
        let words = used.len();
        let texts = (0..words).map(|word| texts.contains(&word)).collect();
        (words <= MAX_WORDS).then_some(Self { fields, texts })
    }

    /// Returns an empty list of keys.
    pub(super) fn empty_keys(&self) -> WordKeys {
        WordKeys { texts: self.texts.clone(), words: Vec::new(), long: LongTexts::default() }
    }

    /// Returns the keys of the rows of `columns`, which refer to the columns' long texts.
    pub(super) fn encode(&self, columns: &[ArrayRef]) -> Result<WordKeys> {
        let rows = columns.first().map_or(0, |column| column.len());
        let mut keys = self.empty_keys();
        keys.long.borrowed = true;
        keys.words.resize(rows * keys.width(), 0);
        let mut values = Vec::new();
        for (column, field) in columns.iter().zip(&self.fields) {
            match *field {
                WordField::Text(word) => keys.set_texts(word, column)?,
                WordField::Fixed(word, field, null) => {
                    values.clear();
                    values.resize(rows, 0_u128);
                    fixed::pack(column, field, &mut values);
                    keys.column_mut(word).zip(&values).for_each(|(word, value)| *word |= value);
                    let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
                    if let (Some((word, bit)), Some(nulls)) = (null, nulls) {
                        let words = keys.column_mut(word).zip(nulls);
                        words.for_each(|(word, valid)| *word |= u128::from(!valid) << bit);
                    }
                }
            }
        }
        Ok(keys)
    }

    /// Returns the columns of types `types` from which the keys of `rows` were encoded.
    pub(super) fn decode(
        &self,
        keys: &WordKeys,
        rows: impl Iterator<Item = usize> + Clone,
        types: &[DataType],
    ) -> Result<Vec<ArrayRef>> {
        let column = |(field, kind): (&WordField, &DataType)| match *field {
            WordField::Text(word) => keys.texts_of(word, rows.clone(), kind),
            WordField::Fixed(word, field, null) => {
                let words = |word: usize| rows.clone().map(move |row| keys.key(row)[word]);
                let values: Vec<u128> = words(word).collect();
                let nulls = null.map(|(word, bit)| {
                    words(word).map(|word| word >> bit & 1 == 0).collect::<NullBuffer>()
                });
                fixed::unpack_values(&values, field, kind, nulls)
            }
        };
        self.fields.iter().zip(types).map(column).collect()
    }
}

/// Keys of one layout.
#[derive(Debug, Clone)]
pub struct WordKeys {
    /// For each word, whether it is a text.
    texts: Arc<[bool]>,
    /// The words of the first key, of the second, …
    words: Vec<u128>,
    long: LongTexts,
}

impl WordKeys {
    /// Returns the number of words of a key.
    pub(super) fn width(&self) -> usize {
        self.texts.len()
    }

    /// Returns the words of key `index`.
    #[inline]
    fn key(&self, index: usize) -> &[u128] {
        &self.words[index * self.width()..(index + 1) * self.width()]
    }

    /// Returns word `word` of each key.
    fn column_mut(&mut self, word: usize) -> impl Iterator<Item = &mut u128> {
        let width = self.width();
        self.words.iter_mut().skip(word).step_by(width)
    }

    /// Sets word `word` of each key to the texts of `column`.
    fn set_texts(&mut self, word: usize, column: &ArrayRef) -> Result<()> {
        let views;
        let (views, buffers) = match column.data_type() {
            DataType::Utf8View => {
                let column = column.as_string_view();
                (column.views(), column.data_buffers())
            }
            DataType::BinaryView => {
                let column = column.as_binary_view();
                (column.views(), column.data_buffers())
            }
            DataType::Utf8 | DataType::LargeUtf8 => {
                views = cast(column, &DataType::Utf8View)?;
                (views.as_string_view().views(), views.as_string_view().data_buffers())
            }
            _ => {
                views = cast(column, &DataType::BinaryView)?;
                (views.as_binary_view().views(), views.as_binary_view().data_buffers())
            }
        };
        let first_buffer = self.long.buffers.len() as u128;
        self.long.buffers.extend(buffers.iter().cloned());
        let mut any_long = false;
        for (word, view) in self.column_mut(word).zip(views.iter()) {
            *word = *view;
            any_long |= is_long(*view);
        }
        if any_long && first_buffer > 0 {
            let long = self.column_mut(word).filter(|word| is_long(**word));
            // The view of a NULL may be anything.
            long.for_each(|word| *word = word.wrapping_add(first_buffer << 64));
        }
        self.long.any |= any_long;
        if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
            let words = self.column_mut(word).zip(nulls);
            words.filter(|(_, valid)| !valid).for_each(|(word, _)| *word = NULL);
        }
        Ok(())
    }

    /// Returns the texts that are word `word` of the keys of `rows`, as a column of type `kind`.
    fn texts_of(
        &self,
        word: usize,
        rows: impl Iterator<Item = usize>,
        kind: &DataType,
    ) -> Result<ArrayRef> {
        let (mut long, mut any_null) = (LongTexts::default(), false);
        let mut view = |row: usize| match self.key(row)[word] {
            NULL => {
                any_null = true;
                NULL
            }
            word if is_long(word) => long.copy(word, &self.long),
            word => word,
        };
        let mut views: Vec<u128> = rows.map(&mut view).collect();
        let nulls = any_null.then(|| {
            let valid: NullBuffer = views.iter().map(|view| *view != NULL).collect();
            views.iter_mut().filter(|view| **view == NULL).for_each(|view| *view = 0);
            valid
        });
        long.seal();
        let views = views.into();
        let texts: ArrayRef = match kind {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Arc::new(StringViewArray::try_new(views, long.buffers, nulls)?)
            }
            _ => Arc::new(BinaryViewArray::try_new(views, long.buffers, nulls)?),
        };
        Ok(if texts.data_type() == kind { texts } else { cast(&texts, kind)? })
    }

    pub(super) fn len(&self) -> usize {
        self.words.len() / self.width()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        self.words.reserve(more * self.width());
    }

    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.long = LongTexts::default();
    }

    /// Returns the memory of the keys, in bytes. Texts that belong to encoded columns do not count.
    pub(super) fn bytes(&self) -> usize {
        16 * self.words.capacity() + self.long.bytes()
    }

    /// Returns the memory of the long texts, in bytes.
    pub(super) fn text_bytes(&self) -> usize {
        self.long.bytes()
    }

    /// Returns the bytes of the long texts of key `index`.
    pub(super) fn length(&self, index: usize) -> usize {
        let words = self.key(index).iter().zip(self.texts.iter());
        let long = words.filter(|(word, is_text)| **is_text && is_long(**word));
        long.map(|(word, _)| *word as u32 as usize).sum()
    }

    /// Returns the words of all keys if equal words are equal keys.
    #[inline]
    pub(super) fn plain_words(&self) -> Option<&[u128]> {
        (!self.long.any).then_some(&self.words)
    }

    /// Returns the words of the keys for new keys, without a long text.
    pub(super) fn words_mut(&mut self) -> &mut Vec<u128> {
        &mut self.words
    }

    /// Reads a part of the first word of key `index`.
    #[inline]
    pub(crate) fn touch(&self, index: usize) -> u64 {
        self.words[index * self.width()] as u64
    }

    /// Reads a byte of the first text of key `index`, if that is long.
    #[inline]
    pub(crate) fn touch_text(&self, index: usize) -> u64 {
        if !self.long.any {
            return 0;
        }
        let mut words = self.key(index).iter().zip(self.texts.iter());
        let text = words.find(|(_, is_text)| **is_text).filter(|(word, _)| is_long(**word));
        text.map_or(0, |(word, _)| self.long.text(*word)[0].into())
    }

    /// Returns whether keys `index` and `other` have the same words. They are then equal.
    #[inline]
    pub(super) fn has_words_of(&self, index: usize, other: usize) -> bool {
        self.key(index).iter().zip(self.key(other)).all(|(word, other)| word == other)
    }

    /// Returns whether key `index` equals key `other_index` of `other`.
    #[inline]
    pub fn equals(&self, index: usize, other: &Self, other_index: usize) -> bool {
        let (key, other_key) = (self.key(index), other.key(other_index));
        if !self.long.any || !other.long.any {
            return key.iter().zip(other_key).all(|(word, other)| word == other);
        }
        let mut words = key.iter().zip(other_key).zip(self.texts.iter());
        words.all(|((word, other_word), is_text)| {
            if !is_text || !is_long(*word) {
                return word == other_word;
            }
            // Length and beginning first.
            *word as u64 == *other_word as u64
                && self.long.text(*word) == other.long.text(*other_word)
        })
    }

    /// Appends key `index` of `other`.
    #[inline]
    pub(super) fn push_from(&mut self, other: &Self, index: usize) {
        let key = other.key(index);
        if !other.long.any {
            return match *key {
                // Without a call for a few bytes.
                [one] => self.words.push(one),
                [one, two] => self.words.extend_from_slice(&[one, two]),
                [one, two, three] => self.words.extend_from_slice(&[one, two, three]),
                _ => self.words.extend_from_slice(key),
            };
        }
        for (word, is_text) in key.iter().zip(other.texts.iter()) {
            let is_long = *is_text && is_long(*word);
            let word = if is_long { self.long.copy(*word, &other.long) } else { *word };
            self.words.push(word);
        }
    }

    /// Appends the keys of `other` at `indices`. Their long texts are not copied: they stay in the
    /// buffers of `other`, of which these keys count their part.
    pub(super) fn extend_sharing(&mut self, other: &Self, indices: &[u32]) {
        self.words.reserve(indices.len() * self.width());
        if !other.long.any || other.long.borrowed {
            return indices.iter().for_each(|index| self.push_from(other, *index as usize));
        }
        let before = self.long.full_bytes;
        let first_buffer = self.long.share(&other.long) << 64;
        let bytes: usize = indices.iter().map(|index| other.length(*index as usize)).sum();
        self.long.full_bytes = before + bytes;
        self.long.shared = true;
        for index in indices {
            self.push_shared(other, *index as usize, first_buffer);
        }
    }

    /// Takes over the buffers of `other`, if it shares them with other keys anyway. Returns what
    /// [`push_shared`](Self::push_shared) adds to the words of its long texts.
    pub(super) fn share_texts_of(&mut self, other: &Self) -> Option<u128> {
        let shares = other.long.any && other.long.shared;
        shares.then(|| self.long.share(&other.long) << 64)
    }

    /// Appends key `index` of `other`, whose buffers were taken over as `first_buffer`.
    #[inline]
    pub(super) fn push_shared(&mut self, other: &Self, index: usize, first_buffer: u128) {
        let words = other.key(index).iter().zip(other.texts.iter());
        self.words.extend(words.map(|(word, is_text)| match *is_text && is_long(*word) {
            true => *word + first_buffer,
            false => *word,
        }));
    }

    /// Moves the texts into full buffers, which can be shared.
    pub(super) fn seal_texts(&mut self) {
        self.long.seal();
    }

    /// Appends the keys of `other` in `range`. Long texts that `other` owns are shared.
    pub(super) fn append_range(&mut self, other: &Self, range: Range<usize>) {
        let width = self.width();
        if !other.long.any {
            return self
                .words
                .extend_from_slice(&other.words[range.start * width..range.end * width]);
        }
        let indices: Vec<u32> = (range.start as u32..range.end as u32).collect();
        self.extend_sharing(other, &indices);
    }

    /// Returns no keys of this layout.
    pub(super) fn empty_like(&self) -> Self {
        Self { texts: self.texts.clone(), words: Vec::new(), long: LongTexts::default() }
    }

    /// Returns the keys with copies of the long texts that belong to columns.
    pub(super) fn into_owned(mut self) -> Self {
        if !self.long.borrowed {
            return self;
        }
        if !self.long.any {
            self.long = LongTexts::default();
            return self;
        }
        let mut owned = self.empty_like();
        owned.append(&self);
        owned.seal_texts();
        owned
    }

    /// Appends all keys of `other`.
    pub(super) fn append(&mut self, other: &Self) {
        if !other.long.any {
            return self.words.extend_from_slice(&other.words);
        }
        self.words.reserve(other.words.len());
        if other.long.borrowed {
            return (0..other.len()).for_each(|index| self.push_from(other, index));
        }
        let first_buffer = self.long.share(&other.long) << 64;
        (0..other.len()).for_each(|index| self.push_shared(other, index, first_buffer));
    }

    /// Replaces `hashes` by one hash per key of `range`.
    pub(super) fn hash_range_into(&self, range: Range<usize>, hashes: &mut Vec<u64>) {
        hashes.clear();
        let width = self.width();
        let words = &self.words[range.start * width..range.end * width];
        if !self.long.any {
            return match width {
                1 => hashes.extend(words.iter().map(|word| finish(mix(SEED, *word)))),
                _ => hashes.extend(
                    words
                        .chunks_exact(width)
                        .map(|key| finish(key.iter().copied().fold(SEED, mix))),
                ),
            };
        }
        let state = RandomState::with_seed(SEED);
        // The hashes of some words: equal words are the same text.
        let mut seen = [(0_u128, 0_u64); SEEN_TEXTS];
        let mut hash_of_text = |word: u128| {
            let place = mix(SEED, word) as usize % SEEN_TEXTS;
            let (seen_word, hash) = &mut seen[place];
            if *seen_word != word {
                (*seen_word, *hash) = (word, state.hash_one(self.long.text(word)));
            }
            *hash
        };
        hashes.extend(words.chunks_exact(width).map(|key| {
            finish(key.iter().zip(self.texts.iter()).fold(SEED, |hash, (word, is_text)| {
                if !is_text || !is_long(*word) {
                    return mix(hash, *word);
                }
                let text = hash_of_text(*word);
                mix(hash, u128::from(*word as u64) | u128::from(text) << 64)
            }))
        }));
    }
}

/// Number of long texts of a batch whose hashes are remembered.
const SEEN_TEXTS: usize = 256;

/// Returns `hash` mixed with a word: the two halves of a product of 64-bit numbers, xored.
#[inline]
fn mix(hash: u64, word: u128) -> u64 {
    let (low, high) = (word as u64 ^ hash, (word >> 64) as u64 ^ 0x9E37_79B9_7F4A_7C15);
    let product = u128::from(low) * u128::from(high);
    (product as u64) ^ ((product >> 64) as u64) ^ hash.rotate_left(29)
}

/// Spreads a hash: tables use the low bits, partitions the high bits.
#[inline]
fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ (hash >> 29)
}

/// The bytes of long texts. A word has the number of its buffer and the offset in it.
#[derive(Debug, Default, Clone)]
struct LongTexts {
    /// Full buffers.
    buffers: Vec<Buffer>,
    /// The buffer after those, which grows.
    last: Vec<u8>,
    /// Bytes of the full buffers.
    full_bytes: usize,
    /// Whether any word may refer to these texts.
    any: bool,
    /// Whether the buffers belong to columns.
    borrowed: bool,
    /// Whether other keys have the buffers, too.
    shared: bool,
}

impl LongTexts {
    fn bytes(&self) -> usize {
        self.full_bytes + self.last.capacity()
    }

    /// Returns the text of the word of a long text.
    #[inline]
    fn text(&self, word: u128) -> &[u8] {
        let (buffer, offset) = ((word >> 64) as u32 as usize, (word >> 96) as usize);
        let bytes = self.buffers.get(buffer).map_or(self.last.as_slice(), Buffer::as_slice);
        &bytes[offset..offset + word as u32 as usize]
    }

    /// Copies the text of a word of `other`, and returns its word here.
    fn copy(&mut self, word: u128, other: &Self) -> u128 {
        let text = other.text(word);
        if self.last.len() + text.len() > BUFFER_BYTES {
            self.seal();
            // Like the full one, without growing step by step.
            self.last.reserve(text.len().max(BUFFER_BYTES));
        }
        let place = self.buffers.len() as u64 | (self.last.len() as u64) << 32;
        self.last.extend_from_slice(text);
        self.any = true;
        u128::from(word as u64) | u128::from(place) << 64
    }

    /// Begins a further buffer.
    fn seal(&mut self) {
        if !self.last.is_empty() {
            let mut last = std::mem::take(&mut self.last);
            if 2 * last.len() < last.capacity() {
                last.shrink_to_fit();
            }
            self.full_bytes += last.capacity();
            self.buffers.push(Buffer::from_vec(last));
        }
    }

    /// Takes over the texts of `other`, and returns the number of their first buffer.
    fn share(&mut self, other: &Self) -> u128 {
        self.seal();
        let first = self.buffers.len() as u128;
        self.buffers.extend(other.buffers.iter().cloned());
        self.full_bytes += other.full_bytes;
        self.last.extend_from_slice(&other.last);
        self.any |= other.any;
        // The words of `other` number its growing buffer last.
        self.seal();
        first
    }
}
