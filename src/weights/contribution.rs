//! What one edit adds to the editable matrices, as the log keeps it.
//!
//! Bytes, all little-endian: magic `AMNDCTB1`; u32 number of matrices; for each, u8 form (0 low rank, 1 dense, 2 joint),
//! u32 n, u32 d_out, u32 d_in, then f32s: low rank `left [n, d_out]` and `right [n, d_in]`, dense `[d_out, d_in]` (its n
//! is d_out), joint `left [n, d_out]`, `right [n, d_in]` and `keys [n, d_in]`. The last digit of the magic is the version
//! of this layout.

use candle_core::{DType, Device, Tensor};

use super::WeightsError;
use crate::{
    digest::Digest,
    editor::{Delta, MatrixDelta},
    model::EditableMatrix,
};

const MAGIC: &[u8; 8] = b"AMNDCTB1";
const LOW_RANK: u8 = 0;
const DENSE: u8 = 1;
const JOINT: u8 = 2;

/// What an edit adds to the weights. Every value is finite. Its fixed-point form is a function of these values alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    parts: Vec<Part>,
}

/// What an edit adds to one matrix `[d_out, d_in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub(super) n: usize,
    pub(super) d_out: usize,
    pub(super) d_in: usize,
    pub(super) values: Values,
}

/// Row-major values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    /// `sum_i left_i right_i^T`; left `[n, d_out]`, right `[n, d_in]`.
    LowRank { left: Vec<f32>, right: Vec<f32> },
    /// `[d_out, d_in]`.
    Dense(Vec<f32>),
    /// Rows of a joint solve ([`crate::editor::joint`]); left `[n, d_out]`, right and keys `[n, d_in]`.
    Joint { left: Vec<f32>, right: Vec<f32>, keys: Vec<f32> },
}

impl Contribution {
    /// Takes the delta to host memory. Refuses values that are not finite and factors whose shapes do not agree.
    pub fn from_delta(delta: &Delta) -> Result<Self, WeightsError> {
        let parts = delta.0.iter().map(part_of).collect::<Result<Vec<_>, _>>()?;
        match parts.iter().position(|part| !part.is_finite()) {
            Some(matrix) => Err(WeightsError::NonFinite { matrix: format!("matrix {matrix}") }),
            None => Ok(Self { parts }),
        }
    }

