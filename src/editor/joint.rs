//! The joint solve: many edits' changes of one matrix, found together so that none speaks where another should.
//!
//! An edit contributes rows: the inputs `k_i` at which it was captured, its reading direction `u_i` and what it says,
//! `d_i`. Alone, its delta `sum d_i u_i^T` answers its own key `k_i` with `v_i = sum_j (k_i . u_j) d_j` over its own rows
//! `j`. Added up, many edits answer each other's keys too. Instead, the outputs `X` are solved for, the reading
//! directions kept: with `K`, `U`, `D` the rows of all active edits, `G = K U^T`, and `s` the mean of `|G_ii|`,
//!
//! ```text
//! (G + ridge s I) X = V + ridge s D        W = W0 + X^T U
//! ```
//!
//! so that at every edit's key the result is what its own delta alone would give. An edit of one row that is alone gets
//! its own delta, whatever the ridge. `V = B D`, where `B` is `G` between rows of the same edit and zero elsewhere, so
//! with `A = G + ridge s I` and `C = B + ridge s I` the change is `X^T U = D^T C^T A^-T U`: whichever side of `D` and `U`
//! is narrower is solved for.
//!
//! Least squares (MALMEN) is the same with every key its own reading direction, `U = K`, and with `D` as the outputs that
//! are wanted at the keys, whatever else is active: `(G + ridge I) X = D`.
//!
//! Everything here is in f64 save the products of `K` with `U`, on one thread, in the order of the rows: on one kind of
//! machine the bits are a function of the rows and their order alone.

use faer::{
    Accum, Mat, MatRef, Par,
    linalg::{matmul::matmul, solvers::Solve},
};

use super::EditorError;

/// Which system is solved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Each edit's own response, with a ridge in units of `s`.
    Joint { ridge: f32 },
    /// Given outputs, with a plain ridge.
    LeastSquares { ridge: f32 },
}

/// The rows of several edits at one matrix, one edit after another.
#[derive(Debug, Clone, Copy)]
pub struct JointRows<'a> {
    /// `K [n, d_in]`
    pub keys: &'a [f32],
    /// `U [n, d_in]`
    pub right: &'a [f32],
    /// `D [n, d_out]`
    pub left: &'a [f32],
    /// Rows of each edit; they add up to `n`.
    pub edits: &'a [usize],
    pub d_in: usize,
    pub d_out: usize,
}

/// A change of one matrix, `left^T right`.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// `[n, d_out]`
    pub left: Vec<f32>,
    /// `[n, d_in]`
    pub right: Vec<f32>,
}

impl JointRows<'_> {
    /// Solves for the change of the matrix. [`EditorError::NonFinite`] if there is no solution in the range of f32.
    pub fn solve(&self, rule: Rule) -> Result<Solved, EditorError> {
        let n: usize = self.edits.iter().sum();
        if n == 0 {
            return Ok(Solved { left: Vec::new(), right: Vec::new() });
        }
        let gram = self.gram(n);
        let shift = match rule {
            Rule::Joint { ridge } => f64::from(ridge) * (0..n).map(|i| gram[(i, i)].abs()).sum::<f64>() / n as f64,
            Rule::LeastSquares { ridge } => f64::from(ridge),
        };
        let shifted = Mat::from_fn(n, n, |i, j| gram[(i, j)] + if i == j { shift } else { 0.0 });
        let wanted = |i: usize, j: usize| match rule {
            Rule::Joint { .. } => shifted[(i, j)],
            Rule::LeastSquares { .. } => f64::from(u8::from(i == j)),
        };
        let solved = if self.d_in <= self.d_out {
            let read = shifted.transpose().partial_piv_lu().solve(&wide(self.right, self.d_in));
            let right = self.within_edits(|i, j| wanted(j, i), &read);
            Solved { left: self.left.to_vec(), right: narrow(&right) }
        } else {
            let said = self.within_edits(wanted, &wide(self.left, self.d_out));
            Solved { left: narrow(&shifted.partial_piv_lu().solve(&said)), right: self.right.to_vec() }
        };
        match solved.left.iter().chain(&solved.right).all(|value| value.is_finite()) {
            true => Ok(solved),
            false => Err(EditorError::NonFinite { what: format!("the joint solve of {n} rows") }),
        }
    }

    /// `G = K U^T`.
    fn gram(&self, n: usize) -> Mat<f64> {
        let keys = MatRef::from_row_major_slice(self.keys, n, self.d_in);
        let right = MatRef::from_row_major_slice(self.right, n, self.d_in);
        let mut gram = Mat::<f32>::zeros(n, n);
        matmul(gram.as_mut(), Accum::Replace, keys, right.transpose(), 1.0, Par::Seq);
        Mat::from_fn(n, n, |i, j| f64::from(gram[(i, j)]))
    }

    /// `C x`, with `C` given by its elements between rows of the same edit: all others are zero.
    fn within_edits(&self, c: impl Fn(usize, usize) -> f64, x: &Mat<f64>) -> Mat<f64> {
        let mut product = Mat::zeros(x.nrows(), x.ncols());
        let mut start = 0;
        for rows in self.edits {
            let own = start..start + rows;
            for column in 0..x.ncols() {
                for i in own.clone() {
                    product[(i, column)] = own.clone().map(|j| c(i, j) * x[(j, column)]).sum();
                }
            }
            start += rows;
        }
        product
    }
}

