//! Keys and values of sequences that are decoded together, in pages that sequences share.
//!
//! A page holds [`PAGE`] positions of every block of a trunk or of a tail. Sequences hold their pages by reference counts:
//! one that is forked shares all of them, and a page is copied only when one of its holders writes into it. A page that is
//! full is never written again, so it can be kept for other sequences that begin with the same tokens.

use std::sync::Arc;

/// Positions of a page.
pub const PAGE: usize = 16;

/// What a page has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageShape {
    pub blocks: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the hidden states kept beside keys and values; 0 keeps none.
    pub hidden: usize,
}

impl PageShape {
    fn head(&self) -> usize {
        PAGE * self.head_dim
    }

    /// Keys, then values, of one block.
    fn block(&self) -> usize {
        2 * self.kv_heads * self.head()
    }

    /// f32 values of a page.
    pub fn values(&self) -> usize {
        self.blocks * self.block() + PAGE * self.hidden
    }
}

/// `[blocks][keys, values][kv_heads][PAGE][head_dim]`, then `[PAGE][hidden]`.
#[derive(Debug, Clone)]
pub struct Page {
    values: Vec<f32>,
}

impl Page {
    /// f32 values that it holds.
    pub fn size(&self) -> usize {
        self.values.len()
    }
}

/// What one sequence has read.
///
/// Law 7: pages of a trunk hold for every version; pages of a tail belong to the version whose weights they were computed
/// with, and only a sequence on that version may hold them.
#[derive(Debug, Clone)]
pub struct Pages {
    shape: PageShape,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl Pages {
    /// Of a sequence that has read nothing.
    pub fn new(shape: PageShape) -> Self {
        Self { shape, pages: Vec::new(), len: 0 }
    }

    /// Of a sequence that begins with what these full pages hold.
    pub fn from_full(shape: PageShape, pages: Vec<Arc<Page>>) -> Self {
        assert!(pages.iter().all(|page| page.values.len() == shape.values()), "pages of another shape");
        Self { shape, len: pages.len() * PAGE, pages }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The page number `index`, if it is full.
    pub fn full(&self, index: usize) -> Option<&Arc<Page>> {
        ((index + 1) * PAGE <= self.len).then(|| &self.pages[index])
    }

    /// Writes keys and values of one block, `[n][kv_heads * head_dim]` each, at the positions after those held. They count
    /// only with [`grow`](Self::grow), when all blocks have theirs.
    pub fn write(&mut self, block: usize, keys: &[f32], values: &[f32]) {
        let PageShape { kv_heads, head_dim, .. } = self.shape;
        let (head, width) = (self.shape.head(), kv_heads * head_dim);
        assert!(block < self.shape.blocks && keys.len() == values.len() && keys.len().is_multiple_of(width));
        let start = block * self.shape.block();
        for (row, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let position = self.len + row;
            let page = self.writable(position / PAGE);
            for (offset, vector) in [(start, key), (start + kv_heads * head, value)] {
                for (index, part) in vector.chunks_exact(head_dim).enumerate() {
                    let at = offset + index * head + position % PAGE * head_dim;
                    page[at..at + head_dim].copy_from_slice(part);
                }
            }
        }
    }

    /// Writes hidden states `[n][hidden]` at the positions after those held.
    pub fn write_hidden(&mut self, rows: &[f32]) {
        let (hidden, start) = (self.shape.hidden, self.shape.blocks * self.shape.block());
        for (row, state) in rows.chunks_exact(hidden).enumerate() {
            let position = self.len + row;
            let at = start + position % PAGE * hidden;
            self.writable(position / PAGE)[at..at + hidden].copy_from_slice(state);
        }
    }

    /// Appends the hidden state at a position to `out`.
    pub fn read_hidden(&self, position: usize, out: &mut Vec<f32>) {
        assert!(position < self.len, "position {position} of {}", self.len);
        let at = self.shape.blocks * self.shape.block() + position % PAGE * self.shape.hidden;
        out.extend_from_slice(&self.pages[position / PAGE].values[at..at + self.shape.hidden]);
    }

    /// Counts `n` more positions as held; every block was written.
    pub fn grow(&mut self, n: usize) {
        self.len += n;
        assert!(self.len <= self.pages.len() * PAGE, "positions that were not written");
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Keys of one block and head, those written and not yet counted too.
    pub fn keys(&self, block: usize, head: usize) -> PagedRows<'_> {
        self.rows(block * self.shape.block() + head * self.shape.head())
    }

    /// Values of one block and head.
    pub fn values(&self, block: usize, head: usize) -> PagedRows<'_> {
        self.rows(block * self.shape.block() + (self.shape.kv_heads + head) * self.shape.head())
    }

    fn rows(&self, offset: usize) -> PagedRows<'_> {
        PagedRows { pages: &self.pages, offset, head_dim: self.shape.head_dim }
    }