    /// One part per editable matrix.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The bytes described at the top of this file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let floats: usize = self.parts.iter().map(Part::floats).sum();
        let mut bytes = Vec::with_capacity(12 + self.parts.len() * 13 + floats * 4);
        bytes.extend_from_slice(MAGIC);
        put(&mut bytes, self.parts.len());
        for part in &self.parts {
            let (form, slices) = match &part.values {
                Values::LowRank { left, right } => (LOW_RANK, [left.as_slice(), right.as_slice(), &[]]),
                Values::Dense(values) => (DENSE, [values.as_slice(), &[], &[]]),
                Values::Joint { left, right, keys } => (JOINT, [left.as_slice(), right.as_slice(), keys.as_slice()]),
            };
            bytes.push(form);
            for size in [part.n, part.d_out, part.d_in] {
                put(&mut bytes, size);
            }
            for slice in slices {
                bytes.extend(slice.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        bytes
    }

    /// Reads what [`Contribution::to_bytes`] wrote for a model with these editable matrices. Nothing is allocated
    /// before the bytes that would fill it are known to be there.
    pub fn from_bytes(bytes: &[u8], shapes: &[EditableMatrix]) -> Result<Self, WeightsError> {
        let mut reader = Reader { rest: bytes };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(malformed("it does not begin with AMNDCTB1"));
        }
        let count = reader.size()?;
        if count != shapes.len() {
            return Err(malformed(format!("it is for {count} matrices, the model has {}", shapes.len())));
        }
        let parts = shapes.iter().map(|shape| reader.part(shape)).collect::<Result<Vec<_>, _>>()?;
        if !reader.rest.is_empty() {
            return Err(malformed(format!("{} bytes follow its end", reader.rest.len())));
        }
        Ok(Self { parts })
    }

    /// Hash of [`Contribution::to_bytes`].
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Frobenius norm of what is added to a matrix, by this edit alone. For low rank, `||L^T R||^2 = sum_ij (L L^T)_ij (R R^T)_ij` over the
    /// `n x n` Gram matrices, so the dense product is never formed. In f64, because terms that cancel leave little.
    pub fn norm(&self, matrix: usize) -> Result<f32, WeightsError> {
        let part = &self.parts[matrix];
        let square = match &part.values {
            Values::Dense(values) => dot(values, values),
            Values::LowRank { .. } | Values::Joint { .. } if part.n == 0 => 0.0,
            Values::LowRank { left, right } | Values::Joint { left, right, .. } => {
                let (left, right) = (gram(left, part.d_out)?, gram(right, part.d_in)?);
                (left * right)?.sum_all()?.to_scalar::<f64>()?
            }
        };
        Ok(square.max(0.0).sqrt() as f32)
    }

    /// How many rank-one terms a matrix receives; for a dense part, the most it can be.
    pub fn rank(&self, matrix: usize) -> usize {
        let part = &self.parts[matrix];
        match part.values {
            Values::LowRank { .. } | Values::Joint { .. } => part.n,
            Values::Dense(_) => part.d_out.min(part.d_in),
        }
    }

    /// Refuses a contribution that is not for these matrices.
    pub(super) fn check_shapes(&self, shapes: &[EditableMatrix]) -> Result<(), WeightsError> {
        if self.parts.len() != shapes.len() {
            return Err(malformed(format!("it is for {} matrices, the model has {}", self.parts.len(), shapes.len())));
        }
        for (part, shape) in self.parts.iter().zip(shapes) {
            part.check_shape(shape)?;
        }
        Ok(())
    }
}

impl Part {
    /// Outputs of the matrix.
    pub fn d_out(&self) -> usize {
        self.d_out
    }

    /// Inputs of the matrix.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// The rank-one terms `(left [d_out], right [d_in])` of what the edit adds when it is alone; none for a dense part.
    pub fn terms(&self) -> Option<impl Iterator<Item = (&[f32], &[f32])>> {
        match &self.values {
            Values::LowRank { left, right } | Values::Joint { left, right, .. } => {
                Some((0..self.n).map(|i| (row(left, self.d_out, i), row(right, self.d_in, i))))
            }
            Values::Dense(_) => None,
        }
    }

    /// What entered the matrix where the `i`-th row of a joint part was taken, `[d_in]`; none for other parts.
    pub fn key(&self, i: usize) -> Option<&[f32]> {
        match &self.values {
            Values::Joint { keys, .. } if i < self.n => Some(row(keys, self.d_in, i)),
            _ => None,
        }
    }

    /// The values of a dense part, row-major `[d_out, d_in]`; none for a low-rank one.
    pub fn dense(&self) -> Option<&[f32]> {
        match &self.values {
            Values::LowRank { .. } | Values::Joint { .. } => None,
            Values::Dense(values) => Some(values),
        }
    }

    fn floats(&self) -> usize {
        match &self.values {
            Values::LowRank { left, right } => left.len() + right.len(),
            Values::Dense(values) => values.len(),
            Values::Joint { left, right, keys } => left.len() + right.len() + keys.len(),
        }
    }

    fn is_finite(&self) -> bool {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        match &self.values {
            Values::LowRank { left, right } => finite(left) && finite(right),
            Values::Dense(values) => finite(values),
            Values::Joint { left, right, keys } => finite(left) && finite(right) && finite(keys),
        }
    }

