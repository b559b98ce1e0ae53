//! Where attention finds the keys and values of one head: in packed rows, in a cache, or in pages.

use std::{borrow::Cow, ops::Range};

use candle_core::{Layout, Result};

use crate::model::pages::PagedRows;

/// Vectors of one head, position by position.
pub(super) trait Vectors {
    /// Calls `f` with all of them, `[positions][head_dim]`, in stretches that lie together, in order.
    fn stretches(&self, f: impl FnMut(&[f32]));
}

/// Packed rows `[n, kv_heads * d]` or a cache `[1, kv_heads, n, d]`, by head.
pub(super) struct ByHead<'a> {
    data: &'a [f32],
    head_stride: usize,
    row_stride: usize,
    head_dim: usize,
}

impl<'a> ByHead<'a> {
    pub fn new(data: &'a [f32], layout: &Layout, head_dim: usize) -> Result<Self> {
        let (head_stride, row_stride) = match *layout.stride() {
            [row, 1] => (head_dim, row),
            [_, head, row, 1] => (head, row),
            ref other => candle_core::bail!("keys and values with strides {other:?}"),
        };
        Ok(Self { data: &data[layout.start_offset()..], head_stride, row_stride, head_dim })
    }

    /// These rows of one head; put together where they lie apart.
    pub fn of(&self, head: usize, rows: &Range<usize>) -> Cow<'a, [f32]> {
        let at = |row: usize| head * self.head_stride + row * self.row_stride;
        if self.row_stride == self.head_dim {
            return Cow::Borrowed(&self.data[at(rows.start)..at(rows.end)]);
        }
        Cow::Owned(rows.clone().flat_map(|row| self.data[at(row)..][..self.head_dim].iter().copied()).collect())
    }
}

impl Vectors for Cow<'_, [f32]> {
    fn stretches(&self, mut f: impl FnMut(&[f32])) {
        f(self);
    }
}

/// Some rows of one head in one sequence, in pages.
pub(super) struct Paged<'a> {
    pub rows: PagedRows<'a>,
    pub keys: Range<usize>,
}

impl Vectors for Paged<'_> {
    fn stretches(&self, f: impl FnMut(&[f32])) {
        self.rows.stretches(self.keys.start, self.keys.len()).for_each(f);
    }
}