    /// A page that this sequence alone holds.
    fn writable(&mut self, index: usize) -> &mut [f32] {
        while self.pages.len() <= index {
            self.pages.push(Arc::new(Page { values: vec![0.0; self.shape.values()] }));
        }
        &mut Arc::make_mut(&mut self.pages[index]).values
    }
}

/// Vectors of one head in one block, position by position.
#[derive(Clone, Copy)]
pub struct PagedRows<'a> {
    pages: &'a [Arc<Page>],
    offset: usize,
    head_dim: usize,
}

impl<'a> PagedRows<'a> {
    /// Positions `start..start + count`, in stretches that lie together: `[positions][head_dim]`.
    #[inline(always)]
    pub fn stretches(self, start: usize, count: usize) -> impl Iterator<Item = &'a [f32]> {
        let end = start + count;
        (start / PAGE..end.div_ceil(PAGE)).map(move |page| {
            let (from, to) = (start.max(page * PAGE) % PAGE, (end - page * PAGE).min(PAGE));
            &self.pages[page].values[self.offset + from * self.head_dim..self.offset + to * self.head_dim]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: PageShape = PageShape { blocks: 2, kv_heads: 2, head_dim: 3, hidden: 4 };

    fn rows(n: usize, width: usize, seed: usize) -> Vec<f32> {
        (0..n * width).map(|i| (seed * 10_000 + i) as f32).collect()
    }

    fn append(pages: &mut Pages, n: usize, seed: usize) {
        for block in 0..SHAPE.blocks {
            pages.write(block, &rows(n, 6, seed + block), &rows(n, 6, seed + block + 100));
        }
        pages.write_hidden(&rows(n, 4, seed + 50));
        pages.grow(n);
    }

    fn collect(rows: PagedRows<'_>, start: usize, count: usize) -> Vec<f32> {
        rows.stretches(start, count).flatten().copied().collect()
    }

    #[test]
    fn what_is_written_is_read_by_block_head_and_position() {
        let mut pages = Pages::new(SHAPE);
        append(&mut pages, 5, 1);
        append(&mut pages, 30, 2);
        assert_eq!(pages.len(), 35);
        let whole = [rows(5, 6, 2), rows(30, 6, 3)].concat();
        let head = |values: &[f32], head: usize| -> Vec<f32> {
            values.chunks_exact(6).flat_map(|row| row[head * 3..][..3].to_vec()).collect()
        };
        assert_eq!(collect(pages.keys(1, 1), 0, 35), head(&whole, 1));
        assert_eq!(collect(pages.keys(1, 1), 14, 19), head(&whole, 1)[14 * 3..33 * 3]);
        let whole = [rows(5, 6, 101), rows(30, 6, 102)].concat();
        assert_eq!(collect(pages.values(0, 0), 0, 35), head(&whole, 0));
        let mut hidden = Vec::new();
        pages.read_hidden(34, &mut hidden);
        assert_eq!(hidden, rows(30, 4, 52)[29 * 4..]);
        assert!(pages.full(1).is_some() && pages.full(2).is_none());
    }

    #[test]
    fn a_fork_shares_full_pages_and_writes_its_own() {
        let mut pages = Pages::new(SHAPE);
        append(&mut pages, 20, 1);
        let mut fork = pages.clone();
        append(&mut fork, 3, 7);
        append(&mut pages, 3, 8);
        assert!(Arc::ptr_eq(&pages.pages[0], &fork.pages[0]) && !Arc::ptr_eq(&pages.pages[1], &fork.pages[1]));
        assert_eq!(collect(pages.keys(0, 0), 0, 20), collect(fork.keys(0, 0), 0, 20));
        assert_ne!(collect(pages.keys(0, 0), 20, 3), collect(fork.keys(0, 0), 20, 3));
        let kept = Pages::from_full(SHAPE, vec![Arc::clone(fork.full(0).unwrap())]);
        assert_eq!((kept.len(), collect(kept.keys(1, 0), 0, 16)), (16, collect(pages.keys(1, 0), 0, 16)));
    }

    #[test]
    fn what_was_not_counted_or_was_forgotten_is_written_over() {
        let mut pages = Pages::new(SHAPE);
        append(&mut pages, 18, 1);
        pages.write(0, &rows(4, 6, 9), &rows(4, 6, 9));
        assert_eq!(pages.len(), 18);
        pages.truncate(10);
        append(&mut pages, 2, 3);
        assert_eq!(pages.len(), 12);
        assert_eq!(collect(pages.keys(0, 0), 10, 1), rows(2, 6, 3)[..3]);
    }
}