    fn check_shape(&self, shape: &EditableMatrix) -> Result<(), WeightsError> {
        if (self.d_out, self.d_in) == (shape.d_out, shape.d_in) {
            return Ok(());
        }
        Err(malformed(format!(
            "{} is [{}, {}], the contribution's part is [{}, {}]",
            shape.name, shape.d_out, shape.d_in, self.d_out, self.d_in
        )))
    }
}

fn part_of(delta: &MatrixDelta) -> Result<Part, WeightsError> {
    Ok(match delta {
        MatrixDelta::LowRank { left, right } => {
            let (n, d_out, d_in) = sizes(left, right)?;
            Part { n, d_out, d_in, values: Values::LowRank { left: host(left)?, right: host(right)? } }
        }
        MatrixDelta::Dense(values) => {
            let (d_out, d_in) = values.dims2()?;
            Part { n: d_out, d_out, d_in, values: Values::Dense(host(values)?) }
        }
        MatrixDelta::Joint { keys, left, right } => {
            let (n, d_out, d_in) = sizes(left, right)?;
            if keys.dims2()? != (n, d_in) {
                return Err(malformed(format!("keys {:?} beside right rows {:?}", keys.dims(), right.dims())));
            }
            let values = Values::Joint { left: host(left)?, right: host(right)?, keys: host(keys)? };
            Part { n, d_out, d_in, values }
        }
    })
}

/// `(n, d_out, d_in)` of left and right rows.
fn sizes(left: &Tensor, right: &Tensor) -> Result<(usize, usize, usize), WeightsError> {
    let ((n, d_out), (n_right, d_in)) = (left.dims2()?, right.dims2()?);
    if n == n_right { Ok((n, d_out, d_in)) } else { Err(malformed(format!("{n} left rows, {n_right} right rows"))) }
}

fn host(tensor: &Tensor) -> Result<Vec<f32>, WeightsError> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Row `i` of a row-major matrix of this width.
pub(super) fn row(values: &[f32], width: usize, i: usize) -> &[f32] {
    &values[i * width..(i + 1) * width]
}

/// `A A^T` in f64, for `A [n, width]`: as a product of matrices, which is blocked and spread over the cores.
fn gram(values: &[f32], width: usize) -> candle_core::Result<Tensor> {
    let rows = Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu)?.to_dtype(DType::F64)?;
    rows.matmul(&rows.t()?)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn put(bytes: &mut Vec<u8>, size: usize) {
    let size = u32::try_from(size).expect("a dimension of a matrix held in memory fits 32 bits");
    bytes.extend_from_slice(&size.to_le_bytes());
}

fn malformed(message: impl Into<String>) -> WeightsError {
    WeightsError::Malformed(message.into())
}

/// Reads from the front of a slice.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WeightsError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| malformed(format!("it ends early: {n} more bytes expected, {} there", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    fn size(&mut self) -> Result<usize, WeightsError> {
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    fn floats(&mut self, rows: usize, width: usize) -> Result<Vec<f32>, WeightsError> {
        let bytes = rows
            .checked_mul(width)
            .and_then(|floats| floats.checked_mul(4))
            .ok_or_else(|| malformed(format!("a part of {rows} x {width} floats")))?;
        let (floats, _) = self.take(bytes)?.as_chunks::<4>();
        Ok(floats.iter().map(|&float| f32::from_le_bytes(float)).collect())
    }

    fn part(&mut self, shape: &EditableMatrix) -> Result<Part, WeightsError> {
        let form = self.take(1)?[0];
        let (n, d_out, d_in) = (self.size()?, self.size()?, self.size()?);
        if (d_out, d_in) != (shape.d_out, shape.d_in) {
            return Err(malformed(format!(
                "{} is [{}, {}], the contribution's part is [{d_out}, {d_in}]",
                shape.name, shape.d_out, shape.d_in
            )));
        }
        let values = match form {
            LOW_RANK => Values::LowRank { left: self.floats(n, d_out)?, right: self.floats(n, d_in)? },
            DENSE if n == d_out => Values::Dense(self.floats(d_out, d_in)?),
            JOINT => {
                let (left, right) = (self.floats(n, d_out)?, self.floats(n, d_in)?);
                Values::Joint { left, right, keys: self.floats(n, d_in)? }
            }
            _ => return Err(malformed(format!("{}: unknown form {form} with {n} rows", shape.name))),
        };
        let part = Part { n, d_out, d_in, values };
        if part.is_finite() { Ok(part) } else { Err(WeightsError::NonFinite { matrix: shape.name.clone() }) }
    }
}

#[cfg(test)]
#[path = "contribution_tests.rs"]
mod tests;