/// Row-major `[n, width]` values as a matrix of f64.
fn wide(values: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(values.len() / width, width, |i, j| f64::from(values[i * width + j]))
}

/// Row-major f32 values.
fn narrow(matrix: &Mat<f64>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)] as f32)).collect()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// `x [width]` through `left^T right`.
    fn answer(left: &[f32], right: &[f32], x: &[f32], d_out: usize) -> Vec<f32> {
        let mut y = vec![0f32; d_out];
        for (left, right) in left.chunks_exact(d_out).zip(right.chunks_exact(x.len())) {
            let spoken: f32 = right.iter().zip(x).map(|(a, b)| a * b).sum();
            y.iter_mut().zip(left).for_each(|(y, left)| *y += spoken * left);
        }
        y
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        let scale = want.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-3 * scale, "{got} for {want}");
        }
    }

    #[test]
    fn with_a_small_ridge_every_edit_gets_its_own_answer_at_its_keys() {
        for (d_in, d_out) in [(24, 10), (10, 24)] {
            let edits = [2, 1, 3];
            let (keys, right) = (random(6 * d_in, 1), random(6 * d_in, 2));
            let left = random(6 * d_out, 3);
            let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &edits, d_in, d_out };
            let solved = rows.solve(Rule::Joint { ridge: 1e-7 }).unwrap();
            let mut start = 0;
            for edit in edits {
                let own = |values: &[f32], width: usize| values[start * width..(start + edit) * width].to_vec();
                for key in own(&keys, d_in).chunks_exact(d_in) {
                    let alone = answer(&own(&left, d_out), &own(&right, d_in), key, d_out);
                    assert_close(&answer(&solved.left, &solved.right, key, d_out), &alone);
                }
                start += edit;
            }
        }
    }

    #[test]
    fn an_edit_of_one_row_that_is_alone_keeps_its_delta() {
        for (d_in, d_out) in [(5, 9), (9, 5)] {
            let (keys, right, left) = (random(d_in, 1), random(d_in, 2), random(d_out, 3));
            let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &[1], d_in, d_out };
            let solved = rows.solve(Rule::Joint { ridge: 0.3 }).unwrap();
            let x = random(d_in, 4);
            assert_close(&answer(&solved.left, &solved.right, &x, d_out), &answer(&left, &right, &x, d_out));
        }
    }

    #[test]
    fn least_squares_gives_the_wanted_outputs_at_the_keys() {
        for (d_in, d_out) in [(24, 10), (10, 24)] {
            let (keys, left) = (random(6 * d_in, 1), random(6 * d_out, 2));
            let rows = JointRows { keys: &keys, right: &keys, left: &left, edits: &[2, 4], d_in, d_out };
            let solved = rows.solve(Rule::LeastSquares { ridge: 1e-6 }).unwrap();
            for (key, wanted) in keys.chunks_exact(d_in).zip(left.chunks_exact(d_out)) {
                assert_close(&answer(&solved.left, &solved.right, key, d_out), wanted);
            }
        }
    }

    #[test]
    fn nothing_to_solve_is_no_change_and_no_solution_is_an_error() {
        let none = JointRows { keys: &[], right: &[], left: &[], edits: &[], d_in: 3, d_out: 2 };
        assert!(none.solve(Rule::Joint { ridge: 0.1 }).unwrap().left.is_empty());
        let zero = JointRows { keys: &[0.0; 3], right: &[0.0; 3], left: &[1.0; 2], edits: &[1], d_in: 3, d_out: 2 };
        assert!(matches!(zero.solve(Rule::Joint { ridge: 0.1 }), Err(EditorError::NonFinite { .. })));
    }
}
