//! The two names of a version: one over the bits of its weights, one over the set that it is.

use std::ops::Range;

use rayon::prelude::*;

use crate::{digest::Digest, model::EditableMatrix};

/// Floats hashed at a time: their bytes (64 KiB) stay in the second-level cache, and are enough for BLAKE3's widest
/// vectors.
const FLOATS: usize = 16 * 1024;

/// `digest` of a version: a hash over each editable matrix's name, shape and the hash of its f32 values' little-endian
/// bits in row-major order. The matrices are hashed in parallel.
pub fn weights_digest(shapes: &[EditableMatrix], weights: &[Vec<f32>]) -> Digest {
    assert_eq!(shapes.len(), weights.len(), "one vector per editable matrix");
    digest_of(shapes, |matrix, range, values| values.copy_from_slice(&weights[matrix][range]))
}

/// [`weights_digest`] of weights that `fill` writes a piece at a time: `(matrix, elements, where to)`.
pub(super) fn digest_of(shapes: &[EditableMatrix], fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync) -> Digest {
    let hash = |(matrix, shape): (usize, &EditableMatrix)| {
        hash_values(shape.d_out * shape.d_in, |range, values| fill(matrix, range, values))
    };
    let hashes: Vec<[u8; 32]> = shapes.par_iter().enumerate().map(hash).collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"amend weights 1");
    hasher.update(&(shapes.len() as u64).to_le_bytes());
    for (shape, hash) in shapes.iter().zip(hashes) {
        hasher.update(&(shape.name.len() as u64).to_le_bytes());
        hasher.update(shape.name.as_bytes());
        hasher.update(&(shape.d_out as u64).to_le_bytes());
        hasher.update(&(shape.d_in as u64).to_le_bytes());
        hasher.update(&hash);
    }
    Digest(*hasher.finalize().as_bytes())
}

fn hash_values(count: usize, fill: impl Fn(Range<usize>, &mut [f32])) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut values = vec![0.0; FLOATS.min(count)];
    let mut bytes = Vec::with_capacity(FLOATS * 4);
    for start in (0..count).step_by(FLOATS) {
        let range = start..(start + FLOATS).min(count);
        let values = &mut values[..range.len()];
        fill(range, values);
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
    *hasher.finalize().as_bytes()
}

/// `set_digest` of a version: a function of the model, the editor, the composition and the multiset of the active
/// edits' contribution digests, whatever order they are given in.
pub fn set_digest(
    base: Digest,
    editor: Digest,
    composition: &str,
    contributions: impl IntoIterator<Item = Digest>,
) -> Digest {
    let mut sorted: Vec<Digest> = contributions.into_iter().collect();
    sorted.sort_unstable();
    let fixed = [b"amend set 1".as_slice(), base.as_bytes(), editor.as_bytes(), composition.as_bytes()];
    Digest::of_parts(fixed.into_iter().chain(sorted.iter().map(|digest| digest.as_bytes().as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str, d_out: usize, d_in: usize) -> EditableMatrix {
        EditableMatrix { name: name.into(), d_out, d_in }
    }

    #[test]
    fn names_shapes_and_every_bit_count() {
        let shapes = [shape("a", 2, 3)];
        let values = [vec![1.0, 2.0, 3.0, 4.0, 5.0, 0.0]];
        let digest = weights_digest(&shapes, &values);
        assert_eq!(digest, weights_digest(&shapes, &values.clone()));
        let mut negative_zero = values.clone();
        negative_zero[0][5] = -0.0;
        assert_ne!(digest, weights_digest(&shapes, &negative_zero));
        assert_ne!(digest, weights_digest(&[shape("b", 2, 3)], &values));
        assert_ne!(digest, weights_digest(&[shape("a", 3, 2)], &values));
    }

    #[test]
    fn a_matrix_longer_than_a_chunk_hashes_as_its_bytes() {
        let values: Vec<f32> = (0..FLOATS * 2 + 5).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let hash = hash_values(values.len(), |range, out| out.copy_from_slice(&values[range]));
        assert_eq!(hash, *blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn a_set_has_no_order_but_counts_repeats() {
        let [base, editor, a, b] = [b"base".as_slice(), b"editor", b"a", b"b"].map(Digest::of);
        let of = |list: &[Digest]| set_digest(base, editor, "sum", list.iter().copied());
        assert_eq!(of(&[a, b]), of(&[b, a]));
        assert_ne!(of(&[a]), of(&[a, a]));
        assert_ne!(of(&[]), of(&[a]));
        assert_ne!(of(&[a]), set_digest(editor, base, "sum", [a]));
    }
}
