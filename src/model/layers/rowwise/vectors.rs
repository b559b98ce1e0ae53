//! Where attention finds the keys and values of one head: in packed rows, in a cache, or in pages.

use candle_core::{Layout, Result};

use super::Seen;
use crate::model::pages::PagedRows;

/// Vectors of one head, position by position. They are walked by loops: an iterator's own `for_each` would be compiled apart
/// from its caller, without the CPU feature that the caller is compiled for.
pub(super) trait Vectors: Copy {
    /// Calls `f` with each of the first `count`, in order.
    fn each(self, count: usize, f: impl FnMut(&[f32]));

    /// How long each is.
    fn head_dim(self) -> usize;
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

    /// The rows of one head from `seen.start` on.
    pub fn of(&self, head: usize, seen: Seen) -> Rows<'a> {
        let start = head * self.head_stride + seen.start * self.row_stride;
        Rows { data: &self.data[start..], stride: self.row_stride, head_dim: self.head_dim }
    }
}

/// The rows of one head in one sequence.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub head_dim: usize,
}

impl Vectors for Rows<'_> {
    #[inline(always)]
    fn each(self, count: usize, mut f: impl FnMut(&[f32])) {
        for index in 0..count {
            f(&self.data[index * self.stride..][..self.head_dim]);
        }
    }

    fn head_dim(self) -> usize {
        self.head_dim
    }
}

/// The rows of one head from `start` on, in pages.
#[derive(Clone, Copy)]
pub(super) struct Paged<'a> {
    pub rows: PagedRows<'a>,
    pub start: usize,
    pub head_dim: usize,
}

impl Vectors for Paged<'_> {
    #[inline(always)]
    fn each(self, count: usize, mut f: impl FnMut(&[f32])) {
        for stretch in self.rows.stretches(self.start, count) {
            for vector in stretch.chunks_exact(self.head_dim) {
                f(vector);
            }
        }
    }

    fn head_dim(self) -> usize {
        self.head_dim
    }
}
